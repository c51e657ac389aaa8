"""What a worker tells Prometheus. One process a worker runs jobs, so the default registry holds the whole truth."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)

JOBS = Counter(
    "loomweight_worker_jobs",
    "Deliveries of jobs by outcome: succeeded, failed, canceled; skipped, lost, abandoned (left to another attempt).",
    ["kind", "outcome"],
)
FAILURES = Counter(
    "loomweight_worker_failures",
    "Jobs that failed, by the last part of their problem's type; `internal` is our fault, all else the request's.",
    ["kind", "reason"],
)
for _kind in ("similarity", "similarity-matrix", "neighbours"):
    FAILURES.labels(_kind, "internal")
FAILURES.labels("generate", "internal")  # a counter that appears with its first event hides that event from `increase`
BUSY = Gauge("loomweight_worker_busy", "1 while a job runs.")
STAGE_SECONDS = Histogram(
    "loomweight_worker_stage_seconds",
    "Time of each stage of a generation that succeeded; `queue` is the time it waited.",
    ["stage"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600),
)
JOB_SECONDS = Histogram(
    "loomweight_worker_job_seconds",
    "From a job's creation until it succeeded: what its client waited.",
    ["kind"],
    buckets=(0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600),
)
BATCH = Histogram(
    "loomweight_worker_batch_jobs",
    "Jobs at work when one began, itself included; 1 for those that ran alone.",
    buckets=(1, 2, 4, 8, 12, 16, 24, 32, 64),
)
CANDIDATES = Histogram(
    "loomweight_worker_batch_candidates",
    "Weight sets that one pass of the sampler made together.",
    ["target"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
HOLDOUT_ACCURACY = Histogram(
    "loomweight_worker_holdout_accuracy",
    "Accuracy of the best network of a job on the samples that were held out, where any were.",
    ["target"],
    buckets=[n / 20 for n in range(1, 21)],
)
GAIN = Histogram(
    "loomweight_worker_holdout_gain",
    "The same, less that of the best baseline on the same samples: above 0, generating was worth it.",
    ["target"],
    buckets=(-0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5),
)
NOVELTY = Histogram(
    "loomweight_worker_novelty",
    "How unlike the training tasks a job's samples are: 0 familiar, 1 farther than any training task from the others.",
    ["target"],
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1),
)
SIMILARITY = Histogram(
    "loomweight_similarity_score",
    "Scores of pairs of checkpoints that were compared, matrices left out.",
    ["architectures"],
    buckets=[n / 10 for n in range(-10, 11)],
)
SIMILARITY_SECONDS = Histogram(
    "loomweight_similarity_seconds",
    "Time of each stage of a job about similarity: `queue`, `read`, `embed`, `compare`.",
    ["kind", "stage"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
EMBEDDINGS = Counter(
    "loomweight_similarity_embeddings",
    "Embeddings of stored models that jobs needed: `memory` and `store` had been made before, `made` was not.",
    ["source"],
)
STORE_SECONDS = Histogram(
    "loomweight_store_operation_seconds",
    "Time of each call of the store; `unavailable` is the store's fault.",
    ["operation", "outcome"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
BUNDLE = Gauge("loomweight_worker_bundle", "1 for the bundle that is loaded.", ["bundle", "device"])


def observe_store(operation: str, outcome: str, seconds: float) -> None:
    """Count one call of the store."""
    STORE_SECONDS.labels(operation, outcome).observe(seconds)


class Gpu(Collector):
    """Memory and utilisation of the worker's GPU, read at scrape time; also what other processes on it use."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; what the driver does not tell is left out."""
        memory = GaugeMetricFamily("loomweight_worker_gpu_memory_bytes", "Memory of the GPU.", labels=["state"])
        free, total = torch.cuda.mem_get_info(self._device)
        memory.add_metric(["used"], total - free)
        memory.add_metric(["total"], total)
        yield memory
        try:
            busy = torch.cuda.utilization(self._device) / 100
        except Exception as error:  # noqa: BLE001 - without NVML's bindings torch raises one thing, without NVML others
            _log.debug("no GPU utilisation: %s", error)
            return
        yield GaugeMetricFamily(
            "loomweight_worker_gpu_utilisation_ratio", "Share of the last moments in which the GPU worked.", value=busy
        )


def watch_device(device: str, registry: Any = REGISTRY) -> None:
    """Report on the device from now on, if it is a GPU."""
    if torch.device(device).type == "cuda":
        registry.register(Gpu(device))


def serve(port: int) -> None:
    """Answer on `port` from a thread; a port in use costs the metrics, not the worker."""
    try:
        start_http_server(port)
    except OSError as error:
        _log.error("no metrics: port %d cannot be opened: %s", port, error)

"""What a worker tells Prometheus. One process a worker runs jobs, so the default registry holds the whole truth."""

import logging

from prometheus_client import Counter, Gauge, Histogram, start_http_server

_log = logging.getLogger(__name__)

JOBS = Counter(
    "loomweight_worker_jobs",
    "Deliveries of jobs by outcome: succeeded, failed, canceled; skipped, lost, abandoned (left to another attempt).",
    ["kind", "outcome"],
)
BUSY = Gauge("loomweight_worker_busy", "1 while a job runs.")
STAGE_SECONDS = Histogram(
    "loomweight_worker_stage_seconds",
    "Time of each stage of a generation.",
    ["stage"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
BUNDLE = Gauge("loomweight_worker_bundle", "1 for the bundle that is loaded.", ["bundle", "device"])


def serve(port: int) -> None:
    """Answer on `port` from a thread; a port in use costs the metrics, not the worker."""
    try:
        start_http_server(port)
    except OSError as error:
        _log.error("no metrics: port %d cannot be opened: %s", port, error)

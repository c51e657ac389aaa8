"""What a job leaves in the worker's metrics, and what a GPU would."""

from collections.abc import Callable

import pytest
import torch
from prometheus_client import REGISTRY, CollectorRegistry

from loomweight.errors import InvalidRequest
from tests.workers.standin import TARGET, StandIn
from workers import metrics
from workers.generate import generate
from workers.runtime import Runtime

Submit = Callable[..., str]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    ("name", "labels", "added"),
    [
        ("loomweight_worker_batch_candidates_sum", {"target": TARGET}, 4),
        ("loomweight_worker_holdout_accuracy_sum", {"target": TARGET}, 0.75),
        ("loomweight_worker_novelty_count", {"target": TARGET}, 1),
        ("loomweight_worker_job_seconds_count", {"kind": "generate"}, 1),
        ("loomweight_worker_stage_seconds_count", {"stage": "queue"}, 1),
    ],
)
def test_a_good_job_is_measured(
    runtime: Runtime, submit: Submit, name: str, labels: dict[str, str], added: float
) -> None:
    before = value(name, **labels)
    assert generate(submit(candidates=4), runtime) == "succeeded"
    assert value(name, **labels) - before == pytest.approx(added)


@pytest.mark.parametrize(
    ("error", "reason"), [(RuntimeError("ours"), "internal"), (InvalidRequest("theirs"), "invalid-request")]
)
def test_failures_are_told_apart_by_reason(
    runtime: Runtime, submit: Submit, generator: StandIn, error: Exception, reason: str
) -> None:
    generator.error = error
    labels = {"kind": "generate", "reason": reason}
    before = value("loomweight_worker_failures_total", **labels)
    assert generate(submit(), runtime) == "failed"
    assert value("loomweight_worker_failures_total", **labels) - before == 1


def test_a_gpu_is_reported_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    metrics.watch_device("cpu", registry)
    assert list(registry.collect()) == []

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 25)
    metrics.watch_device("cuda:0", registry)
    assert registry.get_sample_value("loomweight_worker_gpu_memory_bytes", {"state": "used"}) == 50
    assert registry.get_sample_value("loomweight_worker_gpu_memory_bytes", {"state": "total"}) == 80
    assert registry.get_sample_value("loomweight_worker_gpu_utilisation_ratio") == 0.25


def test_a_driver_that_tells_no_utilisation_costs_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: object) -> int:
        raise ModuleNotFoundError("pynvml")

    registry = CollectorRegistry()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(torch.cuda, "utilization", fails)
    metrics.watch_device("cuda:0", registry)
    assert [family.name for family in registry.collect()] == ["loomweight_worker_gpu_memory_bytes"]

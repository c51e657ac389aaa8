"""Workers that go, as the gateway sees it: what is lost (nothing), and when it says that nobody is left."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.conftest import Start
from tests.service.gateway import Gateway, write_bundle
from tests.service.problems import problem
from tests.workers import uploads
from tests.workers.standin import TARGET
from tests.workers.test_worker import until, worker
from workers.worker_settings import WorkerSettings

Ask = Callable[[int], str]


@pytest.fixture
def gateway(start: Start, tmp_path: Path) -> Gateway:
    targets = [{"id": TARGET, "architecture": "a row a class", "parameters": 8, "max_classes": 10}]
    bundle = write_bundle(tmp_path / "served", targets=targets, default_target=TARGET)
    return start(bundle_dir=bundle, lease_s=2, reaper_interval_s=0.2)


@pytest.fixture
def ask(gateway: Gateway) -> Ask:
    data = uploads.zipped(uploads.folder())

    def do(steps: int) -> str:
        answer = gateway.client.post("/generate", files={"dataset": ("d.zip", data)}, data={"steps": str(steps)})
        assert answer.status_code == 202
        return str(answer.json()["id"])

    return do


def worker_settings(gateway: Gateway) -> WorkerSettings:
    given = gateway.services.settings
    return WorkerSettings(redis_url=given.redis_url, store_url=given.store_url, lease_s=given.lease_s)


def is_ready(gateway: Gateway) -> bool:
    return gateway.client.get("/readyz").status_code == 200


def test_a_worker_that_is_told_to_go_loses_no_job(gateway: Gateway, ask: Ask, tmp_path: Path) -> None:
    # Given a worker in the middle of a job that is longer than it has time for, and jobs that wait
    settings, log = worker_settings(gateway), tmp_path / "worker.log"
    with worker(settings, log) as first:
        until(lambda: is_ready(gateway), 60)
        long = ask(100)
        others = [ask(1) for _ in range(5)]
        until(lambda: gateway.jobs.get(long).status == "running")
        # When it is told to go
        first.terminate()
        first.wait(8)  # though it may be at work on several of them
    # Then the next one does them all
    with worker(settings, log):
        until(lambda: all(gateway.jobs.get(job_id).status == "succeeded" for job_id in [long, *others]), 90)
    assert gateway.jobs.get(long).attempt == 2


def test_readiness_ends_soon_after_the_last_worker(gateway: Gateway, tmp_path: Path) -> None:
    with worker(worker_settings(gateway), tmp_path / "worker.log") as process:
        until(lambda: is_ready(gateway), 60)
        os.killpg(process.pid, signal.SIGKILL)
        died = time.monotonic()
        until(lambda: not is_ready(gateway), 15)
        assert time.monotonic() - died < 10
    assert problem(gateway.client.get("/readyz"), 503, "unavailable")["detail"] == "Missing: worker."

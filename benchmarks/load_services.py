"""The services that `benchmarks.load` compares, each with a worker that has nothing to do."""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from celery import Celery
from fastapi import FastAPI, Request

from cli.up import free_port
from tests.service.gateway import samples_form
from workers.client import make_celery
from workers.messages import GENERATE_QUEUE, GENERATE_TASK, GenerateResult, Novelty, WorkerInfo
from workers.settings import Settings

NOTHING = GenerateResult(
    models=(),
    classes=("a", "b"),
    seed=0,
    method="",
    bundle="",
    baselines={},
    novelty=Novelty(score=None, warning=None),
    timings_ms={},
)
PLAIN_TASK = "plain.nothing"


@dataclass(frozen=True)
class Service:
    """How clients speak to a service."""

    post: str
    poll: str
    """Path of a job, its id at the end."""
    id: bytes
    """What stands before the id in the answer to a POST."""
    ended: tuple[bytes, ...]
    """What an answer holds that says that the job has ended well."""
    accepted: int = 202
    held: bool = False
    """Whether `Prefer: wait` is understood."""


OURS = Service("/generate", "/jobs/", b'"id":"', (b'"status":"succeeded"',), held=True)
PLAIN = Service("/generate", "/jobs/", b'"id":"', (b'"status":"SUCCESS"',))
BENTOML = Service(
    "/nothing/submit", "/nothing/status?task_id=", b'"task_id":"', (b'"status":"completed"',), accepted=200
)


def worker() -> None:
    """Ours: claims every job, takes its upload and ends it; what it should file in the store, it says it did."""
    settings = Settings()
    redis = settings.open_redis()
    jobs, registry = settings.open_jobs(redis), settings.open_registry(redis)
    now = time.time()
    registry.announce(
        WorkerInfo(id="noop", host="", pid=0, bundle="", targets=(), device="", started_at=now),  # type: ignore[arg-type]
        3_600,
    )
    app = make_celery(settings.redis_url, settings.visibility_timeout_s)

    @app.task(name=GENERATE_TASK)  # type: ignore[untyped-decorator]
    def generate(job_id: str) -> None:
        if token := jobs.claim(job_id, "noop", 30):
            jobs.upload(job_id)
            jobs.finish(job_id, token, NOTHING)
            jobs.filed(job_id)  # else gateways would, for a worker that died

    _work(app, GENERATE_QUEUE)


def plain_app() -> FastAPI:
    """The plain service: a task a request, its images in the message, its state in Celery's result backend."""
    url = os.environ["LOOMWEIGHT_REDIS_URL"]
    tasks = Celery("plain", broker=url, backend=url)
    app = FastAPI()

    @app.post("/generate", status_code=202)
    async def generate(request: Request) -> dict[str, str]:
        async with request.form() as form:
            files = [base64.b64encode(await file.read()).decode() for file in form.getlist("samples")]  # type: ignore[union-attr]
            labels = [str(label) for label in form.getlist("labels")]
        sent = tasks.send_task(PLAIN_TASK, args=[files, labels], queue="plain")
        return {"id": sent.id, "status": "queued"}

    @app.get("/jobs/{job_id}")
    def job(job_id: str) -> dict[str, Any]:
        return {"id": job_id, "status": tasks.AsyncResult(job_id).state}

    return app


def plain_worker() -> None:
    """The plain service's worker."""
    url = os.environ["LOOMWEIGHT_REDIS_URL"]
    app = Celery("plain", broker=url, backend=url)

    @app.task(name=PLAIN_TASK)  # type: ignore[untyped-decorator]
    def nothing(files: list[str], labels: list[str]) -> int:
        return sum(len(base64.b64decode(file)) for file in files)

    _work(app, "plain")


def _work(app: Celery, queue: str) -> None:
    options = ["--pool=solo", "--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["worker", f"--queues={queue}", f"--hostname={queue}@%h", *options])


BENTOML_SERVICE = """
import bentoml
from pathlib import Path

@bentoml.service(workers=1, traffic={"timeout": 300})
class Nothing:
    @bentoml.task
    def nothing(self, samples: list[Path], labels: str) -> int:  # a form's repeated texts are not understood
        return sum(len(sample.read_bytes()) for sample in samples)
"""


@contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


@contextmanager
def fastapi(factory: str, work: str | None, processes: int) -> Iterator[str]:
    """A service of ours or the plain one, with its worker; its address."""
    port = free_port()
    options = ["--log-level=error", "--no-access-log", f"--workers={processes}", f"--port={port}"]
    code = f"from benchmarks.load_services import {work}; {work}()" if work else "pass"
    with (
        running(sys.executable, "-m", "uvicorn", "--factory", factory, *options),
        running(sys.executable, "-c", code),
    ):
        yield _ready(f"http://127.0.0.1:{port}")


@contextmanager
def bentoml(python: str, folder: Path) -> Iterator[str]:
    """A BentoML task, in one process as it comes: several of them lock its database for each other; its address."""
    port = free_port()
    (folder / "nothing_service.py").write_text(BENTOML_SERVICE)
    command = [python, "-m", "bentoml", "serve", "nothing_service:Nothing", f"--port={port}", f"--working-dir={folder}"]
    own = {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": ""}
    with running(*command, **own):
        url = f"http://127.0.0.1:{port}"
        _ready(url)
        _understands(url)
        yield url


def _ready(url: str) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/livez", timeout=5)
            return url
        time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


def _understands(url: str) -> None:
    """One task, from beginning to end: figures of a service that refuses everything would be good."""
    with httpx.Client(base_url=url, timeout=30) as client:
        task = client.post(BENTOML.post, **samples_form(4)).raise_for_status().json()["task_id"]
        status = "in_progress"
        while status == "in_progress":
            time.sleep(0.05)
            status = client.get(BENTOML.poll + task).raise_for_status().json()["status"]
        assert status == "completed", status

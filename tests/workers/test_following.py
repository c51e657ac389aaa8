"""A worker's lines and spans belong to the request that led to its job."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.workers.test_worker import until, worker
from workers import logs
from workers.runtime import Runtime
from workers.worker_settings import WorkerSettings


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A place that spans are sent to over HTTP, and what arrived."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_workers_lines_and_spans(
    settings: WorkerSettings,
    runtime: Runtime,
    submit: Callable[..., str],
    tmp_path: Path,
    collector: tuple[str, list[bytes]],
) -> None:
    endpoint, received = collector
    given = {"LOOMWEIGHT_LOG_FORMAT": "json", "LOOMWEIGHT_TRACES_ENDPOINT": endpoint}
    with worker(settings, tmp_path / "log", **given) as process:
        with logs.serving(logs.request_id, "asked-3"):
            jobs = [submit(steps=1) for _ in range(2)]  # the second is taken along with the first
        until(lambda: all(runtime.jobs.get(job).status == "succeeded" for job in jobs), 60)
        process.terminate()
        process.wait(60)
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    for job in jobs:
        mine = [line for line in lines if line.get("job_id") == job]
        assert [line["message"] for line in mine if line["logger"] == "workers.attempts"] == [f"job {job}: succeeded"]
        assert {line["request_id"] for line in mine} == {"asked-3"}
        assert all(len(line["trace_id"]) == 32 for line in mine)
        assert any(job.encode() in body for body in received)

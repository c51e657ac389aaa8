"""One JSON object a line, with the ids of request and key; spans that carry on into the job's message."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from service.access.keys import Keys
from tests.service.gateway import Gateway, samples_form, write_bundle
from tests.valkey import free_port
from workers import logs, tracing
from workers.settings import Settings


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure("test", None, exporter)
    yield exporter
    tracing.close()


def test_a_gateways_lines(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "LOOMWEIGHT_REDIS_URL": redis_url,
        "LOOMWEIGHT_STORE_URL": str(tmp_path / "store"),
        "LOOMWEIGHT_BUNDLE_DIR": str(write_bundle(tmp_path / "bundle")),
        "LOOMWEIGHT_LOG_FORMAT": "json",
        "LOOMWEIGHT_REQUIRE_KEYS": "true",
    }
    store = Settings(store_url=str(tmp_path / "store")).open_store()
    key, token = Keys(store).create("k")
    command = [sys.executable, "-m", "cli.main", "serve", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            end = time.monotonic() + 60
            while True:
                try:
                    client.get("/livez")
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < end
                    time.sleep(0.1)
            headers = {"Authorization": f"Bearer {token}", "X-Request-ID": "asked-1"}
            assert client.get("/jobs/none%0Aforged", headers=headers).status_code == 404
            assert client.post("/generate", **samples_form(), headers=headers).status_code == 202
    finally:
        process.terminate()
        process.wait(20)
    text = (tmp_path / "log").read_text()
    assert token not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    asked = [line for line in lines if line.get("request_id") == "asked-1"]
    assert [(line["method"], line["route"], line["status"], line["key_id"]) for line in asked] == [
        ("GET", "/jobs/{job_id}", 404, key.id),
        ("POST", "/generate", 202, key.id),
    ]
    assert asked[0]["path"] == "/jobs/none\nforged"


def test_a_line_for_people_stays_one_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "asked for %s", ("a\nERROR forged",), None)
    with logs.serving(logs.request_id, "r-1"):
        line = logs.TextLines().format(record)
    assert "\n" not in line
    assert line.endswith(" request_id=r-1")


def test_the_jobs_message_carries_request_and_trace(
    gateway: Gateway, redis: Redis, spans: InMemorySpanExporter
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-ID": "asked-2", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert gateway.post(headers=headers).status_code == 202
    [message] = [json.loads(text) for text in redis.lrange("generate", 0, -1)]
    assert message["headers"]["request_id"] == "asked-2"
    assert trace in message["headers"]["traceparent"]
    gateway.client.get("/livez")
    made: dict[str, Any] = {span.name: span for span in spans.get_finished_spans()}
    assert f"{made['POST /generate'].context.trace_id:032x}" == trace
    assert f"{made['GET /livez'].context.trace_id:032x}" != trace


def test_nothing_of_it_is_imported_unless_it_is_configured() -> None:
    # redis-py imports the API and the metrics of its own accord, where they are installed.
    code = "import sys, service.app, workers.client; print([n for n in sys.modules if '.sdk.trace' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The gateway as a process of its own: what it loads, what it weighs, how fast it is."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.gateway import PNG, samples_form, write_bundle
from tests.valkey import free_port

HEAVY = ("torch", "numpy", "PIL", "pyarrow", "sklearn", "scipy", "onnx", "onnxruntime", "safetensors", "loomweight")


@pytest.fixture
def environment(redis_url: str, tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "LOOMWEIGHT_REDIS_URL": redis_url,
        "LOOMWEIGHT_STORE_URL": str(tmp_path / "store"),
        "LOOMWEIGHT_BUNDLE_DIR": str(write_bundle(tmp_path / "bundle")),
        "LOOMWEIGHT_REQUIRE_KEYS": "false",
    }


@pytest.fixture
def server(environment: dict[str, str]) -> Iterator[tuple[httpx.Client, int]]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", f"--port={port}"]
    process = subprocess.Popen([*command, "--log-level=warning"], env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + 30
            while True:
                try:
                    client.get("/livez")
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield client, process.pid
    finally:
        process.terminate()
        assert process.wait(10) in (0, -15)


def test_the_gateway_never_imports_the_science(environment: dict[str, str]) -> None:
    code = f"""
import asyncio, sys
import httpx
from service.app import create_app

async def main():
    app = create_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        files = [("samples", (f"{{n}}.png", {PNG!r})) for n in range(2)]
        assert (await client.post("/generate", files=files, data={{"labels": ["a", "b"]}})).status_code == 202
        assert (await client.get("/models")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200

asyncio.run(main())
print(sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1_000


def test_it_stays_small(server: tuple[httpx.Client, int]) -> None:
    client, pid = server
    for _ in range(20):
        assert client.post("/generate", **samples_form(100)).status_code == 202
    big = b"PK\x03\x04" + bytes(15_000_000)
    for _ in range(3):
        assert client.post("/generate", files={"dataset": ("d.zip", big)}).status_code == 202
    assert client.get("/openapi.json").status_code == 200
    assert resident_mb(pid) < 150


def test_a_far_too_large_upload_still_gets_its_answer(server: tuple[httpx.Client, int]) -> None:
    client, _ = server
    huge = b"PK\x03\x04" + bytes(60_000_000)
    answer = client.post("/generate", files={"dataset": ("d.zip", huge)})
    assert answer.status_code == 413
    pieces = (bytes(1_000_000) for _ in range(60))
    answer = client.post("/generate", content=pieces, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert client.get("/livez").status_code == 200


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_request_is_little_work(server: tuple[httpx.Client, int]) -> None:
    client, pid = server
    form = samples_form(100)
    form["files"] = [(name, (filename, PNG + bytes(2_000), kind)) for name, (filename, _, kind) in form["files"]]
    request = client.build_request("POST", "/generate", **form)
    body, headers = request.read(), {"Content-Type": request.headers["content-type"]}

    def send(count: int) -> float:
        began = cpu_seconds(pid)
        for _ in range(count):
            assert client.post("/generate", content=body, headers=headers).status_code == 202
        return (cpu_seconds(pid) - began) / count

    send(5)
    # Of the process's own time: how busy the machine and how fast its disk is does not count.
    assert send(50) < 0.020

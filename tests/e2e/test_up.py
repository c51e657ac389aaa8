"""The whole service, started as a user starts it, with a bundle that the trainer just made."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load

from cli.client import LoomweightClient
from tests.workers import uploads

COMMAND = [sys.executable, "-m", "cli.main"]


@contextmanager
def running(tmp_path: Path, bundle: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    arguments = ["up", "--port", "0", "--data", str(tmp_path / "data"), "--bundle", str(bundle), *more]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LOOMWEIGHT_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"Loomweight is ready at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + _logs(tmp_path)
        yield process, found[1]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()  # type: ignore[union-attr]


def _logs(tmp_path: Path) -> str:
    return "\n".join(path.read_text() for path in (tmp_path / "data" / "logs").glob("*.log"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in uploads.folder(("bee", "cat", "dog"), each=6).items():
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "pets"


def processes_of(parent: int) -> set[int]:
    """All processes below this one."""
    below: set[int] = set()
    frontier = {parent}
    while frontier:
        parents = {
            int(path.parent.name): int(path.read_text().rsplit(")", 1)[1].split()[1])
            for path in Path("/proc").glob("[0-9]*/stat")
            if path.exists()
        }
        frontier = {pid for pid, above in parents.items() if above in frontier} - below
        below |= frontier
    return below


def gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


def test_generate_through_the_command(tmp_path: Path, tiny_bundle: Path, folder: Path) -> None:
    with running(tmp_path, tiny_bundle) as (process, url):
        weights, onnx = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "model.onnx"
        options = ["--seed", "5", "--holdout", "0.34", "--out", str(weights), "--onnx", str(onnx)]
        command = [*COMMAND, "generate", str(folder), "--server", url, *options]
        first = subprocess.run(command, capture_output=True, text=True, check=False)
        bytes_of_first = weights.read_bytes()
        subprocess.run(command, capture_output=True, check=True)

        # The command tells what it made
        assert first.returncode == 0, first.stderr + _logs(tmp_path)
        assert "bee, cat, dog" in first.stdout
        assert "on held-out samples" in first.stdout
        assert "baseline" in first.stdout

        # The files are what they claim, and the same for the same seed
        header = json.loads(bytes_of_first[8 : 8 + int.from_bytes(bytes_of_first[:8], "little")])
        assert header["__metadata__"]["seed"] == "5"
        assert load(bytes_of_first)["head.weight"].shape[0] == 3
        assert weights.read_bytes() == bytes_of_first
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        logits = session.run(None, {"images": np.stack([uploads.pixels(1), uploads.pixels(2)])})[0]
        assert logits.shape == (2, 3)

        # A refusal has its exit code and its reason
        refused = subprocess.run([*command, "--keep", "9"], capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "keep is 9" in refused.stderr

        # SIGTERM ends everything within seconds and leaves no process
        children = processes_of(process.pid)
        assert len(children) >= 4
        start = time.monotonic()
        process.terminate()
        assert process.wait(20) == 0
        assert time.monotonic() - start < 12
        until(lambda: gone(children), 2)


def test_jobs_and_models_outlive_a_restart_and_lost_workers(tmp_path: Path, tiny_bundle: Path, folder: Path) -> None:
    files = [path.read_bytes() for path in sorted(folder.glob("*/*"))]
    labels = [path.parent.name for path in sorted(folder.glob("*/*"))]
    two = ("--workers", "2")
    with running(tmp_path, tiny_bundle, *two) as (_, url), LoomweightClient(url, patience=60) as client:
        done = client.wait(client.generate_samples(files, labels, {"keep": 2}), timeout=60)
        logs = ("worker", "worker-2")
        until(lambda: all(_workers(tmp_path, log) for log in logs), 60)
        until(lambda: httpx.get(f"{url}/readyz").json()["workers"] == 2)

        # Given workers that are killed, the supervisor starts others
        for log in logs:
            os.killpg(_workers(tmp_path, log)[-1], signal.SIGKILL)
        until(lambda: all(len(_workers(tmp_path, log)) == 2 for log in logs), 60)
        assert client.wait(client.generate_samples(files, labels, {}), timeout=60)["status"] == "succeeded"

    with running(tmp_path, tiny_bundle) as (_, url), LoomweightClient(url) as client:
        assert client.job(done["id"]) == done
        for model in done["result"]["models"]:
            client.download(model["id"], tmp_path / "model.safetensors")


def _workers(tmp_path: Path, name: str) -> list[int]:
    log = (tmp_path / "data" / "logs" / f"{name}.log").read_text()
    return [int(pid) for pid in re.findall(r"loomweight-(\d+)@\S+ ready", log)]


def test_a_private_service_for_one_request(tmp_path: Path, tiny_bundle: Path, folder: Path) -> None:
    weights = tmp_path / "model.safetensors"
    command = [
        *COMMAND,
        "generate",
        str(folder),
        "--bundle",
        str(tiny_bundle),
        "--out",
        str(weights),
        "--target",
        "head",
    ]

    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert result.returncode == 0, result.stderr
    assert "in cross-validation over the samples" in result.stdout
    assert load(weights.read_bytes())["head.weight"].shape[0] == 3

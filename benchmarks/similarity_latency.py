"""How long a comparison takes end to end, and what it takes in memory.

    python -m benchmarks.similarity_latency --out docs/results/similarity_latency.json

One client on the same machine posts two safetensors files to `POST /similarity` of `loomweight up`: first two `cnn-l`
checkpoints, whose answer is held, then two of 45 MB each, which lead to a job. Memory is the worker's peak over the
run. A bundle without a similarity part gets, in a copy of it, one that nobody trained: it takes the same time.

Bars, on two cores: 60 ms (median) for the small pair; 3 s and 1 GB for the large one.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from safetensors.torch import save
from torch import Generator, Tensor

from benchmarks import results
from cli.up import Stack
from loomweight.similarity import Calibration, Familiar, read, scoring
from loomweight.similarity.network import ChainConfig, ChainNetwork
from trainer import nets

BARS = {"two cnn-l": 60.0, "two of 45 MB": 3_000.0}
PEAK_MB = 1_000.0


def small(seed: int) -> bytes:
    """A cnn-l checkpoint for ten classes."""
    return _file(nets.make("cnn-l", 10, Generator().manual_seed(seed)).state_dict())


def large(seed: int, *, layers: int = 20, width: int = 256) -> bytes:
    """A plain convolutional network of 45 MB."""
    made = Generator().manual_seed(seed)
    found = {"conv0.weight": torch.randn(width, 3, 3, 3, generator=made)}
    for i in range(1, layers):
        found[f"conv{i}.weight"] = torch.randn(width, width, 3, 3, generator=made) / 48
    return _file({**found, "head.weight": torch.randn(10, width, generator=made)})


def _file(tensors: dict[str, Tensor]) -> bytes:
    return bytes(save({k: v.contiguous() for k, v in tensors.items()}))


@contextmanager
def with_part(bundle: Path) -> Iterator[tuple[Path, bool]]:
    """The bundle, or a copy of it with an untrained similarity part; and whether the part is a trained one."""
    if (bundle / scoring.FOLDER / "similarity.json").exists():
        yield bundle, True
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / bundle.name
        shutil.copytree(bundle, copy)
        network = ChainNetwork(ChainConfig(), Generator().manual_seed(0))
        known = [read(nets.make("cnn-l", 2, Generator().manual_seed(s)).state_dict()) for s in range(4)]
        network.settle(known)
        anchors = network.eval()(known).models.detach()
        calibration = Calibration(same=(10.0, -5.0), different=(10.0, -5.0))
        scoring.write(copy, network, calibration, Familiar(0.0, 0.0), anchors, {"made": "for timing"})
        yield copy, False


@contextmanager
def service(bundle: Path) -> Iterator[str]:
    """The whole service on a free port with a throw-away data folder; gives its address."""
    with (
        tempfile.TemporaryDirectory() as data,
        Stack(host="127.0.0.1", port=0, data=Path(data), bundle=bundle) as stack,
    ):
        stack.start()
        yield stack.url


def compare(http: httpx.Client, a: bytes, b: bytes) -> tuple[float, dict[str, Any]]:
    """Milliseconds until the answer is there, and the answer."""
    start = time.perf_counter()
    response = http.post("/similarity", files={"a": ("a.safetensors", a), "b": ("b.safetensors", b)})
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    while "status" in found:
        if found["status"] in ("failed", "canceled", "expired"):
            raise RuntimeError(f"the job ended: {found}")
        if found["status"] == "succeeded":
            found = found["result"]
            break
        time.sleep(0.01)
        found = http.get(response.headers["location"]).json()
    return 1e3 * (time.perf_counter() - start), found


def workers_peak_mb() -> float:
    """Largest resident memory so far of a process that loaded the bundle, in MB."""
    sizes = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            command = (status.parent / "cmdline").read_bytes().split(b"\0")
            text = status.read_text()
        except OSError:
            continue
        if b"cli.main" in command and b"worker" in command:
            sizes += [int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")]
    return max(sizes)


def measure(address: str, pairs: int, large_pairs: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    cases = {"two cnn-l": (small, pairs), "two of 45 MB": (large, large_pairs)}
    rows = []
    with httpx.Client(base_url=address, timeout=300) as http:
        for name, (make, count) in cases.items():
            a, b = make(0), make(1)
            compare(http, a, b)  # warm-up
            taken = [compare(http, a, b)[0] for _ in range(count)]
            rows.append(
                {
                    "measure": name,
                    "bytes": len(a) + len(b),
                    "p50": float(np.median(taken)),
                    "p95": float(np.percentile(taken, 95)),
                    "n": count,
                    "bar_ms": BARS[name],
                    "workers_peak_mb": workers_peak_mb(),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--large-pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with with_part(options.bundle) as (bundle, trained), service(bundle) as address:
        rows = measure(address, options.pairs, options.large_pairs)
    for r in rows:
        print(
            f"{r['measure']:15s} p50 {r['p50']:8.1f} ms (bar {r['bar_ms']:,.0f})   p95 {r['p95']:8.1f} ms   "
            f"worker's peak {r['workers_peak_mb']:,.0f} MB (bar {PEAK_MB:,.0f})"
        )
    if options.out:
        results.write(options.out, "similarity_latency", None, rows, trained_part=trained, peak_bar_mb=PEAK_MB)


if __name__ == "__main__":
    main()

"""What running jobs together is worth: the same clients against workers that take one by one and workers that do not.

    python -m benchmarks.batching --out docs/results/batching.json

Whole services (`loomweight up`) on the same cores take turns, so that whatever else the machine does concerns all: one
worker or as many as `up` starts by itself, one on a core, each with one job at a time or with some beside each other.
Cores at work are the machine's, clients included.
So many clients each post a data set (a zip of PNG images), wait for the job (`Prefer: wait`), and post the next. The
models of a few seeds are compared between the first and the last.
"""

import argparse
import io
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import httpx
import numpy as np
from safetensors.numpy import load

from benchmarks import results
from benchmarks.digits import png, service
from cli.up import default_workers

ARMS: dict[str, tuple[int | None, int | None]] = {
    "alone": (1, 1),
    "one worker": (1, None),
    "workers, alone": (None, 1),
    "together": (None, None),
}
"""`--workers` of `up`, and LOOMWEIGHT_BATCH_JOBS; None is the default."""


def dataset(classes: int, shots: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for i in range(classes * shots):
            image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            archive.writestr(f"class-{i % classes}/{i}.png", png(image))
    return buffer.getvalue()


@contextmanager
def started(bundle: Path, workers: int | None, batch_jobs: int | None) -> Iterator[str]:
    os.environ.pop("LOOMWEIGHT_BATCH_JOBS", None)
    if batch_jobs:
        os.environ["LOOMWEIGHT_BATCH_JOBS"] = str(batch_jobs)
    with service(bundle, *(["--workers", str(workers)] if workers else [])) as address:
        end = time.monotonic() + 180
        while httpx.get(f"{address}/readyz", timeout=30).json().get("workers", 0) < (workers or default_workers()):
            if time.monotonic() > end:
                raise TimeoutError("a worker does not start")
            time.sleep(0.5)
        yield address


@dataclass(frozen=True)
class Form:
    """A request's body, built once: clients that do little leave the cores to the service."""

    body: bytes
    content_type: str

    @classmethod
    def of(cls, data: bytes, target: str, seed: int) -> Self:
        files, fields = {"dataset": ("d.zip", data)}, {"target": target, "seed": str(seed)}
        request = httpx.Request("POST", "http://localhost/generate", files=files, data=fields)
        return cls(request.read(), request.headers["content-type"])


def generate(client: httpx.Client, form: Form) -> str:
    """One job from its POST to its end; the id of its best model."""
    headers = {"Prefer": "wait=60", "Content-Type": form.content_type}
    job = client.post("/generate", content=form.body, headers=headers).raise_for_status().json()
    while job["status"] not in ("succeeded", "failed", "expired"):
        time.sleep(0.1)
        job = client.get(f"/jobs/{job['id']}").json()
    assert job["status"] == "succeeded", job
    model: str = job["result"]["models"][0]["id"]
    return model


def busy_s() -> float:
    """Seconds that cores of this machine have worked so far, whoever had them."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def round_of(address: str, clients: int, seconds: float, data: bytes, target: str) -> tuple[float, list[float], float]:
    """Jobs a second, how long each client waited for each, and how many cores worked; after one job each to warm up."""
    waits: list[float] = []
    start = threading.Barrier(clients + 1)
    end = [0.0]

    def work(number: int) -> None:
        form = Form.of(data, target, number)
        with httpx.Client(base_url=address, timeout=120) as client:
            generate(client, form)
            start.wait()
            while (began := time.monotonic()) < end[0]:
                generate(client, form)
                waits.append(time.monotonic() - began)

    with ThreadPoolExecutor(clients) as pool:
        done = [pool.submit(work, number) for number in range(clients)]
        end[0] = time.monotonic() + 600
        while start.n_waiting < clients:
            time.sleep(0.01)
        began, busy = time.monotonic(), busy_s()
        end[0] = began + seconds
        start.wait()
        for each in done:
            each.result()
        took = time.monotonic() - began
    return len(waits) / took, waits, (busy_s() - busy) / took


def difference(addresses: list[str], data: bytes, target: str, count: int) -> float:
    """The largest difference between weights that two services make from the same seeds, posted all at once."""
    weights: list[list[dict[str, np.ndarray]]] = []
    for address in addresses:
        with httpx.Client(base_url=address, timeout=120) as client, ThreadPoolExecutor(count) as pool:
            forms = [Form.of(data, target, seed) for seed in range(count)]
            models = list(pool.map(partial(generate, client), forms))
            weights.append([load(client.get(f"/models/{model}/weights").content) for model in models])
    alone, together = weights
    return max(float(np.abs(a[name] - b[name]).max()) for a, b in zip(alone, together, strict=True) for name in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--target", default="cnn-l")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="of each service, in turns")
    parser.add_argument("--seconds", type=float, default=20, help="a round")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    data = dataset(10, 5)
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    waits: dict[str, list[float]] = {arm: [] for arm in ARMS}
    cores: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with ExitStack() as stack:
        addresses = {arm: stack.enter_context(started(given.bundle, *how)) for arm, how in ARMS.items()}
        for number in range(given.rounds):
            for arm, address in addresses.items():
                rate, waited, worked = round_of(address, given.clients, given.seconds, data, given.target)
                rates[arm].append(rate)
                cores[arm].append(worked)
                waits[arm] += waited
                print(f"round {number + 1} {arm:14s} {rate:6.2f} jobs/s", flush=True)
        apart = difference([addresses["alone"], addresses["together"]], data, given.target, 16)
    ratios = [together / alone for alone, together in zip(rates["alone"], rates["together"], strict=True)]
    rows = {
        "jobs_per_second": {arm: results.interval(values) for arm, values in rates.items()},
        "ratio": results.interval(ratios),
        "cores_at_work": {arm: results.interval(values) for arm, values in cores.items()},
        "client_waits_s": {
            arm: {"p50": float(np.median(w)), "p95": float(np.percentile(w, 95)), "n": len(w)}
            for arm, w in waits.items()
        },
        "largest_difference_of_weights": apart,
    }
    print(f"ratio {rows['ratio']}\nlargest difference {apart:.2e}")
    if given.out:
        arms = {arm: {"workers": workers, "batch_jobs": jobs} for arm, (workers, jobs) in ARMS.items()}
        results.write(given.out, "batching", None, rows, arms=arms, clients=given.clients, images=50)


if __name__ == "__main__":
    main()

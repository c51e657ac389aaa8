"""How long a request takes, end to end, on a warm worker; and what gateway and worker hold in memory.

    python -m benchmarks.latency --out docs/results/latency.json

One client on the same machine: `POST /generate` with PNG images, polling every few milliseconds until the weights
are stored. `gateway's own work` is the time in which the gateway answers the POST.
"""

import argparse
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks import results
from benchmarks.digits import png, service


def resident_mb(pattern: str) -> float:
    """Largest resident memory, in MB, among processes whose command line matches."""
    pids = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()
    sizes = [0.0]
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        if status.exists():
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
            sizes += [int(line.split()[1]) / 1024 for line in lines]
    return max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = [png(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(10 * options.shots)]
    labels = [str(i % 10) for i in range(len(images))]
    measured: dict[str, list[float]] = {}
    with service(options.bundle, "--workers", "1") as address, httpx.Client(base_url=address, timeout=60) as http:
        for target in ("cnn-l", "head"):
            for number in range(options.requests + 3):
                files = [("samples", (f"{i}.png", data, "image/png")) for i, data in enumerate(images)]
                start = time.perf_counter()
                answer = http.post(
                    "/generate", files=files, data={"labels": labels, "target": target, "candidates": "8", "seed": "1"}
                )
                posted = time.perf_counter()
                answer.raise_for_status()
                job = answer.json()
                while job["status"] not in ("succeeded", "failed"):
                    time.sleep(0.005)
                    job = http.get(f"/jobs/{job['id']}").json()
                ended = time.perf_counter()
                assert job["status"] == "succeeded", job
                if number < 3:  # warm-up
                    continue
                measured.setdefault(f"{target}: request to stored weights", []).append((ended - start) * 1e3)
                measured.setdefault(f"{target}: gateway's answer to the POST", []).append((posted - start) * 1e3)
                for stage, value in job["result"]["timings_ms"].items():
                    measured.setdefault(f"{target}: {stage}", []).append(value)
        memory = {"gateway": resident_mb("cli.main serve"), "worker": resident_mb("cli.main worker")}
    rows = [
        {"measure": name, "p50": float(np.median(v)), "p95": float(np.percentile(v, 95)), "n": len(v)}
        for name, v in measured.items()
    ]
    for r in rows:
        print(f"{r['measure']:45s} p50 {r['p50']:8.1f} ms   p95 {r['p95']:8.1f} ms")
    print(memory)
    if options.out:
        results.write(options.out, "latency", None, rows, resident_mb=memory, shots=options.shots, candidates=8)


if __name__ == "__main__":
    main()

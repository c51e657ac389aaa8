"""How one worker process best does many requests on a CPU: one after the other, meeting, or beside each other.

    python -m benchmarks.lanes --out docs/results/lanes.json

Requests of 50 images from their bytes to ranked networks, without the service around them. Each way in turns, so that
whatever else the machine does concerns all. `meeting`: 16 at once, one pass of encoder and denoiser for all of them
(what a GPU gets); `beside`: so many at once as there are cores, one core each (what a CPU gets).
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.batching import dataset
from loomweight.generator import GenerateOptions, Generator
from loomweight.together import Seat, Together
from workers.inputs import read_dataset
from workers.worker_settings import WorkerSettings

MEETING_WAIT_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--target", default="cnn-l")
    parser.add_argument("--requests", type=int, default=48, help="of each way in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    torch.set_num_threads(given.cores)
    data, limits = dataset(10, 5), WorkerSettings().limits()
    wide, narrow = (Generator.load(given.bundle, threads=threads) for threads in (given.cores, 1))
    torch.set_num_threads(given.cores)

    def request(generator: Generator | Seat, seed: int) -> None:
        samples = read_dataset(data, limits)
        generator.generate(samples.images, samples.labels, GenerateOptions(given.target, seed=seed))

    def alone(count: int) -> None:
        for seed in range(count):
            request(wide, seed)

    def at_once(generator: Generator, most: int, wait_s: float) -> Callable[[int], None]:
        def run(count: int) -> None:
            for first in range(0, count, most):
                together = Together(generator, wait_s=wait_s)
                seats = [together.seat() for _ in range(min(most, count - first))]
                with ThreadPoolExecutor(len(seats), initializer=lambda: torch.set_num_threads(1)) as pool:
                    list(pool.map(request, seats, range(first, count)))

        return run

    def beside(count: int) -> None:
        together = Together(narrow, wait_s=0)
        with ThreadPoolExecutor(given.cores, initializer=lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(lambda seed: request(together.seat(), seed), range(count)))

    ways = {
        "one after the other": alone,
        "16 that meet": at_once(wide, 16, MEETING_WAIT_S),
        "beside each other": beside,
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.rounds + 1):  # the first one warms up
        for name, run in ways.items():
            count = given.requests if number else 8
            began, used = time.perf_counter(), time.process_time()
            run(count)
            if number:
                wall[name].append(1e3 * (time.perf_counter() - began) / count)
                cpu[name].append(1e3 * (time.process_time() - used) / count)
                print(f"{name:20s} {wall[name][-1]:6.1f} ms a request, {cpu[name][-1]:6.1f} ms of a core", flush=True)
    rows = [
        {"way": name, "ms_a_request": results.interval(wall[name]), "core_ms_a_request": results.interval(cpu[name])}
        for name in ways
    ]
    if given.out:
        results.write(given.out, "lanes", None, rows, requests=given.requests, images=50, cores=given.cores)


if __name__ == "__main__":
    main()

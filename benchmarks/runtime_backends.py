"""Torch against ONNX Runtime for the two frozen networks of a request, in one process, taking turns.

    python -m benchmarks.runtime_backends --out docs/results/runtime_backends.json

The bundle is random and of the shipped one's size: time does not depend on the values of weights.
`loomweight.runtime.AUTO` is set by what this finds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks import results
from loomweight import architectures, bundle
from loomweight.bundle import Bundle, TargetInfo
from loomweight.denoiser import DenoiserConfig
from loomweight.features import ImageEncoder, ImageEncoderConfig
from loomweight.loom import Loom, LoomConfig, denoiser_inputs
from loomweight.runtime import OnnxRuntime, Runtime, TorchRuntime
from loomweight.set_encoder import SetEncoderConfig
from loomweight.weight_vae import WeightVaeConfig

TARGET, CLASSES, BATCH, STEPS = "cnn-l", 10, 8, 8
LATENTS, DIM = 8, 32
IMAGES = (20, 100, 400)
THREADS = (1, 2)


def random_bundle(folder: Path) -> Bundle:
    """A bundle of the shipped one's shape, random throughout."""
    torch.manual_seed(0)
    spec, encoder = architectures.CNN_L, ImageEncoder(ImageEncoderConfig(width=32)).eval()
    dim = encoder.config.dim
    classwise, overall = denoiser_inputs(spec, dim, 128)
    config = LoomConfig(
        TARGET,
        WeightVaeConfig(spec.parameters(1) - spec.width - 1, spec.width + 1, LATENTS, DIM),
        SetEncoderConfig(dim, 128, 2, 16),
        DenoiserConfig(LATENTS, DIM, classwise, overall, width=192, layers=3, heads=4),
    )
    info = TargetInfo(TARGET, "random", spec.parameters(10), (3, 32, 32), ("samples",), 2, 20, {}, "")
    bundle.write(
        folder,
        name="random",
        encoder=encoder,
        looms={TARGET: Loom(spec, config)},
        zoos={TARGET: {"set_codes": torch.zeros(1, 128)}},
        targets=[info],
        defaults={},
        card={"version": "0"},
    )
    return Bundle.open(folder)


def works(opened: Bundle) -> dict[str, Callable[[Runtime], object]]:
    """What is timed, by name."""
    config = opened.loom(TARGET).config.denoiser
    condition = torch.randn(1, CLASSES, config.classwise), torch.randn(1, config.overall)
    z = torch.randn(BATCH, LATENTS + CLASSES, DIM)

    def denoise(runtime: Runtime) -> None:
        for t in np.linspace(1, 0, STEPS, endpoint=False):
            runtime.denoise(
                TARGET,
                z,
                torch.full((BATCH,), float(t)),
                condition[0].expand(BATCH, -1, -1),
                condition[1].expand(BATCH, -1),
                torch.ones(BATCH),
            )

    def encode(count: int) -> Callable[[Runtime], object]:
        images = torch.rand(count, 3, 32, 32)
        return lambda runtime: runtime.encode(images)

    found: dict[str, Callable[[Runtime], object]] = {f"encode {count} images": encode(count) for count in IMAGES}
    return {**found, f"denoise: {STEPS} calls at batch {BATCH}, {CLASSES} classes": denoise}


def milliseconds(work: Callable[[Runtime], object], runtime: Runtime) -> float:
    start = time.perf_counter()
    work(runtime)
    return (time.perf_counter() - start) * 1e3


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = (float(v) for v in np.percentile(values, [25, 50, 75]))
    return {"q1": low, "median": median, "q3": high}


def compare(name: str, work: Callable[[Runtime], object], runtimes: dict[str, Runtime], repeats: int) -> dict[str, Any]:
    """Times in milliseconds; the ratio is of neighbours in time, above 1 where ONNX Runtime is faster."""
    times: dict[str, list[float]] = {backend: [] for backend in runtimes}
    for runtime in runtimes.values():  # warm-up
        work(runtime)
        work(runtime)
    for i in range(repeats):
        for backend in sorted(runtimes, reverse=bool(i % 2)):  # neither always goes first
            times[backend].append(milliseconds(work, runtimes[backend]))
    ratios = [a / b for a, b in zip(times["torch"], times["onnxruntime"], strict=True)]
    return {"work": name, **{k: quartiles(v) for k, v in times.items()}, "torch/onnxruntime": quartiles(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        opened = random_bundle(Path(folder))
        timed = works(opened)
        for threads in THREADS:
            torch.set_num_threads(threads)
            runtimes: dict[str, Runtime] = {
                "torch": TorchRuntime(opened),
                "onnxruntime": OnnxRuntime(opened, threads=threads),
            }
            for name, work in timed.items():
                row = {"threads": threads, **compare(name, work, runtimes, options.repeats)}
                rows.append(row)
                ours, theirs = row["torch"]["median"], row["onnxruntime"]["median"]
                ratio = row["torch/onnxruntime"]
                print(
                    f"{threads} threads, {name:40s} torch {ours:8.1f} ms   onnxruntime {theirs:8.1f} ms   "
                    f"ratio {ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
                )
    if options.out:
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        results.write(options.out, "runtime backends", None, rows, repeats=options.repeats, versions=versions)


if __name__ == "__main__":
    main()

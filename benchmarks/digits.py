"""The demo, and its measured form: a few of scikit-learn's digits over HTTP, beside what a user would do instead.

    python -m benchmarks.digits                                   one draw, a table
    python -m benchmarks.digits --draws 10 --out docs/results/digits.json

Starts `loomweight up`, sends 1, 3 and 10 images a class as PNG files, downloads safetensors and ONNX, checks that
both give the same logits, and asks all digits that were not sent. Rivals get the same images, in this process.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from benchmarks import results
from cli.client import LoomweightClient
from loomweight.bundle import Bundle
from loomweight.features import preprocess
from loomweight.runtime import Runtime, open_runtime
from loomweight.weight_vae import join
from trainer import arms

SHOTS = (1, 3, 10)
NAMES = {
    "generated head": "generated head (over the encoder)",
    "generated cnn-l": "generated cnn-l (10,853 weights)",
    "pixels": "logistic regression on the 8x8 pixels",
    "nearest class mean": "nearest class mean on the encoder",
    "logistic probe": "logistic probe on the encoder",
    "trunk probe": "trunk probe (a cnn-l)",
    "fine-tune 100": "fine-tuning cnn-l, 100 steps",
    "scratch 100": "cnn-l from scratch, 100 steps",
}


@contextmanager
def service(bundle: Path, *more: str) -> Iterator[str]:
    """`loomweight up` on a free port with a throw-away data folder, and more options; gives its address."""
    with tempfile.TemporaryDirectory() as data:
        command = [
            str(Path(sys.executable).with_name("loomweight")),
            "up",
            "--port",
            "0",
            "--data",
            data,
            "--bundle",
            str(bundle),
            *more,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http" not in line:
                raise RuntimeError(f"loomweight up did not start: {line!r}")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait(30)


def png(image: np.ndarray) -> bytes:
    """A grey image as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Digits:
    """The images as bytes, as canonical tensors, and as the encoder sees them."""

    def __init__(self, runtime: Runtime) -> None:
        source = load_digits()
        self.bytes = np.uint8(np.round(source.images * 255 / 16))  # (n, 8, 8)
        self.labels = source.target
        grey = torch.from_numpy(self.bytes.astype(np.float32) / 255)[:, None].expand(-1, 3, -1, -1)
        self.x = preprocess(grey)
        self.features = runtime.encode(self.x)

    def draw(self, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices to send, by class, and all others."""
        rng = np.random.default_rng([seed, shots])
        sent = np.concatenate([rng.permutation(np.flatnonzero(self.labels == c))[:shots] for c in range(10)])
        return sent, np.setdiff1d(np.arange(len(self.labels)), sent)


def generated(
    client: LoomweightClient, bundle: Bundle, digits: Digits, target: str, sent, rest, seed: int, folder: Path
):
    """Accuracy and seconds of one request, end to end; checks that safetensors and ONNX agree."""
    start = time.perf_counter()
    images = [png(digits.bytes[i]) for i in sent]
    job = client.generate_samples(images, [str(digits.labels[i]) for i in sent], {"target": target, "seed": seed})
    job = client.wait(job, timeout=120)
    weights, onnx = folder / "model.safetensors", folder / "model.onnx"
    client.download(job["result"]["models"][0]["id"], weights)
    seconds = time.perf_counter() - start
    client.download(job["result"]["models"][0]["id"], onnx, part="onnx")
    session = onnxruntime.InferenceSession(onnx)
    grey = np.repeat(digits.bytes[rest][..., None], 3, -1)
    logits = session.run(None, {"images": grey})[0]
    spec = bundle.loom(target).spec
    with torch.inference_mode():
        x = spec.adapt(digits.x[rest]) if spec.trunk else digits.features[rest]
        ours = spec.forward(load_file(weights), x).numpy()
    if np.abs(logits - ours).max() > 1e-3 * max(1.0, np.abs(ours).max()):
        raise AssertionError(f"{target}: ONNX and safetensors disagree by {np.abs(logits - ours).max():.2g}")
    classes = np.array([int(c) for c in job["result"]["classes"]])
    return float((classes[logits.argmax(1)] == digits.labels[rest]).mean()), seconds


def rivals(bundle: Bundle, runtime: Runtime) -> dict[str, Callable[[arms.Setting], arms.Predict]]:
    """What a user would do instead, by name."""
    loom = bundle.loom("cnn-l")
    spec = loom.spec
    whole = join(spec, loom.vae.shared, torch.zeros(1, spec.width + 1))
    trunk = {k: whole[k] for k in spec.trunk_shapes()}

    def tuned(name: str) -> Callable[[arms.Setting], arms.Predict]:
        return lambda s: arms.network(spec, arms.tuned(name, s, spec, trunk))

    return {
        "pixels": lambda s: arms.pixels(s, 8),
        "nearest class mean": arms.nearest_class_mean,
        "logistic probe": arms.logistic_probe,
        "trunk probe": lambda s: arms.network(spec, arms.trunk_probe_weights(s, spec, trunk)),
        **{name: tuned(name) for name in ("fine-tune 100", "scratch 100")},
    }


def measure(bundle_dir: Path, draws: int, console: Console):
    """Accuracy and seconds of every arm: {shots: {arm: [(accuracy, seconds), ...]}}."""
    bundle = Bundle.open(bundle_dir)
    runtime = open_runtime(bundle)
    digits = Digits(runtime)
    instead = rivals(bundle, runtime)
    table: dict[int, dict[str, list[tuple[float, float]]]] = {n: defaultdict(list) for n in SHOTS}
    with (
        service(bundle_dir, "--workers", "1") as address,
        LoomweightClient(address) as client,
        tempfile.TemporaryDirectory() as scratch,
    ):
        console.print(f"The service answers at {address}; sending digits …")
        for shots in SHOTS:
            for seed in range(draws):
                sent, rest = digits.draw(shots, seed)
                for target in ("head", "cnn-l"):
                    one = generated(client, bundle, digits, target, sent, rest, seed, Path(scratch))
                    table[shots][f"generated {target}"].append(one)
                truth = torch.from_numpy(digits.labels[rest])
                for name, arm in instead.items():
                    start = time.perf_counter()
                    features = (
                        runtime.encode(digits.x[sent])
                        if name in ("nearest class mean", "logistic probe")
                        else digits.features[sent]
                    )
                    y = torch.from_numpy(digits.labels[sent])
                    predict = arm(arms.Setting(digits.x[sent], y, features, 10, seed))
                    seconds = time.perf_counter() - start
                    hits = predict(digits.x[rest], digits.features[rest]).argmax(1) == truth
                    table[shots][name].append((float(hits.float().mean()), seconds))
    return table, bundle.id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    console = Console()
    measured, bundle = measure(options.bundle, options.draws, console)
    table = Table(
        "accuracy on all other digits",
        *(f"{n} a class" for n in SHOTS),
        title="scikit-learn's digits, a data set the bundle never saw",
    )
    for arm, name in NAMES.items():
        cells = []
        for n in SHOTS:
            accuracy, seconds = np.mean(measured[n][arm], axis=0)
            cells.append(f"{accuracy:6.1%}  {seconds:6.2f} s")
        table.add_row(name, *cells, style="bold" if arm.startswith("generated") else None)
    console.print(table)
    console.print(
        "You now have, for each request, a network in one safetensors file and one ONNX file that takes raw images: "
        "run it anywhere with onnxruntime, or make your own with `.venv/bin/loomweight generate DIR --target cnn-l "
        "--out model.safetensors`, DIR holding one folder of images a class."
    )
    if options.out:
        rows = [
            {
                "shots": n,
                "arm": arm,
                **results.interval([a for a, _ in runs]),
                "seconds": results.interval([s for _, s in runs]),
            }
            for n, by_arm in measured.items()
            for arm, runs in by_arm.items()
        ]
        results.write(options.out, "digits", bundle, rows, draws=options.draws)


if __name__ == "__main__":
    main()

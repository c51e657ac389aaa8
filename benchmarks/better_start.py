"""Table 4: a better start. A whole network trained on all images of a data set that the bundle never saw, from several
starting points.

    python -m benchmarks.better_start --run runs/starter --data DIR --out docs/results/better_start.json

Every start gets the same AdamW, constant learning rate, batches and seeds; nothing depends on which epoch is read. The
learning rate is one for all, chosen on validation classes of a training domain; the whole sweep is in the result file.
Trainings run side by side in processes of one thread each, which for a network of this size is the faster way.
`generated` is conditioned on 20 training images a class (the best ranked network that is not the closed form); so is
`trunk probe`. Accuracy is on the test split, which nothing else reads.
"""

import argparse
import multiprocessing as mp
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator as Random
from torch import Tensor

from benchmarks import results
from loomweight.architectures import ArchitectureSpec, Weights
from loomweight.candidates import MEAN
from loomweight.errors import InvalidRequest
from loomweight.features import preprocess
from loomweight.generator import GenerateOptions, Generator
from loomweight.weight_vae import join
from trainer import arms, data
from trainer import recipe as recipes
from trainer.recipe import Recipe

EPOCHS = (0, 1, 5, 25)
STEPS = (10, 100, 1000)
SHOTS = 20
PROBE_SHOTS = 100
"""Images a class for the stronger probe, which a user with all images can afford."""
STRONG_PROBE = f"trunk probe, {PROBE_SHOTS} a class"
STARTS = ("generated", "shared initialisation", "trunk probe", STRONG_PROBE, "retrieved", "random")
TUNING_SEED = 100
"""Not among those reported."""


@dataclass(frozen=True)
class Whole:
    """A data set with all its images: uint8 (n, 3, 32, 32) and labels (n,)."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1

    def few(self, shots: int, seed: int) -> tuple[Tensor, Tensor]:
        """At most `shots` training images a class as floats in [0, 1], by class, and their labels."""
        generator = Random().manual_seed(seed)
        own = [(self.y == c).nonzero().squeeze(1) for c in range(self.classes)]
        index = torch.cat([i[torch.randperm(len(i), generator=generator)[:shots]] for i in own])
        return self.x[index].float() / 255, self.y[index]


def _channels_first(images: data.Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def stored(folder: Path, most_images: int | None, most_classes: int) -> Whole:
    """A set in the Hugging Face layout; of its training images at most so many, the same number of every class."""
    halves = []
    for split in ("train", "test"):
        images, labels, names = data.load_images(folder, split)
        count = min(len(names), most_classes)
        share = most_images // count if most_images and split == "train" else None
        index = np.concatenate([np.flatnonzero(labels == c)[:share] for c in range(count)])
        halves.append((_channels_first(images[index]), torch.from_numpy(labels[index])))
    return Whole(folder.name, *halves[0], *halves[1])


def digits(most_classes: int, *, train_per_class: int = 120) -> Whole:
    """scikit-learn's digits: the first 120 of each class train, the others (by later writers) test."""
    source = load_digits()
    x = preprocess(torch.from_numpy(source.images / 16).float()[:, None].expand(-1, 3, -1, -1))
    x = (255 * x).round().to(torch.uint8)
    own = [np.flatnonzero(source.target == c) for c in range(min(10, most_classes))]
    y = torch.from_numpy(source.target)
    train, test = (
        np.concatenate([i[part] for i in own]) for part in (np.s_[:train_per_class], np.s_[train_per_class:])
    )
    return Whole("digits", x[train], y[train], x[test], y[test])


def validation(recipe: Recipe, run: Path, name: str, most_classes: int) -> Whole:
    """Validation classes of a training domain (all of its classes where it has none), a fifth of the images to test."""
    domain = data.load(recipe, run, "train", name)
    classes = (domain.classes_of("validation") or domain.classes_of("encoder"))[:most_classes]
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for c in classes:
        own = domain.members[c]
        parts[0].append(own[: len(own) * 4 // 5])
        parts[1].append(own[len(own) * 4 // 5 :])
    halves: list[Tensor] = []
    for part in parts:
        halves.append(_channels_first(domain.images[np.concatenate(part)]))
        halves.append(torch.from_numpy(np.repeat(np.arange(len(part)), [len(i) for i in part])))
    return Whole(f"{name}, validation classes", *halves)


def marks(per_epoch: int, epochs: int) -> dict[str, int]:
    """What is read, as steps: after some epochs, and after some steps where there are that many."""
    read = {f"{e} epoch{'s' * (e != 1)}": e * per_epoch for e in EPOCHS if e <= epochs}
    return read | {f"{s} steps": s for s in STEPS if s <= epochs * per_epoch}


def steps_per_epoch(images: int, batch: int) -> int:
    """Optimiser steps of one pass; the last, smaller batch included."""
    return -(-images // batch)


@torch.no_grad()
def accuracy(spec: ArchitectureSpec, weights: Weights, s: Whole) -> float:
    """Share of test images that a network gets right."""
    hits = 0
    for x, y in zip(torch.split(s.test_x, 1000), torch.split(s.test_y, 1000), strict=True):
        logits = spec.forward(weights, spec.adapt(x.float() / 255).contiguous(memory_format=torch.channels_last))
        hits += int((logits.argmax(1) == y).sum())
    return hits / len(s.test_y)


def curve(
    spec: ArchitectureSpec, initial: Weights, s: Whole, *, lr: float, batch: int, epochs: int, seed: int
) -> dict[str, float]:
    """Test accuracy at every mark of one training; batches depend on the seed and the set alone."""
    generator = Random().manual_seed(seed)
    weights = {k: v.clone().requires_grad_() for k, v in initial.items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=lr, weight_decay=1e-2)
    wanted = marks(steps_per_epoch(len(s.y), batch), epochs)
    found = {0: accuracy(spec, weights, s)}
    step = 0
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(s.y), generator=generator), batch):
            x = spec.adapt(s.x[chosen].float() / 255).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(spec.forward(weights, x), s.y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if step in wanted.values():
                found[step] = accuracy(spec, weights, s)
    return {name: found[at] for name, at in wanted.items()}


def starts(generator: Generator, target: str, s: Whole, seed: int) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """How each starting point is made from the training images."""
    loom = generator.looms[target]
    spec = loom.spec
    whole = join(spec, loom.vae.shared, torch.zeros(1, spec.width + 1))
    trunk = {k: whole[k] for k in spec.trunk_shapes()}

    def setting(shots: int) -> arms.Setting:
        x, y = s.few(shots, seed)
        return arms.Setting(x, y, torch.zeros(len(y), 0), s.classes, seed)

    def woven(method: str, shots: int = SHOTS) -> dict[str, Tensor]:
        x, y = s.few(shots, seed)
        options = GenerateOptions(target=target, seed=seed, method=method, holdout=0.0)
        w = generator.weave(x.numpy(), [f"{c:03d}" for c in y.tolist()], options)
        order = generator.rank(w).order if method == MEAN else [0]  # the nearest zoo model as it is
        best = w.network(next(i for i in order if w.candidates[i].origin != "closed-form"))
        return {k: v.clone() for k, v in join(spec, best.trunk, best.rows).items()}  # out of inference mode

    return {
        "generated": lambda: woven(MEAN),
        "shared initialisation": lambda: arms.from_shared(setting(1), spec, trunk),
        "trunk probe": lambda: arms.trunk_probe_weights(setting(SHOTS), spec, trunk),
        STRONG_PROBE: lambda: arms.trunk_probe_weights(setting(PROBE_SHOTS), spec, trunk),
        "retrieved": lambda: woven("retrieve"),
        "random": lambda: spec.initial(s.classes, Random().manual_seed(seed)),
    }


@dataclass(frozen=True)
class Job:
    """One training: of which set, from which start, with which seed and learning rate."""

    number: int
    start: str
    seed: int
    lr: float


@dataclass(frozen=True)
class Trained:
    """Its accuracy at every mark, and the seconds that making the start took."""

    job: Job
    points: dict[str, float]
    seconds: float


_options: argparse.Namespace
_generator: Generator
_sets: list[Whole]


def _open(options: argparse.Namespace) -> None:
    """Everything that a process needs; set 0 is the one that the learning rate is chosen on."""
    global _options, _generator, _sets
    _options, _generator = options, Generator.load(options.bundle, threads=1)
    most = next(t for t in _generator.targets() if t.id == options.target).max_classes
    _sets = [validation(recipes.load(options.recipe), options.run, options.validation, most), digits(most)]
    if options.data:
        _sets.insert(1, stored(options.data / "cifar10", options.most_images, most))


def _train(job: Job) -> Trained | None:
    """Run a job; None where the bundle has no such start for the set."""
    s, spec = _sets[job.number], _generator.looms[_options.target].spec
    begun = time.perf_counter()
    try:
        initial = starts(_generator, _options.target, s, job.seed)[job.start]()
    except InvalidRequest as error:
        print(f"{s.name}: no start '{job.start}': {error}", flush=True)
        return None
    seconds = time.perf_counter() - begun
    points = curve(spec, initial, s, lr=job.lr, batch=_options.batch, epochs=_options.epochs, seed=job.seed)
    shown = {k: round(100 * v, 1) for k, v in points.items()}
    print(f"{s.name}, lr {job.lr:g}, seed {job.seed}, {job.start}: {shown}", flush=True)
    return Trained(job, points, seconds)


def choose(sweep: dict[str, dict[str, dict[str, float]]]) -> float:
    """The learning rate with the best mean accuracy over all starts and all epochs read but the zeroth.

    `sweep`: learning rate as text -> start -> mark -> accuracy. One rate for all, so no start is favoured by name.
    """

    def mean(by_start: dict[str, dict[str, float]]) -> float:
        read = [a for points in by_start.values() for m, a in points.items() if "epoch" in m and m != "0 epochs"]
        return float(np.mean(read))

    return float(max(sweep, key=lambda lr: mean(sweep[lr])))


def rows_of(name: str, images: int, done: Sequence[Trained]) -> list[dict[str, object]]:
    """A row a start: at every mark the accuracy, and by how much the generated start is ahead, paired by seed."""
    by_start: dict[str, list[Trained]] = defaultdict(list)
    for one in sorted(done, key=lambda one: one.job.seed):
        by_start[one.job.start].append(one)
    ours = by_start["generated"]
    rows: list[dict[str, object]] = []
    for start, theirs in by_start.items():
        points = {}
        for mark in theirs[0].points:
            ahead = [a.points[mark] - b.points[mark] for a, b in zip(ours, theirs, strict=True)]
            interval = results.interval([one.points[mark] for one in theirs])
            points[mark] = {**interval, "generated_ahead_by": results.interval(ahead)}
        seconds = float(np.median([one.seconds for one in theirs]))
        rows.append({"set": name, "images": images, "start": start, "seconds_to_make": seconds, "points": points})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--run", type=Path, default=Path("runs/starter"), help="where the learning rate is chosen")
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--data", type=Path, default=None, help="without it: scikit-learn's digits alone")
    parser.add_argument("--target", default="cnn-l")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--most-images", type=int, default=None, help="training images of a stored set; default: all")
    parser.add_argument("--validation", default="tiny-imagenet-32", help="the domain to choose the learning rate on")
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="one: no choice to make")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    _open(options)
    with mp.get_context("spawn").Pool(options.processes, initializer=_open, initargs=(options,)) as pool:
        sweep: dict[str, dict[str, dict[str, float]]] = {}
        if len(options.lrs) > 1:
            jobs = [Job(0, start, TUNING_SEED, lr) for lr in options.lrs for start in STARTS]
            for one in filter(None, pool.imap(_train, jobs)):
                sweep.setdefault(f"{one.job.lr:g}", {})[one.job.start] = one.points
        lr = choose(sweep) if sweep else options.lrs[0]
        rows: list[dict[str, object]] = []
        for number, s in list(enumerate(_sets))[1:]:
            jobs = [Job(number, start, seed, lr) for seed in range(options.seeds) for start in STARTS]
            rows += rows_of(s.name, len(s.y), list(filter(None, pool.imap(_train, jobs))))
            if options.out:
                results.write(
                    options.out,
                    "better_start",
                    _generator.bundle.id,
                    rows,
                    target=options.target,
                    optimizer="AdamW, weight decay 0.01, constant learning rate, no augmentation",
                    lr=lr,
                    lr_chosen_on=_sets[0].name if sweep else None,
                    lr_sweep=sweep,
                    seeds=options.seeds,
                    shots=SHOTS,
                    batch=options.batch,
                    epochs=options.epochs,
                )


if __name__ == "__main__":
    main()

"""Few-shot tasks for the ablations: a loom's networks on classes that choose settings and on sets that only report.

Settings may be chosen on the validation classes of the photographs, as they are and through views; never on the whole
data sets, which stand in the tables for what users bring.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from loomweight.features import ImageEncoder
from loomweight.loom import Loom, Support
from loomweight.runtime import TorchRuntime
from trainer import data, evalsets, views
from trainer.evalsets import EvalSet
from trainer.recipe import Recipe

SHOTS = (1, 5, 20)
VIEWS = ("invert", "smaller")
"""Photographs are trained on inverted, not smaller."""


class Eyes(TorchRuntime):
    """A runtime that encodes: all that making a set needs."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.device, self.encoder, self.denoisers = torch.device("cpu"), encoder, {}


@dataclass(frozen=True)
class Judging:
    """A set, and whether settings may be chosen on it."""

    images: EvalSet
    chooses: bool


def through(view: str, s: EvalSet, eyes: TorchRuntime) -> EvalSet:
    """The same set seen through a view; of one task all images, those that condition and those that judge."""

    def seen(x: Tensor) -> tuple[Tensor, Tensor]:
        flat = views.view(view, x.flatten(0, 1), Generator().manual_seed(0)).contiguous()
        return torch.unflatten(flat, 0, x.shape[:2]), torch.unflatten(eyes.encode(flat), 0, x.shape[:2])

    return EvalSet(f"{s.name}, {view}", *seen(s.train), *seen(s.test))


def sets(
    recipe: Recipe, run: Path, source: Path | None, eyes: TorchRuntime, view_names: tuple[str, ...] = VIEWS
) -> list[Judging]:
    """Validation classes, their views, digits, and, with a folder of image sets, cifar10."""
    plain = [evalsets.validation(recipe, run, n, eyes) for n in data.PHOTOGRAPHS if n in recipe.data.domains]
    found = [Judging(s, True) for s in plain]
    found += [Judging(through(v, s, eyes), True) for v in view_names for s in plain]
    if source:
        found.append(Judging(evalsets.stored(source / "cifar10", eyes), False))
    return [*found, Judging(evalsets.digits(eyes), False)]


@dataclass(frozen=True)
class Task:
    """One few-shot task as a loom takes it, and the images that judge."""

    support: Support
    query: Tensor  # (n, c, h, w) adapted; features for a target without a trunk
    truth: Tensor  # (n,)
    seed: int


def draw(loom: Loom, s: EvalSet, shots: int, index: int, *, ways: int = 10, queries: int = 10) -> Task:
    """Task number `index` of a set: the same images for every loom."""
    p = evalsets.draw(s, ways, shots, index, queries=queries)
    shape = 1, p.classes, len(p.y) // p.classes

    def placed(x: Tensor) -> Tensor:
        return x.view(*shape, *x.shape[1:])

    images, query = (
        (loom.spec.adapt(p.x), loom.spec.adapt(p.query)) if loom.spec.trunk else (p.features, p.query_features)
    )
    own = loom.features(loom.vae.shared, images)
    support = Support(placed(images), placed(p.features), placed(own), torch.ones(shape, dtype=torch.bool))
    return Task(support, query, p.query_labels, index)


def accuracy(loom: Loom, latents: Tensor, task: Task, support: Support | None = None) -> float:
    """Of the network that latents (latents + classes, dim) decode to, on the images that judge."""
    trunks = loom.trunks(latents[None])
    rows, _ = loom.rows(latents[None], trunks, support or task.support)
    return share_right(loom.logits(trunks[0], rows[0], task.query), task.truth)


def share_right(logits: Tensor, truth: Tensor) -> float:
    """Accuracy of logits (n, k)."""
    return float((logits.argmax(-1) == truth).float().mean())


Try = Callable[[Task], dict[str, float]]
"""One task to the accuracy of every way to answer it, by name."""

Scores = dict[str, dict[str, dict[str, list[float]]]]
"""Accuracies by way to answer, set and images a class (as text: JSON's keys), one a task."""


@torch.inference_mode()
def measure(loom: Loom, attempt: Try, judging: list[Judging], tasks: int, shots: tuple[int, ...] = SHOTS) -> Scores:
    """Try the same tasks of every set."""
    scores: Scores = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for j in judging:
        for n in shots:
            for index in range(tasks):
                for name, value in attempt(draw(loom, j.images, n, index)).items():
                    scores[name][j.images.name][str(n)].append(round(value, 6))
    return scores

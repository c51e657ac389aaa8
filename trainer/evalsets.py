"""Image sets for the tables: classes and data sets that no training has seen, and validation classes for choosing
settings.

Conditioning images come from training splits, query images from test splits; a validation set has held-out images of
both kinds from its training split.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor

from loomweight.features import preprocess
from loomweight.runtime import Runtime
from trainer import data
from trainer.recipe import Recipe


@dataclass(frozen=True)
class EvalSet:
    """One set: for each class so many images to condition on and so many to ask about, with the encoder's features."""

    name: str
    train: Tensor  # (c, m, 3, 32, 32) in [0, 1]
    train_features: Tensor  # (c, m, dim)
    test: Tensor  # (c, q, 3, 32, 32)
    test_features: Tensor  # (c, q, dim)


@dataclass(frozen=True)
class Problem:
    """One few-shot problem drawn from a set."""

    x: Tensor  # (k n, 3, 32, 32)
    y: Tensor  # (k n,)
    features: Tensor
    query: Tensor  # (k q, 3, 32, 32)
    query_features: Tensor
    query_labels: Tensor
    classes: int
    seed: int


def draw(s: EvalSet, ways: int, shots: int, index: int, *, queries: int = 20) -> Problem:
    """Problem number `index` of a set: the same one for every arm and every bundle."""
    generator = Generator().manual_seed(1_000_003 * shots + 7919 * ways + index)
    chosen = torch.randperm(len(s.train), generator=generator)[: min(ways, len(s.train))]
    few = torch.stack([torch.randperm(s.train.shape[1], generator=generator)[:shots] for _ in chosen])
    asked = torch.stack([torch.randperm(s.test.shape[1], generator=generator)[:queries] for _ in chosen])
    k = len(chosen)

    def take(source: Tensor, index: Tensor) -> Tensor:
        return source[chosen[:, None], index].flatten(0, 1)

    return Problem(
        take(s.train, few),
        torch.arange(k).repeat_interleave(few.shape[1]),
        take(s.train_features, few),
        take(s.test, asked),
        take(s.test_features, asked),
        torch.arange(k).repeat_interleave(asked.shape[1]),
        k,
        index,
    )


def _set(name: str, train: Tensor, test: Tensor, runtime: Runtime) -> EvalSet:
    features = [torch.unflatten(runtime.encode(x.flatten(0, 1)), 0, x.shape[:2]) for x in (train, test)]
    return EvalSet(name, train, features[0], test, features[1])


def _stack(images: data.Images, labels: data.Labels, classes: list[int], count: int) -> Tensor:
    chosen = np.stack([np.flatnonzero(labels == c)[:count] for c in classes])
    x = torch.from_numpy(np.ascontiguousarray(images[chosen.ravel()])).permute(0, 3, 1, 2).float() / 255
    return torch.unflatten(x, 0, chosen.shape)


def withheld(recipe: Recipe, run: Path, name: str, runtime: Runtime) -> EvalSet:
    """The classes of a photograph set that nobody trains on."""
    parts = {split: data.load(recipe, run, split, name) for split in ("train", "test")}
    classes = [c for c in range(len(parts["train"].classes)) if data.role(name, c) == "test"]
    train = _stack(parts["train"].images, parts["train"].labels, classes, 100)
    test = _stack(parts["test"].images, parts["test"].labels, classes, 50)
    return _set(f"{name}, withheld classes", train, test, runtime)


def validation(recipe: Recipe, run: Path, name: str, runtime: Runtime) -> EvalSet:
    """The validation classes of a photograph set; both halves from the training split."""
    domain = data.load(recipe, run, "train", name)
    both = _stack(domain.images, domain.labels, domain.classes_of("validation"), 150)
    return _set(f"{name}, validation classes", both[:, :100], both[:, 100:], runtime)


def stored(folder: Path, runtime: Runtime, *, per_class: int = 200) -> EvalSet:
    """A whole data set in the Hugging Face layout, such as cifar10."""
    halves = []
    for split in ("train", "test"):
        images, labels, names = data.load_images(folder, split, per_class=per_class)
        halves.append(_stack(images, labels, list(range(len(names))), int(np.bincount(labels).min())))
    return _set(folder.name, halves[0], halves[1], runtime)


def digits(runtime: Runtime) -> EvalSet:
    """scikit-learn's 8x8 digits; the first 50 of each class may condition, the rest are asked about."""
    source = load_digits()
    x = preprocess(torch.from_numpy(source.images / 16).float()[:, None].expand(-1, 3, -1, -1))
    count = int(np.bincount(source.target).min())
    index = np.stack([np.flatnonzero(source.target == c)[:count] for c in range(10)])
    both = torch.unflatten(x[index.ravel()], 0, index.shape)
    return _set("digits", both[:, :50], both[:, 50:], runtime)

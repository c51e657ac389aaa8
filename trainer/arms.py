"""What a user would do instead of generating: every rival of the tables, given the same images.

An arm takes a `Setting` (conditioning images, their features, a bundle's shared parts) and gives a classifier: a
function from images and features to logits. Learning rates were chosen on validation
classes (docs/log.md, 10), strengths by the samples.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Generator, Tensor

from loomweight.architectures import ArchitectureSpec

Predict = Callable[[Tensor, Tensor], Tensor]
"""Images (n, 3, 32, 32) and encoder features (n, dim) -> logits or scores (n, classes)."""

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Setting:
    """One few-shot problem: conditioning images (n, 3, 32, 32), labels (n,), encoder features (n, dim), class count."""

    x: Tensor
    y: Tensor
    features: Tensor
    classes: int
    seed: int = 0


def logistic(features: Tensor, y: Tensor, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """L2 logistic regression, strength by stratified cross-validation on the samples (at one a class: 1.0).

    Features are brought to unit scale by one common factor. Returns weight (classes, d) and bias (classes,).
    """
    factor = features.std().clamp(min=1e-6).item() * features.shape[1] ** 0.5
    x, labels = (features / factor).double().numpy(), y.numpy()
    folds = min(3, int(np.bincount(labels, minlength=classes).min()))
    best = 10.0
    if folds > 1:
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, labels))
        best = max(
            STRENGTHS, key=lambda c: np.mean([_fit(x[a], labels[a], 10 * c).score(x[b], labels[b]) for a, b in splits])
        )
        best *= 10
    model = _fit(x, labels, best)
    weight, bias = model.coef_, model.intercept_
    if classes == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return torch.from_numpy(weight / factor).float(), torch.from_numpy(bias).float()


def _fit(x: NDArray[np.float64], y: NDArray[np.int64], strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weak penalties stop at the iteration limit; the choice by folds decides
        return LogisticRegression(C=strength, max_iter=200).fit(x, y)


def nearest_class_mean(s: Setting) -> Predict:
    """On the frozen encoder's features."""
    means = torch.stack([s.features[s.y == c].mean(0) for c in range(s.classes)])
    return lambda x, f: -torch.cdist(f, means)


def logistic_probe(s: Setting) -> Predict:
    """On the frozen encoder's features."""
    weight, bias = logistic(s.features, s.y, s.classes, s.seed)
    return lambda x, f: F.linear(f, weight, bias)


def pixels(s: Setting, side: int) -> Predict:
    """Logistic regression on the luma of the pixels, at side x side: the resolution that the images came in."""

    def flat(x: Tensor) -> Tensor:
        return F.interpolate(x.mean(1, keepdim=True), (side, side), mode="area").flatten(1)

    weight, bias = logistic(flat(s.x), s.y, s.classes, s.seed)
    return lambda x, f: F.linear(flat(x), weight, bias)


def trunk_probe_weights(s: Setting, spec: ArchitectureSpec, trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logistic regression on the shared initialisation's own last features, as a network of that architecture."""
    with torch.no_grad():
        own = spec.features(trunk, spec.adapt(s.x))
    weight, bias = logistic(own, s.y, s.classes, s.seed)
    return {**trunk, "head.weight": weight, "head.bias": bias}


def network(spec: ArchitectureSpec, weights: dict[str, Tensor]) -> Predict:
    """A classifier from a network's tensors."""

    def predict(x: Tensor, f: Tensor) -> Tensor:
        with torch.no_grad():
            return spec.forward(weights, spec.adapt(x).contiguous(memory_format=torch.channels_last))

    return predict


def trained(
    s: Setting, spec: ArchitectureSpec, initial: dict[str, Tensor], steps: int, *, lr: float = 1e-3, batch: int = 64
) -> dict[str, Tensor]:
    """All weights trained on the samples from `initial` for so many AdamW steps; `fine-tune` and `scratch`."""
    generator = Generator().manual_seed(s.seed)
    weights = {k: v.clone().requires_grad_() for k, v in initial.items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=lr, weight_decay=1e-2)
    x = spec.adapt(s.x)
    for _ in range(steps):
        chosen = torch.randperm(len(x), generator=generator)[:batch]
        loss = F.cross_entropy(
            spec.forward(weights, x[chosen].contiguous(memory_format=torch.channels_last)), s.y[chosen]
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {k: v.detach() for k, v in weights.items()}


def from_shared(s: Setting, spec: ArchitectureSpec, trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """The shared initialisation with a fresh zero head: where fine-tuning starts."""
    head = {"head.weight": torch.zeros(s.classes, spec.width), "head.bias": torch.zeros(s.classes)}
    return {**trunk, **head}

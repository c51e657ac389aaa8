"""What a user would do instead of generating: every rival of the tables, given the same images.

An arm takes a `Setting` (conditioning images, their features, a class count) and gives a classifier: a function from
images and features to logits, or a network's tensors. Strengths are chosen by the samples; how they judge, and learning
rates, were chosen on validation classes by `benchmarks.tune_rivals` (docs/results/tune_rivals.json). Rivals that read
a zoo of trained networks stand in zoo_arms.py.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from loomweight.architectures import ArchitectureSpec
from trainer import logistic

Predict = Callable[[Tensor, Tensor], Tensor]
"""Images (n, 3, 32, 32) and encoder features (n, dim) -> logits or scores (n, classes)."""

LEARNING_RATES: dict[str, dict[int, float]] = {
    "fine-tune 10": {1: 3e-3, 5: 3e-3, 20: 1e-2},
    "fine-tune 100": {1: 1e-3, 5: 3e-4, 20: 3e-3},
    "fine-tune 1000": {1: 3e-4, 5: 3e-4, 20: 3e-3},
    "scratch 100": {1: 1e-3, 5: 1e-3, 20: 3e-3},
    "scratch 1000": {1: 1e-3, 5: 3e-3, 20: 3e-3},
    "trunk probe, then fine-tune 100": {1: 1e-3, 5: 1e-3, 20: 1e-3},
}
"""By arm and images a class."""
JUDGES = {"logistic probe": "accuracy", "trunk probe": "likelihood"}
"""How cross-validation judges the strengths of a probe."""


@dataclass(frozen=True)
class Setting:
    """One few-shot problem: conditioning images (n, 3, 32, 32), labels (n,), encoder features (n, dim), class count."""

    x: Tensor
    y: Tensor
    features: Tensor
    classes: int
    seed: int = 0

    @property
    def shots(self) -> float:
        """Images a class."""
        return len(self.y) / self.classes


def learning_rate(arm: str, shots: float) -> float:
    """The rate chosen for the number of images a class that is nearest, by its logarithm."""
    rates = LEARNING_RATES[arm]
    return rates[min(rates, key=lambda n: abs(math.log(n / shots)))]


def nearest_class_mean(s: Setting) -> Predict:
    """On the frozen encoder's features."""
    means = torch.stack([s.features[s.y == c].mean(0) for c in range(s.classes)])
    return lambda x, f: -torch.cdist(f, means)


def logistic_probe(s: Setting, *, judge: str = JUDGES["logistic probe"]) -> Predict:
    """On the frozen encoder's features."""
    weight, bias = logistic.fit(s.features, s.y, s.classes, s.seed, judge=judge)
    return lambda x, f: F.linear(f, weight, bias)


def pixels(s: Setting, side: int) -> Predict:
    """Logistic regression on the luma of the pixels, at side x side: the resolution that the images came in."""

    def flat(x: Tensor) -> Tensor:
        return F.interpolate(x.mean(1, keepdim=True), (side, side), mode="area").flatten(1)

    weight, bias = logistic.fit(flat(s.x), s.y, s.classes, s.seed)
    return lambda x, f: F.linear(flat(x), weight, bias)


def trunk_probe_weights(
    s: Setting, spec: ArchitectureSpec, trunk: dict[str, Tensor], *, judge: str = JUDGES["trunk probe"]
) -> dict[str, Tensor]:
    """Logistic regression on a trunk's own last features, as a network of that architecture."""
    with torch.no_grad():
        own = spec.features(trunk, inputs(spec, s.x))
    weight, bias = logistic.fit(own, s.y, s.classes, s.seed, judge=judge)
    return {**trunk, "head.weight": weight, "head.bias": bias}


def inputs(spec: ArchitectureSpec, x: Tensor) -> Tensor:
    """Images as a network takes them, laid out as CPU convolutions read them fastest."""
    return spec.adapt(x).contiguous(memory_format=torch.channels_last)


def network(spec: ArchitectureSpec, weights: dict[str, Tensor]) -> Predict:
    """A classifier from a network's tensors; one without a trunk reads the encoder's features."""

    def predict(x: Tensor, f: Tensor) -> Tensor:
        with torch.no_grad():
            return spec.forward(weights, inputs(spec, x) if spec.trunk else f)

    return predict


def training(
    s: Setting, spec: ArchitectureSpec, initial: dict[str, Tensor], *, lr: float, batch: int = 64
) -> Iterator[dict[str, Tensor]]:
    """All weights trained on the samples from `initial` by AdamW at one rate; gives them after every step, live."""
    generator = Generator().manual_seed(s.seed)
    weights = {k: v.clone().requires_grad_() for k, v in initial.items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=lr, weight_decay=1e-2, fused=True)
    x = inputs(spec, s.x)
    while True:
        chosen = torch.randperm(len(x), generator=generator)[:batch]
        loss = F.cross_entropy(
            spec.forward(weights, x[chosen].contiguous(memory_format=torch.channels_last)), s.y[chosen]
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield {k: v.detach() for k, v in weights.items()}


def trained(
    s: Setting, spec: ArchitectureSpec, initial: dict[str, Tensor], steps: int, *, lr: float
) -> dict[str, Tensor]:
    """The weights after so many steps of `training`."""
    return next(islice(training(s, spec, initial, lr=lr), steps - 1, None))


def from_shared(s: Setting, spec: ArchitectureSpec, trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """The shared initialisation with a fresh zero head: where fine-tuning starts."""
    head = {"head.weight": torch.zeros(s.classes, spec.width), "head.bias": torch.zeros(s.classes)}
    return {**trunk, **head}


def start_of(arm: str, s: Setting, spec: ArchitectureSpec, trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where an arm's training starts: the shared trunk under a zero head or under its own probe, or random weights."""
    if arm.startswith("trunk probe"):
        return trunk_probe_weights(s, spec, trunk)
    if arm.startswith("scratch"):
        return spec.initial(s.classes, Generator().manual_seed(s.seed))
    return from_shared(s, spec, trunk)


def steps_of(arm: str) -> int:
    """Training steps, the number at the end of an arm's name."""
    return int(arm.rsplit(" ", 1)[1])


def tuned(arm: str, s: Setting, spec: ArchitectureSpec, trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """An arm of `LEARNING_RATES` from start to end, at the rate chosen for it."""
    return trained(s, spec, start_of(arm, s, spec, trunk), steps_of(arm), lr=learning_rate(arm, s.shots))

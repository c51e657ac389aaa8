"""Every rival of tables 2 and 3 on one few-shot problem: accuracy on the queries, and seconds from images to a network.

What reads the encoder's features pays for encoding the images, as generating does; what reads the zoo pays for running
it. What an arm needs before any request (an encoder, a shared initialisation, a zoo) is table 5's business.
"""

import time
from collections.abc import Callable

import torch
from torch import Generator as Random
from torch import Tensor

from loomweight.architectures import ArchitectureSpec
from loomweight.bundle import Zoo
from loomweight.errors import InvalidRequest
from loomweight.generator import GenerateOptions, Generator
from loomweight.weight_vae import join
from trainer import arms, zoo_arms
from trainer.evalsets import Problem

Outcomes = dict[str, tuple[float, float]]
"""Accuracy and seconds by arm."""

ON_FEATURES = ("nearest class mean", "logistic probe")
"""For a whole network rivals of another class: they keep the encoder, a hundred times larger."""
NOISE = (0.05, 0.1, 0.2)
"""Of each tensor's spread."""


def accuracy(predict: arms.Predict, p: Problem) -> float:
    """Share of the queries that a classifier gets right."""
    return float((predict(p.query, p.query_features).argmax(1) == p.query_labels).float().mean())


def run(arm: Callable[[], arms.Predict], p: Problem, *, beforehand: float = 0.0) -> tuple[float, float]:
    """An arm's accuracy, and its seconds with those that were spent for it beforehand."""
    start = time.perf_counter()
    predict = arm()
    seconds = time.perf_counter() - start + beforehand
    return accuracy(predict, p), seconds


def setting(p: Problem) -> arms.Setting:
    """What the arms may see of a problem."""
    return arms.Setting(p.x, p.y, p.features, p.classes, p.seed)


def shared_trunk(generator: Generator, target: str) -> dict[str, Tensor]:
    """The shared initialisation of a target, without a head."""
    loom = generator.looms[target]
    whole = join(loom.spec, loom.vae.shared, torch.zeros(1, loom.spec.width + 1))
    return {k: whole[k] for k in loom.spec.trunk_shapes()}


def encoding(generator: Generator, p: Problem) -> float:
    """Seconds that the encoder takes for the conditioning images."""
    start = time.perf_counter()
    generator.runtime.encode(p.x)
    return time.perf_counter() - start


def on_features(p: Problem, encoded: float) -> Outcomes:
    """Classifiers on the frozen encoder's features."""
    s = setting(p)
    found = {"nearest class mean": arms.nearest_class_mean, "logistic probe": arms.logistic_probe}
    return {name: run(lambda arm=arm: arm(s), p, beforehand=encoded) for name, arm in found.items()}


def trained(spec: ArchitectureSpec, trunk: dict[str, Tensor], p: Problem, *, most_steps: int) -> Outcomes:
    """Networks of the target's architecture that see nothing but the images: probe, fine-tuning, scratch."""
    s = setting(p)
    found = {"trunk probe": run(lambda: arms.network(spec, arms.trunk_probe_weights(s, spec, trunk)), p)}
    for name in arms.LEARNING_RATES:
        if arms.steps_of(name) <= most_steps:
            found[name] = run(lambda name=name: arms.network(spec, arms.tuned(name, s, spec, trunk)), p)
    return found


def from_zoo(spec: ArchitectureSpec, zoo: Zoo, p: Problem, encoded: float) -> Outcomes:
    """The zoo model that does best on the samples, its head permuted to fit; and the best trunk under a new head."""
    s = setting(p)
    start = time.perf_counter()
    r = zoo_arms.read(spec, zoo, s)
    spent = time.perf_counter() - start + (0.0 if spec.trunk else encoded)
    found: Outcomes = {}
    start = time.perf_counter()
    best = zoo_arms.best_model(r)
    if best is not None:
        seconds = time.perf_counter() - start + spent
        found["best zoo model by the samples"] = accuracy(arms.network(spec, r.weights(*best)), p), seconds
    start = time.perf_counter()
    model = zoo_arms.best_trunk(r) if spec.trunk else None
    if model is not None:
        whole = r.weights(model, torch.zeros(1, spec.width + 1))
        probed = arms.trunk_probe_weights(s, spec, {k: whole[k] for k in spec.trunk_shapes()})
        seconds = time.perf_counter() - start + spent
        found["best zoo trunk, new head"] = accuracy(arms.network(spec, probed), p), seconds
    return found


def neighbours(generator: Generator, target: str, p: Problem) -> list[tuple[Tensor, Tensor]]:
    """Trunk (p,) and matched head rows (k, width + 1) of the zoo models nearest by dataset code, nearest first."""
    options = GenerateOptions(target=target, seed=p.seed, method="retrieve", holdout=0.0)
    try:
        w = generator.weave(p.x.numpy(), [f"{i:03d}" for i in p.y.tolist()], options)
    except InvalidRequest:  # no zoo model has so many classes
        return []
    return [(n.trunk, n.rows) for n in w.networks()]


def retrieved(generator: Generator, target: str, p: Problem) -> Outcomes:
    """The nearest zoo model by dataset code, as it is and with noise; the mean of the nearest, eight if there are."""
    spec = generator.looms[target].spec
    start = time.perf_counter()
    near = neighbours(generator, target, p)
    spent = time.perf_counter() - start
    if not near:
        return {}
    mean = [torch.stack(parts).mean(0) for parts in zip(*near, strict=True)]
    found = {"retrieve": join(spec, *near[0]), "average": join(spec, mean[0], mean[1])}
    for share in NOISE if spec.trunk else ():
        rng = Random().manual_seed(p.seed)
        found[f"noise {share}"] = zoo_arms.with_noise(spec, *near[0], share, rng)
    return {name: (accuracy(arms.network(spec, weights), p), spent) for name, weights in found.items()}


def every(generator: Generator, target: str, p: Problem, *, most_steps: int) -> Outcomes:
    """All rivals of a target; training of more than `most_steps` steps, and below 100 the whole zoo, are left out."""
    loom, zoo = generator.looms[target], generator.zoos[target]
    encoded = encoding(generator, p)
    with torch.inference_mode():
        found = retrieved(generator, target, p)
    if most_steps >= 100 or not loom.spec.trunk:
        found |= from_zoo(loom.spec, zoo, p, encoded)
    found |= on_features(p, encoded)
    if loom.spec.trunk:
        found |= trained(loom.spec, shared_trunk(generator, target), p, most_steps=most_steps)
    return found

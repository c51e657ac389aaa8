"""Tables 2 and 3: classes and data sets that no training has seen; generated networks beside their rivals, on the same
images.

    python -m benchmarks.fewshot --run runs/starter --data DIR --out docs/results/fewshot.json

`generated`: one sample, given all images. `generated alone, best of 8`: ranked as the service ranks (a fifth held
out where that makes at least one image a class, and cross-validation), the closed form left out. `service's
answer`: what `POST /generate` gives with its defaults. Rivals get all images. Differences are paired by task.
"""

import argparse
import json
import multiprocessing as mp
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator as Random
from torch import Tensor
from tqdm import tqdm

from benchmarks import results
from loomweight import ranking
from loomweight.bundle import Bundle
from loomweight.candidates import Candidate
from loomweight.generator import GenerateOptions, Generator
from loomweight.weight_vae import join
from trainer import arms, evalsets
from trainer import recipe as recipes
from trainer.evalsets import EvalSet, Problem

ON_FEATURES = ("nearest class mean", "logistic probe")
LEARNING_RATES = {10: 3e-3, 100: 1e-3, 1000: 1e-3}
"""Of fine-tuning and scratch by steps; chosen on validation classes (docs/log.md, 10)."""


def generated(generator: Generator, target: str, p: Problem) -> dict[str, tuple[float, float]]:
    """Accuracy and seconds of the product's own arms."""
    loom = generator.looms[target]
    x, labels = p.x.numpy(), [f"{i:03d}" for i in p.y.tolist()]
    asked = loom.spec.adapt(p.query) if loom.spec.trunk else p.query_features

    def accuracy(n: Candidate) -> float:
        return ranking.score(loom, n, asked, p.query_labels).accuracy

    start = time.perf_counter()
    everything = generator.weave(x, labels, GenerateOptions(target=target, seed=p.seed, holdout=0.0)).networks
    whole = time.perf_counter() - start
    by_origin = {n.origin: n for n in reversed(everything)}
    out = {
        "generated": (accuracy(by_origin["diffusion"]), whole),
        "conditional mean": (accuracy(by_origin["mean"]), whole),
        **(
            {"generated trunk, closed-form head": (accuracy(by_origin["mean-trunk"]), whole)} if loom.spec.trunk else {}
        ),
        "closed form": (accuracy(by_origin["closed-form"]), whole),
    }
    start = time.perf_counter()
    w = generator.weave(x, labels, GenerateOptions(target=target, seed=p.seed))
    order = generator.rank(w).order
    seconds = time.perf_counter() - start
    alone = next(i for i in order if w.networks[i].origin != "closed-form")
    out["generated alone, best of 8"] = (accuracy(w.networks[alone]), seconds)
    out["service's answer"] = (accuracy(w.networks[order[0]]), seconds)
    return out


def rivals(
    generator: Generator, target: str, p: Problem, *, hundred: bool, thousand: bool
) -> dict[str, Callable[[], arms.Predict]]:
    """What a user would do instead."""
    s = arms.Setting(p.x, p.y, p.features, p.classes, p.seed)
    found: dict[str, Callable[[], arms.Predict]] = {
        "nearest class mean": lambda: arms.nearest_class_mean(s),
    }
    if hundred or not generator.looms[target].spec.trunk:  # dear, and of another class than a whole network
        found["logistic probe"] = lambda: arms.logistic_probe(s)
    loom = generator.looms[target]
    if not loom.spec.trunk:
        return found
    spec = loom.spec
    whole = join(spec, loom.vae.shared, torch.zeros(1, spec.width + 1))
    trunk = {k: whole[k] for k in spec.trunk_shapes()}

    def network(make: Callable[[], dict[str, Tensor]]) -> Callable[[], arms.Predict]:
        return lambda: arms.network(spec, make())

    found["trunk probe"] = network(lambda: arms.trunk_probe_weights(s, spec, trunk))
    if hundred:
        found["trunk probe, then fine-tune 100"] = network(
            lambda: arms.trained(s, spec, arms.trunk_probe_weights(s, spec, trunk), 100, lr=3e-4)
        )
    starts = {
        "fine-tune": arms.from_shared(s, spec, trunk),
        "scratch": spec.initial(p.classes, Random().manual_seed(p.seed)),
    }
    for steps in (10,) + (100,) * hundred + (1000,) * thousand:
        for name, start in starts.items():
            if steps > 10 or name == "fine-tune":
                found[f"{name} {steps}"] = network(
                    lambda n=steps, f=start: arms.trained(s, spec, f, n, lr=LEARNING_RATES[n])
                )
    return found


def retrieved(generator: Generator, target: str, p: Problem) -> dict[str, tuple[float, float]]:
    """The nearest zoo model; the mean of the nearest; the nearest with noise."""
    loom = generator.looms[target]
    asked = loom.spec.adapt(p.query) if loom.spec.trunk else p.query_features
    start = time.perf_counter()
    options = GenerateOptions(target=target, seed=p.seed, method="retrieve", holdout=0.0)
    found = generator.weave(p.x.numpy(), [f"{i:03d}" for i in p.y.tolist()], options).networks
    seconds = time.perf_counter() - start
    if not found:
        return {}
    first = found[0]
    rng = Random().manual_seed(p.seed)
    noisy = [
        Candidate(
            None,
            "noise",
            *(w + share * w.std() * torch.randn(w.shape, generator=rng) for w in (first.trunk, first.rows)),
        )
        for share in ((0.05, 0.2) if loom.spec.trunk else ())
    ]
    mean = Candidate(
        None, "average", *(torch.stack(w).mean(0) for w in zip(*((n.trunk, n.rows) for n in found), strict=True))
    )
    named = {"retrieve": first, "average": mean, **{f"noise {s}": n for s, n in zip((0.05, 0.2), noisy, strict=False)}}
    return {k: (ranking.score(loom, n, asked, p.query_labels).accuracy, seconds) for k, n in named.items()}


@dataclass(frozen=True)
class Plan:
    """One row: a target, a set, and how many tasks the arms run on."""

    target: str
    number: int
    ways: int
    shots: int
    tasks: int
    hundred: int
    thousand: int


def row(generator: Generator, s: EvalSet, plan: Plan) -> dict[str, Any]:
    """All arms of one row."""
    accuracy: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for index in range(plan.tasks):
        p = evalsets.draw(s, plan.ways, plan.shots, index)
        with torch.inference_mode():
            got = {**generated(generator, plan.target, p), **retrieved(generator, plan.target, p)}
        instead = rivals(generator, plan.target, p, hundred=index < plan.hundred, thousand=index < plan.thousand)
        start = time.perf_counter()
        generator.runtime.encode(p.x)
        encoding = time.perf_counter() - start  # what reads the encoder's features pays for them, as generating does
        for name, make in instead.items():
            start = time.perf_counter()
            predict = make()
            took = time.perf_counter() - start + encoding * (name in ON_FEATURES)
            hits = predict(p.query, p.query_features).argmax(1) == p.query_labels
            got[name] = (float(hits.float().mean()), took)
        for name, (a, t) in got.items():
            accuracy[name].append(a)
            seconds[name].append(t)
    ours, answer = np.array(accuracy["generated alone, best of 8"]), np.array(accuracy["service's answer"])
    return {
        "set": s.name,
        "number": plan.number,
        "target": plan.target,
        "ways": min(plan.ways, len(s.train)),
        "shots": plan.shots,
        "arms": {
            name: {
                **results.interval(values),
                "seconds": float(np.median(seconds[name])),
                "generated_alone_ahead_by": results.interval(list(ours[: len(values)] - np.array(values))),
                "answer_ahead_by": results.interval(list(answer[: len(values)] - np.array(values))),
            }
            for name, values in accuracy.items()
        },
    }


_generator: Generator
_sets: list[EvalSet]


def _start(bundle: Path, recipe_name: str, run: Path, data: Path, threads: int) -> None:
    global _generator, _sets
    recipe = recipes.load(recipe_name)
    _generator = Generator.load(bundle, threads=threads)
    _sets = [evalsets.withheld(recipe, run, n, _generator.runtime) for n in ("tiny-imagenet-32", "cifar100")]
    _sets += [evalsets.stored(data / "cifar10", _generator.runtime), evalsets.digits(_generator.runtime)]


def _finished(out: Path | None, bundle: str) -> list[dict[str, Any]]:
    """Rows of an interrupted run on the same bundle."""
    content = json.loads(out.read_text()) if out and out.exists() else {}
    return list(content["rows"]) if content.get("bundle") == bundle else []


def _row(plan: Plan) -> dict[str, Any]:
    return row(_generator, _sets[plan.number], plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--run", type=Path, default=Path("runs/starter"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--targets", nargs="+", default=["cnn-l", "head"])
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--hundred", type=int, default=20, help="tasks on which the 100-step arms run as well")
    parser.add_argument("--thousand", type=int, default=5, help="tasks on which the 1,000-step arms run as well")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    plans = [
        Plan(target, number, 5 if target == "head" else 10, shots, options.tasks, options.hundred, options.thousand)
        for target in options.targets
        for number in range(4)
        for shots in (20, 5, 1)
    ]
    bundle = Bundle.open(options.bundle)
    arguments = (options.bundle, options.recipe, options.run, options.data, 1)
    found = _finished(options.out, bundle.id)
    done = {(r["target"], r["number"], r["shots"]) for r in found}
    plans = [p for p in plans if (p.target, p.number, p.shots) not in done]
    with mp.get_context("spawn").Pool(options.processes, initializer=_start, initargs=arguments) as pool:
        for one in tqdm(pool.imap(_row, plans, chunksize=1), total=len(plans)):
            found.append({**one, "command": results.command()})  # an interrupted table is finished by other commands
            found.sort(key=lambda r: (options.targets.index(r["target"]), r["number"], r["shots"]))
            figures = {k: round(100 * v["mean"], 1) for k, v in one["arms"].items()}
            print(one["target"], one["set"], one["ways"], "ways", one["shots"], "shots", figures, flush=True)
            if options.out:
                settings = {k: getattr(options, k) for k in ("tasks", "hundred", "thousand")}
                results.write(options.out, "fewshot", bundle.id, found, **settings)


if __name__ == "__main__":
    main()

"""Tables 2 and 3: classes and data sets that no training has seen; generated networks beside their rivals, on the same
images.

    python -m benchmarks.fewshot --run runs/starter --data DIR --out docs/results/fewshot.json

`generated`: one sample, given all images. `generated alone, best of 8`: ranked as the service ranks (a fifth held
out where that makes at least one image a class, and cross-validation), the closed form left out. `service's
answer`: what `POST /generate` gives with its defaults. Rivals get all images. Differences are paired by task.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Generator as Random
from torch import Tensor
from tqdm import tqdm

from benchmarks import results
from loomweight import ranking
from loomweight.candidates import Candidate
from loomweight.generator import GenerateOptions, Generator
from loomweight.weight_vae import join
from trainer import arms, evalsets
from trainer import recipe as recipes
from trainer.evalsets import EvalSet, Problem


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
        "generated, mean of 8": (accuracy(by_origin["diffusion-mean"]), whole),
        **(
            {"generated trunk, closed-form head": (accuracy(by_origin["diffusion-trunk"]), whole)}
            if loom.spec.trunk
            else {}
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


def rivals(generator: Generator, target: str, p: Problem, *, slow: bool) -> dict[str, Callable[[], arms.Predict]]:
    """What a user would do instead."""
    s = arms.Setting(p.x, p.y, p.features, p.classes, p.seed)
    found: dict[str, Callable[[], arms.Predict]] = {
        "nearest class mean": lambda: arms.nearest_class_mean(s),
        "logistic probe": lambda: arms.logistic_probe(s),
    }
    loom = generator.looms[target]
    if not loom.spec.trunk:
        return found
    spec = loom.spec
    whole = join(spec, loom.vae.shared, torch.zeros(1, spec.width + 1))
    trunk = {k: whole[k] for k in spec.trunk_shapes()}

    def network(make: Callable[[], dict[str, Tensor]]) -> Callable[[], arms.Predict]:
        return lambda: arms.network(spec, make())

    found["trunk probe"] = network(lambda: arms.trunk_probe_weights(s, spec, trunk))
    for steps in (10, 100, 1000) if slow else (10, 100):
        found[f"fine-tune {steps}"] = network(
            lambda n=steps: arms.trained(s, spec, arms.from_shared(s, spec, trunk), n)
        )
    for steps in (100, 1000) if slow else (100,):
        fresh = spec.initial(p.classes, Random().manual_seed(p.seed))
        found[f"scratch {steps}"] = network(lambda n=steps, f=fresh: arms.trained(s, spec, f, n))
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


def row(
    generator: Generator, target: str, s: EvalSet, ways: int, shots: int, tasks: int, slow_tasks: int
) -> dict[str, object]:
    """All arms of one row."""
    accuracy: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for index in range(tasks):
        p = evalsets.draw(s, ways, shots, index)
        with torch.inference_mode():
            got = {**generated(generator, target, p), **retrieved(generator, target, p)}
        for name, make in rivals(generator, target, p, slow=index < slow_tasks).items():
            start = time.perf_counter()
            predict = make()
            took = time.perf_counter() - start
            hits = predict(p.query, p.query_features).argmax(1) == p.query_labels
            got[name] = (float(hits.float().mean()), took)
        for name, (a, t) in got.items():
            accuracy[name].append(a)
            seconds[name].append(t)
    ours = np.array(accuracy["generated alone, best of 8"])
    return {
        "set": s.name,
        "target": target,
        "ways": min(ways, len(s.train)),
        "shots": shots,
        "arms": {
            name: {
                **results.interval(values),
                "seconds": float(np.median(seconds[name])),
                "generated_alone_ahead_by": results.interval(list(ours[: len(values)] - np.array(values))),
            }
            for name, values in accuracy.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--run", type=Path, default=Path("runs/starter"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--targets", nargs="+", default=["cnn-l", "head"])
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--slow-tasks", type=int, default=10, help="tasks on which the 1,000-step arms run as well")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    generator = Generator.load(options.bundle)
    sets = [evalsets.withheld(recipe, options.run, n, generator.runtime) for n in ("tiny-imagenet-32", "cifar100")]
    sets += [evalsets.stored(options.data / "cifar10", generator.runtime), evalsets.digits(generator.runtime)]
    rows = []
    plan = [(t, s, n) for t in options.targets for s in sets for n in (1, 5, 20)]
    for target, s, shots in tqdm(plan):
        ways = 10 if target != "head" else 5
        found = row(generator, target, s, ways, shots, options.tasks, options.slow_tasks)
        rows.append(found)
        print(
            target,
            s.name,
            found["ways"],
            "ways",
            shots,
            "shots",
            {k: round(100 * v["mean"], 1) for k, v in found["arms"].items()},
            flush=True,
        )
        if options.out:
            results.write(options.out, "fewshot", generator.bundle.id, rows, tasks=options.tasks)


if __name__ == "__main__":
    main()

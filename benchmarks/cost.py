"""Table 5: what the generator cost to make, what a request costs, and after how many requests it has paid for itself.

    python -m benchmarks.cost --out docs/results/cost.json

Everything is in core-seconds: wall time times the cores that were held. What was spent beforehand comes from the
bundle's card; requests are measured here, all on the same images. Whoever fine-tunes needs the shared initialisation
first, whoever probes the encoder needs that: it counts for them as it counts for the generator. Cheaper is not better:
accuracies stand in tables 2 and 3.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import results
from loomweight.generator import GenerateOptions, Generator
from loomweight.weight_vae import join
from trainer import arms, evalsets
from trainer import recipe as recipes

CORE_SECONDS = " (core seconds)"
"""The card marks stages that ran in processes of one thread each; all others are wall time on the recipe's threads."""


def beforehand(stage_seconds: dict[str, float], target: str, threads: int) -> dict[str, float]:
    """Core-seconds of every stage that a target needs: those without a target's name, and its own."""
    found = {}
    for name, seconds in stage_seconds.items():
        stage = name.removesuffix(CORE_SECONDS)
        of = stage.split(" ")[1:]
        if not of or of == [target]:
            found[stage] = seconds if name.endswith(CORE_SECONDS) else seconds * threads
    return found


def break_even(beforehand: float, request: float, rival_beforehand: float, rival_request: float) -> int | None:
    """Requests after which generating has cost less in all than the rival; None where it never does.

    >>> break_even(100.0, 1.0, 0.0, 3.0)
    51
    """
    saved = rival_request - request
    if saved <= 0:
        return None
    return max(0, math.floor((beforehand - rival_beforehand) / saved) + 1)


def verdict(requests: int | None) -> str:
    """The number of requests in words."""
    return "never: a request costs more" if requests is None else f"{requests:,}"


def per_request(
    generator: Generator, target: str, p: evalsets.Problem
) -> dict[str, tuple[Callable[[], object], tuple[str, ...]]]:
    """What can be done with the same images, and the stages that each needs beforehand besides."""
    loom, spec = generator.looms[target], generator.looms[target].spec
    labels = [f"{i:03d}" for i in p.y.tolist()]
    s = arms.Setting(p.x, p.y, p.features, p.classes, p.seed)

    def encoded() -> arms.Setting:
        return arms.Setting(p.x, p.y, generator.runtime.encode(p.x), p.classes, p.seed)

    found: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
        "generate": (
            lambda: generator.generate(p.x.numpy(), labels, GenerateOptions(target=target, seed=0)),
            (),
        ),
        "nearest class mean": (lambda: arms.nearest_class_mean(encoded()), ("encoder",)),
        "logistic probe": (lambda: arms.logistic_probe(encoded()), ("encoder",)),
    }
    if not spec.trunk:
        return found
    whole = join(spec, loom.vae.shared, torch.zeros(1, spec.width + 1))
    trunk = {k: whole[k] for k in spec.trunk_shapes()}
    shared = (f"shared {target}",)

    def tuned(name: str) -> Callable[[], object]:
        return lambda: arms.tuned(name, s, spec, trunk)

    found["trunk probe"] = (lambda: arms.trunk_probe_weights(s, spec, trunk), shared)
    for name in arms.LEARNING_RATES:
        found[name] = (tuned(name), () if name.startswith("scratch") else shared)
    return found


def measure(what: Callable[[], object], repeats: int, *, most_seconds: float = 20.0) -> list[float]:
    """Wall seconds of up to `repeats` calls after one to warm up; at least three, then no more than `most_seconds`."""
    what()
    taken: list[float] = []
    while len(taken) < repeats and (len(taken) < 3 or sum(taken) < most_seconds):
        start = time.perf_counter()
        what()
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--recipe", default="starter", help="says how many threads the stages ran on")
    parser.add_argument("--target", default="cnn-l")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of a request; one wastes least")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    generator = Generator.load(options.bundle, threads=options.threads)
    card = generator.bundle.manifest["card"]
    most = next(t for t in generator.targets() if t.id == options.target).max_classes
    problem = evalsets.draw(evalsets.digits(generator.runtime), min(10, most), options.shots, 0)
    stages = beforehand(card["stage_seconds"], options.target, recipes.load(options.recipe).threads)
    cost, needs = {}, {}
    for name, (what, stages_of) in per_request(generator, options.target, problem).items():
        cost[name] = results.interval([options.threads * t for t in measure(what, options.repeats)])
        needs[name] = sum(stages[s] for s in stages_of)
    ours = "generate"
    needs[ours] = sum(stages.values())
    rows = []
    for name, request in cost.items():
        requests = break_even(needs[ours], cost[ours]["mean"], needs[name], request["mean"])
        rows.append(
            {
                "what": name,
                "core_seconds_beforehand": needs[name],
                "core_seconds_a_request": request,
                "times_the_cost_of_generating": request["mean"] / cost[ours]["mean"],
                "break_even_requests": None if name == ours else requests,
                "verdict": "" if name == ours else verdict(requests),
            }
        )
        print(f"{name:25s} {request['mean']:8.3f} core-s a request, break-even: {rows[-1]['verdict']}", flush=True)
    settings = {
        "target": options.target,
        "images": len(problem.y),
        "classes": problem.classes,
        "threads": options.threads,
        "stages_core_seconds": stages,
        "core_hours_in_all": sum(stages.values()) / 3600,
        "gpu_minutes": 0,
    }
    print(json.dumps(settings, indent=1))
    if options.out:
        results.write(options.out, "cost", generator.bundle.id, rows, **settings)


if __name__ == "__main__":
    main()

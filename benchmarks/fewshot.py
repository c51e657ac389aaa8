"""Tables 2 and 3: classes and data sets that no training has seen; generated networks beside their rivals, on the same
images.

    python -m benchmarks.fewshot --run runs/starter --data DIR --out docs/results/fewshot.json

makes all rows, on two processes in about half an hour; rows that the file already has, of the same bundle and the same
numbers of tasks, are kept. `--only cifar10/cnn-l/5` (set, target, images a class; `*` for any) makes a row alone.

`generated`: one sample, given all images. `generated alone, best of 8`: ranked as the service ranks, the closed form
left out. `service's answer`: what `POST /generate` gives with its defaults. Rivals get all images (rivals.py). Leads
are paired by task; dear arms run on the first tasks only.
"""

import argparse
import json
import multiprocessing as mp
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import leads, results, rivals
from loomweight import ranking
from loomweight.candidates import BLEND, HEAD_SCALES, MEAN, SCALES, Candidate, decode
from loomweight.generator import GenerateOptions, Generator, Weaving
from trainer import arms, evalsets
from trainer import recipe as recipes
from trainer.evalsets import EvalSet, Problem

SETS = ("tiny-imagenet-32", "cifar100", "cifar10", "digits")
SHOTS = (1, 5, 20)
CLOSED = {k.origin for k in (*SCALES, *HEAD_SCALES) if k.closed}
MEANS = {k.origin for k in (*SCALES, *HEAD_SCALES) if not k.closed}
WAYS = {"head": 5}
"""Classes of a task; 10 where a target is not named."""


def generated(generator: Generator, target: str, p: Problem) -> rivals.Outcomes:
    """Accuracy and seconds of the product's own arms."""
    loom = generator.looms[target]
    x, labels = p.x.numpy(), [f"{i:03d}" for i in p.y.tolist()]
    asked = loom.spec.adapt(p.query) if loom.spec.trunk else p.query_features

    def request(method: str) -> tuple[Weaving, list[int], float]:
        start = time.perf_counter()
        w = generator.weave(x, labels, GenerateOptions(target=target, seed=p.seed, method=method))
        order = generator.rank(w).order
        w.network(order[0])
        return w, order, time.perf_counter() - start

    def accuracy(w: Weaving, i: int) -> float:
        return ranking.score(loom, w.network(i), asked, p.query_labels)[1]

    served, order, seconds = request(MEAN)
    sampled, _, longer = request("diffusion")
    places = {c.origin: i for i, c in enumerate(served.candidates)}
    named = {
        "conditional mean": "mean",
        "generated trunk, closed-form head": "mean-trunk",
        "closed form": "closed-form",
    }
    one = next(i for i, c in enumerate(sampled.candidates) if c.origin == "diffusion")
    return {
        "generated": (accuracy(sampled, one), longer),
        **{name: (accuracy(served, places[o]), seconds) for name, o in named.items() if o in places},
        "generated alone, best of 8": (ranking.score(loom, alone(served, order), asked, p.query_labels)[1], seconds),
        "service's answer": (accuracy(served, order[0]), seconds),
    }


def alone(w: Weaving, order: list[int]) -> Candidate:
    """The service's answer were there no closed form: blended, where there is evidence, from generated ones alone."""
    generated = [i for i in order if w.candidates[i].origin not in (BLEND, *CLOSED)]
    if w.answers is None:
        return w.network(generated[0])
    chosen = [i for i in generated if w.candidates[i].origin in MEANS]
    return decode(w.loom, ranking.blend(w.candidates, w.answers, chosen)[0], w.support)


@dataclass(frozen=True)
class Plan:
    """One row: a target, a set, images a class, and how many tasks the arms run on."""

    target: str
    set: str
    shots: int
    tasks: int
    hundred: int  # of them also 100-step training, and the whole zoo for a target with a trunk
    thousand: int  # of them also 1,000-step training

    @property
    def name(self) -> str:
        """As `--only` has it."""
        return f"{self.set}/{self.target}/{self.shots}"

    def most_steps(self, index: int) -> int:
        """Steps that task number `index` may train for."""
        return 1000 if index < self.thousand else 100 if index < self.hundred else 10


def row(generator: Generator, s: EvalSet, plan: Plan) -> dict[str, Any]:
    """All arms of one row."""
    accuracy: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    own: set[str] = set()
    for index in range(plan.tasks):
        p = evalsets.draw(s, WAYS.get(plan.target, 10), plan.shots, index)
        with torch.inference_mode():
            ours = generated(generator, plan.target, p)
        own |= ours.keys() - {"closed form"}  # ridge on the shared trunk: anybody can have that
        theirs = rivals.every(generator, plan.target, p, most_steps=plan.most_steps(index))
        for name, (a, t) in {**ours, **theirs}.items():
            accuracy[name].append(a)
            seconds[name].append(t)
    cells = leads.cells(accuracy, seconds)
    encoder = rivals.ON_FEATURES if generator.looms[plan.target].spec.trunk else ()
    return {
        "only": plan.name,
        "set": s.name,
        "target": plan.target,
        "ways": min(WAYS.get(plan.target, 10), len(s.train)),
        "shots": plan.shots,
        "plan": asdict(plan),
        "arms": cells,
        "leads": leads.of_row(cells, own, encoder),
    }


class _Worker:
    """What a process holds: the bundle, and the sets that its rows have asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.generator = Generator.load(options.bundle, threads=1)
        self.sets: dict[str, EvalSet] = {}

    def open(self, name: str) -> EvalSet:
        """A set by its name in SETS."""
        if name not in self.sets:
            runtime, options = self.generator.runtime, self.options
            if name == "digits":
                self.sets[name] = evalsets.digits(runtime)
            elif name == "cifar10":
                self.sets[name] = evalsets.stored(options.data / name, runtime)
            else:
                self.sets[name] = evalsets.withheld(recipes.load(options.recipe), options.run, name, runtime)
        return self.sets[name]


_worker: _Worker


def _start(options: argparse.Namespace) -> None:
    global _worker
    _worker = _Worker(options)


def _row(plan: Plan) -> dict[str, Any]:
    return row(_worker.generator, _worker.open(plan.set), plan)


def plans(options: argparse.Namespace) -> list[Plan]:
    """The rows of the table, in its order."""
    return [
        Plan(target, name, shots, options.tasks[target], options.hundred, options.thousand)
        for target in options.tasks
        for name in SETS
        for shots in SHOTS
    ]


def kept(out: Path | None, bundle: str, wanted: list[Plan]) -> list[dict[str, Any]]:
    """Rows of an earlier run that this one would make the same way: same bundle, tasks and learning rates."""
    content = json.loads(out.read_text()) if out and out.exists() else {}
    if content.get("bundle") != bundle or content["settings"].get("learning_rates") != _rates():
        return []
    return [r for r in content["rows"] if Plan(**r["plan"]) in wanted]


def _rates() -> dict[str, dict[str, float]]:
    """As JSON has them."""
    return {arm: {str(n): rate for n, rate in rates.items()} for arm, rates in arms.LEARNING_RATES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--run", type=Path, default=Path("runs/starter"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--tasks", type=int, default=100, help="of a whole network's row")
    parser.add_argument("--head-tasks", type=int, default=300)
    parser.add_argument("--hundred", type=int, default=40, help="tasks with 100-step training and the zoo's best")
    parser.add_argument("--thousand", type=int, default=10, help="tasks with 1,000-step training")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["*"], help="make these rows: SET/TARGET/SHOTS")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    bundle = Generator.load(options.bundle).bundle  # a bundle that does not load fails here, not in every process anew
    options.tasks = {t.id: options.tasks if t.id != "head" else options.head_tasks for t in bundle.targets}
    wanted = plans(options)
    found = kept(options.out, bundle.id, wanted)
    done = {r["only"] for r in found}
    missing = [p for p in wanted if p.name not in done and any(fnmatch(p.name, o) for o in options.only)]
    missing.sort(key=lambda p: (p.target == "head", -p.shots))  # the longest first, so that no process ends up alone
    order = [p.name for p in wanted]
    settings = {k: getattr(options, k) for k in ("tasks", "hundred", "thousand")}
    with mp.get_context("spawn").Pool(options.processes, initializer=_start, initargs=(options,)) as pool:
        for one in tqdm(pool.imap_unordered(_row, missing), total=len(missing)):
            found.append(one)
            found.sort(key=lambda r: order.index(r["only"]))
            figures = {k: round(100 * v["mean"], 1) for k, v in one["arms"].items()}
            print(one["only"], figures, flush=True)
            if options.out:
                how = {**settings, "learning_rates": _rates(), "judges": arms.JUDGES}
                results.write(options.out, "fewshot", bundle.id, found, **how)


if __name__ == "__main__":
    main()

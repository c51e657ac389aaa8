"""Chooses the rivals' hyper-parameters on validation classes, which neither train anything nor stand in a table.

    python -m benchmarks.tune_rivals --run runs/starter --out docs/results/tune_rivals.json

Learning rates by arm and images a class; how cross-validation judges the strengths of each probe. `trainer.arms` states
what was chosen, and a test holds it to the result file. A rate is constant, so one long training also tells what
a shorter one would have given. `--only 'fine-tune 10'` makes some arms' rows anew and keeps the others.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import results, rivals
from loomweight.generator import Generator
from trainer import arms, evalsets
from trainer import recipe as recipes
from trainer.data import PHOTOGRAPHS
from trainer.evalsets import Problem

SHOTS = (1, 5, 20)
RATES: dict[str, tuple[float, ...]] = {
    "fine-tune 10": (3e-4, 1e-3, 3e-3, 1e-2),
    "fine-tune 100": (3e-4, 1e-3, 3e-3, 1e-2),
    "fine-tune 1000": (3e-4, 1e-3, 3e-3),
    "scratch 100": (1e-3, 3e-3, 1e-2),
    "scratch 1000": (1e-3, 3e-3),
    "trunk probe, then fine-tune 100": (1e-4, 3e-4, 1e-3),
}
JUDGES = ("accuracy", "likelihood")

Found = dict[tuple[str, int], dict[str, list[float]]]
"""Arm and images a class -> choice -> accuracies by task."""


def trainings(arms_here: Iterable[str]) -> dict[tuple[str, float], list[str]]:
    """The trainings that tell all there is to know: where from and at which rate -> the arms that it passes through."""
    found: dict[tuple[str, float], list[str]] = defaultdict(list)
    for arm in arms_here:
        for lr in RATES[arm]:
            found[arm.rsplit(" ", 1)[0], lr].append(arm)
    return found


def rates(generator: Generator, target: str, p: Problem, wanted: Iterable[str]) -> dict[tuple[str, float], float]:
    """Accuracy by arm and rate, on one problem."""
    spec, trunk, s = generator.looms[target].spec, rivals.shared_trunk(generator, target), rivals.setting(p)
    found = {}
    for (_, lr), passed in trainings(wanted).items():
        marks = {arms.steps_of(arm): arm for arm in passed}
        start = arms.start_of(passed[0], s, spec, trunk)
        for step, weights in enumerate(arms.training(s, spec, start, lr=lr), 1):
            if step in marks:
                found[marks[step], lr] = rivals.accuracy(arms.network(spec, weights), p)
            if step == max(marks):
                break
    return found


def judges(generator: Generator, target: str, p: Problem, wanted: Iterable[str]) -> dict[tuple[str, str], float]:
    """Accuracy by probe and judge, on one problem."""
    spec, trunk, s = generator.looms[target].spec, rivals.shared_trunk(generator, target), rivals.setting(p)
    probes: dict[str, Callable[[str], arms.Predict]] = {
        "logistic probe": lambda judge: arms.logistic_probe(s, judge=judge),
        "trunk probe": lambda judge: arms.network(spec, arms.trunk_probe_weights(s, spec, trunk, judge=judge)),
    }
    return {(name, judge): rivals.accuracy(probes[name](judge), p) for name in wanted for judge in JUDGES}


def rows_of(found: Found) -> list[dict[str, Any]]:
    """A row an arm and number of images: every choice with its interval, and the best."""
    rows = []
    for (arm, shots), choices in found.items():
        grid = {choice: results.interval(values) for choice, values in choices.items()}
        rows.append({"arm": arm, "shots": shots, "grid": grid, "chosen": max(grid, key=lambda c: grid[c]["mean"])})
    return rows


def earlier(out: Path | None, bundle: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the file that this run would make the same way."""
    content = json.loads(out.read_text()) if out and out.exists() else {}
    return content["rows"] if (content.get("bundle"), content.get("settings")) == (bundle, settings) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--run", type=Path, default=Path("runs/starter"))
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--target", default="cnn-l")
    parser.add_argument("--tasks", type=int, default=10, help="of each set; the first of them train for 1,000 steps")
    parser.add_argument("--thousand", type=int, default=4)
    parser.add_argument("--probes", type=int, default=40, help="tasks of each set for the probes")
    parser.add_argument("--only", nargs="+", default=["*"], help="arms to tune; others keep their rows in the file")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    wanted = [arm for arm in (*RATES, *arms.JUDGES) if any(fnmatch(arm, o) for o in options.only)]
    generator, recipe = Generator.load(options.bundle, threads=1), recipes.load(options.recipe)
    sets = [evalsets.validation(recipe, options.run, n, generator.runtime) for n in PHOTOGRAPHS]
    settings = {k: getattr(options, k) for k in ("target", "tasks", "thousand", "probes")}
    settings["sets"] = [s.name for s in sets]
    kept = earlier(options.out, generator.bundle.id, settings)
    by_rate: Found = defaultdict(lambda: defaultdict(list))
    by_judge: Found = defaultdict(lambda: defaultdict(list))
    for index in tqdm(range(max(options.tasks, options.probes))):
        for s, shots in product(sets, SHOTS):
            p = evalsets.draw(s, 10, shots, index)
            if index < options.tasks:
                most_steps = 1000 if index < options.thousand else 100
                trained = [a for a in RATES if a in wanted and arms.steps_of(a) <= most_steps]
                for (arm, lr), accuracy in rates(generator, options.target, p, trained).items():
                    by_rate[arm, shots][f"{lr:g}"].append(accuracy)
            if shots > 1 and index < options.probes:  # one image a class leaves nothing to judge by
                probes = [a for a in arms.JUDGES if a in wanted]
                for (arm, judge), accuracy in judges(generator, options.target, p, probes).items():
                    by_judge[arm, 0][judge].append(accuracy)
        rows = [*rows_of(by_rate), *({**r, "shots": [n for n in SHOTS if n > 1]} for r in rows_of(by_judge))]
        rows = [*(r for r in kept if r["arm"] not in wanted), *rows]
        if options.out:
            results.write(options.out, "tune_rivals", generator.bundle.id, rows, **settings)
    for r in rows:
        shown = {choice: round(100 * cell["mean"], 1) for choice, cell in r["grid"].items()}
        print(r["arm"], r["shots"], shown, "->", r["chosen"], flush=True)


if __name__ == "__main__":
    main()

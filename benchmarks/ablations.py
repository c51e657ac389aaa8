"""Table 6: what each part earns. One part left out of training at a time, and each choice at request time swept.

    python -m benchmarks.ablations --run runs/starter --data DIR --out docs/results/ablations.json

`--only NAME ...` makes some rows alone; what is finished is kept in the work folder and in the result file, and the
others are added to it. Trained rows are the generator's stage at the same small number of steps, with the same seed and
data, judged by the conditional mean (one prediction, all of its difference, nothing ranked); swept rows use a finished
bundle. Every row answers the same tasks, so differences are paired by task. Intervals are over tasks, that is over
images: the classes of a set are always the same, and how much another training seed alone changes, the row
`other-seed` shows.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import loom_tasks, results, sweeps
from benchmarks.ablations_table import CHOOSING, table
from benchmarks.loom_tasks import SHOTS, Eyes, Judging, Scores, Try, accuracy
from benchmarks.sweeps import MEAN, SWEEPS
from loomweight.bundle import Bundle
from loomweight.candidates import CLOSED_FORM
from loomweight.loom import LOOKED_AT, Loom
from trainer import ablations, bank, encoder
from trainer import recipe as recipes
from trainer.ablations import ABLATIONS
from trainer.recipe import Recipe

ROLES = {True: "chooses", False: "reports"}


def answers(loom: Loom, *, closed_form: bool) -> Try:
    """What a trained row is judged by, and, if asked for, the closed form that it starts from."""
    kinds = {"conditional mean": MEAN, **({"closed form": CLOSED_FORM} if closed_form else {})}

    def attempt(task: loom_tasks.Task) -> dict[str, float]:
        latents = sweeps.woven(loom, task.support, list(kinds.values()), sweeps.of(task))[0]
        return {name: accuracy(loom, z, task) for name, z in zip(kinds, latents, strict=True)}

    return attempt


def cells(scores: Scores, way: str, reference: Scores, compared: str) -> list[dict[str, Any]]:
    """For each set and number of images: accuracy, and by how much it is ahead of the reference on the same tasks."""
    found = []
    for name, by_shots in scores[way].items():
        for shots, values in by_shots.items():
            theirs = reference.get(compared, {}).get(name, {}).get(shots)
            cell: dict[str, Any] = {"set": name, "shots": int(shots), "accuracy": results.interval(values)}
            if theirs is not None:
                ahead = [a - b for a, b in zip(values, theirs, strict=True)]
                cell["ahead"] = results.interval(ahead)
            found.append(cell)
    return found


def pooled(
    scores: Scores, way: str, reference: Scores, compared: str, groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """As `cells`, over the tasks of each group of sets; every set counts the same."""

    def together(s: Scores, key: str) -> Scores:
        found: Scores = {key: {}}
        for group, names in groups.items():
            known = [s[key][n] for n in names if n in s.get(key, {})]
            for shots in known[0] if known else ():
                found[key].setdefault(group, {})[shots] = np.concatenate([k[shots] for k in known]).tolist()
        return found

    return cells(together(scores, way), way, together(reference, compared), compared)


def row(
    part: str, name: str, way: str, scores: Scores, reference: Scores, compared: str, judging: Sequence[Judging]
) -> dict[str, Any]:
    """One row of the result file: a way to answer beside its reference."""
    groups = {CHOOSING: [j.images.name for j in judging if j.chooses]}
    return {
        "part": part,
        "name": name,
        "way": way,
        "compared_with": compared,
        "pooled": pooled(scores, way, reference, compared, groups),
        "sets": cells(scores, way, reference, compared),
    }


def trained_rows(found: dict[str, tuple[Scores, dict[str, Any]]], judging: Sequence[Judging]) -> list[dict[str, Any]]:
    """All finished trained rows beside the full recipe, and the closed form of the full one."""
    full = found.get("full", ({}, {}))[0]
    rows = []
    for name, (scores, meta) in found.items():
        ways = ("conditional mean", "closed form") if name == "full" else ("conditional mean",)
        for way in ways:
            one = row("trained", name, way, scores, full, "conditional mean", judging)
            rows.append({**one, "what": ABLATIONS[name].what, **meta})
    return rows


def swept_rows(name: str, scores: Scores, judging: Sequence[Judging]) -> list[dict[str, Any]]:
    """All values of a sweep, each beside the product's own."""
    made = [row("swept", name, way, scores, scores, sweeps.reference(name, way), judging) for way in scores]
    return [{**one, "what": SWEEPS[name].what} for one in made]


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the result file with those made anew in place of theirs, in the order of this module's lists."""
    fresh = {(r["part"], r["name"]) for r in new}
    kept = [r for r in old if (r["part"], r["name"]) not in fresh]
    order = [*ABLATIONS, *SWEEPS]
    return sorted([*kept, *new], key=lambda r: order.index(r["name"]))


def remembered(path: Path, key: dict[str, Any], make: Callable[[], Scores]) -> Scores:
    """Scores from a file, where they were made in the same way, or made now."""
    if path.exists():
        known = json.loads(path.read_text())
        if known["key"] == key:
            scores: Scores = known["scores"]
            return scores
    scores = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": key, "scores": scores}))
    return scores


class Bench:
    """What the rows share, each part opened on first use."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        full = recipes.load(options.recipe)
        self.full_steps = full.targets[options.target].diffusion.steps
        self.recipe: Recipe = ablations.of_generator(full, options.target, steps=options.steps)
        self.key = {"target": options.target, "tasks": options.tasks, "views": options.views, "looked_at": LOOKED_AT}
        self.bundle = cache(lambda: Bundle.open(options.bundle))
        self.shelves = cache(lambda: bank.load(self.recipe, options.run))
        self.judging = cache(self._judging)

    def _judging(self, ours: bool) -> list[Judging]:
        """Sets in the features of the run's encoder, or of the bundle's."""
        eyes = Eyes(encoder.load(self.options.run) if ours else self.bundle().encoder)
        o = self.options
        return loom_tasks.sets(self.recipe, o.run, o.data, eyes, tuple(o.views))

    def trained(self, name: str) -> tuple[Scores, dict[str, Any]]:
        """Train an ablation, or go on with it, and judge it."""
        o = self.options
        # Rows are compared: what another recipe trained must not stand among them.
        folder = o.work / f"{o.target}-{o.steps}-{self.recipe.sha256[:8]}" / name
        if not (folder / "loom.json").exists():
            ablations.train(name, self.recipe, o.run, o.target, self.shelves(), folder)

        def judge() -> Scores:
            loom = ablations.load(name, self.recipe, o.run, o.target, folder)
            return loom_tasks.measure(loom, answers(loom, closed_form=name == "full"), self.judging(True), o.tasks)

        key = {**self.key, "sets": [j.images.name for j in self.judging(True)]}
        return remembered(folder / "scores.json", key, judge), json.loads((folder / "loom.json").read_text())

    def swept(self, name: str) -> Scores:
        """Try all values of a sweep on the bundle's loom."""
        o, bundle = self.options, self.bundle()
        loom = bundle.loom(o.target)
        key = {**self.key, "bundle": bundle.id, "sets": [j.images.name for j in self.judging(False)]}
        return remembered(
            o.work / "swept" / f"{name}.json",
            key,
            lambda: loom_tasks.measure(loom, SWEEPS[name].make(loom), self.judging(False), o.tasks),
        )

    def write(self, rows: list[dict[str, Any]], judging: Sequence[Judging]) -> None:
        """Add rows of one part to the result file; where that part was made otherwise before, in place of it."""
        o, part = self.options, rows[0]["part"]
        if o.out is None:
            return
        content = json.loads(o.out.read_text()) if o.out.exists() else {"rows": [], "bundle": None, "settings": {}}
        names = [
            {"set": j.images.name, "role": ROLES[j.chooses], "ways": min(10, len(j.images.train))} for j in judging
        ]
        own: dict[str, Any] = {**self.key, "shots": list(SHOTS), "sets": names}
        bundle = content["bundle"]
        if part == "swept":
            bundle = self.bundle().id
        else:
            own |= {"steps": o.steps, "full_recipe_steps": self.full_steps, "recipe": self.recipe.sha256}
        same = content["settings"].get(part) == own and content["bundle"] in (bundle, None)
        known = [r for r in content["rows"] if same or r["part"] != part]
        results.write(o.out, "ablations", bundle, merged(known, rows), **{**content["settings"], part: own})


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that are missing, one after another; the result file is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"), help="what the sweeps are made on")
    parser.add_argument("--run", type=Path, default=Path("runs/starter"), help="what the ablations are made of")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="where they are trained")
    parser.add_argument("--data", type=Path, default=None, help="without it: no cifar10")
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--target", default="cnn-l")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tasks", type=int, default=50, help="tasks a set")
    parser.add_argument("--views", nargs="*", default=list(loom_tasks.VIEWS), help="of the validation classes")
    parser.add_argument("--only", nargs="+", default=[*ABLATIONS, *SWEEPS], choices=[*ABLATIONS, *SWEEPS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    found: dict[str, tuple[Scores, dict[str, Any]]] = {}
    wanted = [n for n in options.only if n in ABLATIONS]
    for name in dict.fromkeys(["full", *wanted] if wanted else []):  # the full recipe is what the others stand beside
        found[name] = bench.trained(name)
        bench.write(trained_rows(found, bench.judging(True)), bench.judging(True))
    for name in [n for n in SWEEPS if n in options.only]:
        bench.write(swept_rows(name, bench.swept(name), bench.judging(False)), bench.judging(False))
    if options.out and options.out.exists():
        print(table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()

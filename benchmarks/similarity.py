"""Does a learned similarity know which task a network was trained for? Protocols A to D with rivals and controls.

    python -m benchmarks.similarity --run runs/modelset-narrow --mixed runs/modelset-mixed \\
        --sets random=runs/modelset-random superclass=runs/modelset-superclass \\
        --controls shared=runs/modelset-shared shuffled=runs/modelset-shuffled untrained=runs/modelset-untrained \\
        --out docs/results/similarity.json

A  seen tasks, new models: every open task trains on some seeds, the others are assigned to the nearest task mean
B  unseen tasks: two models a task are queries, the others the gallery; tasks share no class with training tasks
C  unseen architectures: queries of architectures that training had none of, gallery of one that it knew
D  relatedness: does the score between models of two tasks go with their superclasses and with transfer gain?

Intervals and paired differences go over tasks. Networks are trained once and kept in RUN/lps; `--only` makes some
parts.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks import similarity_checks as checks
from benchmarks import similarity_protocols as protocols
from benchmarks.similarity_bench import Bench
from trainer import modelset
from trainer import recipe as recipes


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RUN")
    return name, Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="modelset-narrow")
    parser.add_argument("--run", type=Path, default=Path("runs/modelset-narrow"))
    parser.add_argument("--mixed", type=Path, default=None, help="run of a set of many architectures: protocol C")
    parser.add_argument("--sets", type=_named, nargs="*", default=[], metavar="NAME=RUN", help="other pairings")
    parser.add_argument("--controls", type=_named, nargs="*", default=[], metavar="NAME=RUN")
    parser.add_argument(
        "--steps", type=int, default=None, help="training steps of each network (default: the recipe's)"
    )
    parser.add_argument("--only", nargs="*", default=None, help="parts to make; the others are kept as they are")
    parser.add_argument("--out", type=Path, default=Path("docs/results/similarity.json"))
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    if options.steps:
        recipe = replace(recipe, lps=replace(recipe.lps, steps=options.steps))
    torch.set_num_threads(recipe.threads)
    bench = Bench(recipe, options.run, modelset.load(options.run))
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "a": lambda: protocols.protocol_a(bench),
        "b": lambda: protocols.protocol_b(bench),
        "exactness": lambda: checks.exactness(bench),
        "calibration": lambda: checks.calibration(bench),
        "matrix": lambda: checks.matrix(bench),
        "curves": lambda: checks.curves(bench),
        "d": lambda: protocols.protocol_d(bench),
    }
    if options.mixed:
        parts["c"] = lambda: protocols.protocol_c(bench, options.mixed)
    if options.controls or options.sets:
        parts["controls"] = lambda: checks.controls(bench, dict([*options.sets, *options.controls]))
    before = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    rows: dict[str, Any] = {k: v for k, v in before.items() if options.only is not None}
    for name, part in parts.items():
        if options.only is None or name in options.only:
            rows[name] = part()
            _write(options.out, bench, rows)


def _write(out: Path, bench: Bench, rows: dict[str, Any]) -> None:
    models = bench.models.models
    results.write(
        out,
        "similarity",
        None,
        rows,
        recipe=bench.recipe.name,
        models=len(models),
        networks=sorted({m.network for m in models}),
        tasks={"train": len(bench.split.train), "unseen": len(bench.unseen), "withheld": len(bench.split.withheld)},
        test_accuracy=results.interval([m.test_accuracy for m in models]),
        core_seconds=round(sum(m.seconds for m in models)),
        lps=asdict(bench.recipe.lps),
    )


if __name__ == "__main__":
    main()

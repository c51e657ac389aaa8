"""Who is ahead of whom in one row of a table: paired differences, the best rival, wall time beside fine-tuning's."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import results

ALONE = "generated alone, best of 8"
ANSWER = "service's answer"
YARDSTICK = "fine-tune 100"
"""The arm whose wall time the others' are divided by."""

Cell = dict[str, Any]


def cells(accuracy: Mapping[str, Sequence[float]], seconds: Mapping[str, Sequence[float]]) -> dict[str, Cell]:
    """A cell an arm: mean accuracy, how far ahead of it ours are, median seconds; each with its interval.

    Value i of an arm is of task i; an arm that ran on fewer tasks ran on the first ones. So differences and ratios are
    paired by task.
    """
    found = {}
    for name, values in accuracy.items():
        ours = {k: np.array(accuracy[k][: len(values)]) for k in (ALONE, ANSWER)}
        found[name] = {
            **results.interval(values),
            "seconds": float(np.median(seconds[name])),
            "generated_alone_ahead_by": results.interval(list(ours[ALONE] - np.array(values))),
            "answer_ahead_by": results.interval(list(ours[ANSWER] - np.array(values))),
        }
        if YARDSTICK in seconds:
            # Some rivals ran on the first tasks only.
            ratios = [a / b for a, b in zip(seconds[name], seconds[YARDSTICK], strict=False)]
            found[name]["times_fine_tune_100"] = float(np.median(ratios))
    return found


def worst(arms: Mapping[str, Cell], rivals: Collection[str], ours: str) -> Cell | None:
    """Our smallest lead over any of the rivals, which may be negative, and who that rival is; None without a rival."""
    key = {ALONE: "generated_alone_ahead_by", ANSWER: "answer_ahead_by"}[ours]
    if not rivals:
        return None
    name = min(rivals, key=lambda r: arms[r][key]["mean"])
    return {"over": name, **arms[name][key]}


def of_row(arms: Mapping[str, Cell], own: Collection[str], other_class: Collection[str]) -> dict[str, Any]:
    """Both our answers' smallest leads: over rivals of the same kind of network, and over any.

    `own` are arms that need the generator, and no rivals; `other_class` are networks that keep the encoder.
    """
    every = [name for name in arms if name not in own]
    groups = {"same architecture": [r for r in every if r not in other_class], "any": every}
    return {ours: {group: worst(arms, rivals, ours) for group, rivals in groups.items()} for ours in (ALONE, ANSWER)}

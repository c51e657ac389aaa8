"""Tables 2 and 3 drawn: accuracy against images a class, and against wall time; a panel a set."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.figures import legend, line, panels, percent_axis, ticks

Row = dict[str, Any]
BY_SHOTS = (
    "generated alone, best of 8",
    "service's answer",
    "conditional mean",
    "closed form",
    "trunk probe",
    "trunk probe, then fine-tune 100",
    "fine-tune 100",
    "fine-tune 1000",
    "scratch 1000",
    "best zoo trunk, new head",
    "retrieve",
    "average",
    "nearest class mean",
    "logistic probe",
)
BY_TIME = (*BY_SHOTS, "fine-tune 10", "scratch 100", "best zoo model by the samples")


def draw(content: dict[str, Any]) -> dict[str, Figure]:
    """Both figures of every target."""
    drawn = {}
    for target in dict.fromkeys(r["target"] for r in content["rows"]):
        rows = [r for r in content["rows"] if r["target"] == target]
        drawn[f"fewshot-{target}"] = by_shots(rows)
        drawn[f"time-{target}"] = by_time(rows)
    return drawn


def by_shots(rows: list[Row]) -> Figure:
    """Accuracy against images a class."""
    sets = list(dict.fromkeys(r["set"] for r in rows))
    ways = {r["set"]: r["ways"] for r in rows}
    figure, axes = panels([f"{s}\n{ways[s]}-way" for s in sets])
    for axis, name in zip(axes, sets, strict=True):
        own = sorted((r for r in rows if r["set"] == name), key=lambda r: r["shots"])
        for arm in BY_SHOTS:
            points = [(r["shots"], r["arms"][arm]) for r in own if arm in r["arms"]]
            if points:
                line(axis, arm, [n for n, _ in points], [c for _, c in points])
        axis.set_xscale("log")
        ticks(axis, [r["shots"] for r in own])
        axis.set_xlabel("images a class")
        percent_axis(axis)
    axes[0].set_ylabel("accuracy")
    return legend(figure, axes)


def by_time(rows: list[Row]) -> Figure:
    """Accuracy against seconds from images to a network: sets in columns, images a class in rows of panels."""
    sets = list(dict.fromkeys(r["set"] for r in rows))
    places = [(shots, name) for shots in sorted({r["shots"] for r in rows}) for name in sets]
    figure, axes = panels([f"{name}\n{shots} a class" for shots, name in places], columns=len(sets))
    taken = [r["arms"][arm]["seconds"] for r in rows for arm in BY_TIME if arm in r["arms"]]
    for axis, (shots, name) in zip(axes, places, strict=True):
        for r in (r for r in rows if (r["shots"], r["set"]) == (shots, name)):
            for arm in BY_TIME:
                if arm in r["arms"]:
                    line(axis, arm, [r["arms"][arm]["seconds"]], [r["arms"][arm]])
        axis.set_xscale("log")
        axis.set_xlim(min(taken) / 1.6, max(taken) * 1.6)  # the same everywhere: panels compare
        axis.xaxis.set_minor_formatter(NullFormatter())
        percent_axis(axis)
    for axis in axes[-len(sets) :]:
        axis.set_xlabel("wall time, seconds")
    for axis in axes[:: len(sets)]:
        axis.set_ylabel("accuracy")
    return legend(figure, axes)

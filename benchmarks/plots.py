"""Draws docs/results/*.svg from the result files beside them; what has no result file yet is left out.

python -m benchmarks.plots
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")  # no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter, ScalarFormatter

RESULTS = Path("docs/results")
# Okabe and Ito's palette, told apart with every common colour vision; ours first and strongest, rivals by marker too.
STYLES: dict[str, tuple[str, str, str]] = {
    "generated alone, best of 8": ("#d55e00", "o", "-"),
    "generated": ("#d55e00", "o", "-"),
    "service's answer": ("#000000", "s", "-"),
    "closed form": ("#999999", "d", "--"),
    "trunk probe": ("#0072b2", "^", "--"),
    "trunk probe, 100 a class": ("#0072b2", "v", ":"),
    "shared initialisation": ("#999999", "d", "--"),
    "nearest class mean": ("#009e73", "v", "--"),
    "logistic probe": ("#56b4e9", "x", "--"),
    "fine-tune 10": ("#cc79a7", ".", ":"),
    "fine-tune 100": ("#cc79a7", "P", ":"),
    "fine-tune 1000": ("#cc79a7", "*", ":"),
    "scratch 100": ("#e69f00", "1", ":"),
    "scratch 1000": ("#e69f00", "2", ":"),
    "random": ("#e69f00", "1", ":"),
    "retrieve": ("#b5a900", "+", ":"),
    "retrieved": ("#b5a900", "+", ":"),
}
Drawing = Callable[[dict[str, Any]], dict[str, Figure]]


def errors(cells: Sequence[dict[str, float]]) -> list[list[float]]:
    """Lengths of error bars, below and above, of intervals."""
    return [[max(0.0, c["mean"] - c["low"]) for c in cells], [max(0.0, c["high"] - c["mean"]) for c in cells]]


def _panels(titles: Sequence[str], *, columns: int = 4) -> tuple[Figure, list[Axes]]:
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(max(6.0, 3.1 * columns + 0.4), 2.9 * rows + 0.8), squeeze=False)
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    return figure, list(axes.flat[: len(titles)])


def _accuracy(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _ticks(axis: Axes, at: Sequence[float]) -> None:
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(list(at))


def _line(axis: Axes, name: str, x: Sequence[float], cells: Sequence[dict[str, float]]) -> None:
    colour, marker, dashes = STYLES[name]
    width = 1.8 if dashes == "-" else 1.2
    y = [c["mean"] for c in cells]
    axis.errorbar(x, y, errors(cells), label=name, color=colour, marker=marker, ms=5, ls=dashes, lw=width, elinewidth=1)


def _legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    width, height = figure.get_size_inches()
    columns = max(1, int(width // 2.3))
    figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=columns, frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0, (0.1 + 0.19 * -(-len(handles) // columns)) / height, 1, 1))
    return figure


def fewshot(content: dict[str, Any]) -> dict[str, Figure]:
    """Accuracy against images a class, and against wall time; a panel a set."""
    arms = [
        "generated alone, best of 8",
        "service's answer",
        "closed form",
        "trunk probe",
        "nearest class mean",
        "logistic probe",
        "fine-tune 100",
        "retrieve",
    ]
    drawn = {}
    for target in dict.fromkeys(r["target"] for r in content["rows"]):
        rows = [r for r in content["rows"] if r["target"] == target]
        sets = list(dict.fromkeys(r["set"] for r in rows))
        figure, axes = _panels([f"{s}\n{next(r['ways'] for r in rows if r['set'] == s)}-way" for s in sets])
        for axis, name in zip(axes, sets, strict=True):
            own = sorted((r for r in rows if r["set"] == name), key=lambda r: r["shots"])
            for arm in arms:
                points = [(r["shots"], r["arms"][arm]) for r in own if arm in r["arms"]]
                if points:
                    _line(axis, arm, [n for n, _ in points], [c for _, c in points])
            axis.set_xscale("log")
            _ticks(axis, [r["shots"] for r in own])
            axis.set_xlabel("images a class")
            _accuracy(axis)
        axes[0].set_ylabel("accuracy")
        drawn[f"fewshot-{target}"] = _legend(figure, axes)
        drawn[f"time-{target}"] = _times(rows, sets)
    return drawn


def _times(rows: list[dict[str, Any]], sets: list[str], *, wanted: int = 5) -> Figure:
    shots = min({r["shots"] for r in rows}, key=lambda n: abs(n - wanted))
    figure, axes = _panels([f"{s}\n{shots} images a class" for s in sets])
    for axis, name in zip(axes, sets, strict=True):
        (row,) = [r for r in rows if r["set"] == name and r["shots"] == shots]
        for arm, cell in row["arms"].items():
            if arm in STYLES and arm != "generated":
                _line(axis, arm, [cell["seconds"]], [cell])
        axis.set_xscale("log")
        axis.set_xlabel("wall time, seconds")
        _accuracy(axis)
    axes[0].set_ylabel("accuracy")
    return _legend(figure, axes)


def better_start(content: dict[str, Any]) -> dict[str, Figure]:
    """Accuracy after n epochs of training, by starting point."""
    sets = list(dict.fromkeys(r["set"] for r in content["rows"]))
    figure, axes = _panels(sets)
    for axis, name in zip(axes, sets, strict=True):
        for r in (r for r in content["rows"] if r["set"] == name):
            points = [(m.split()[0], c) for m, c in r["points"].items() if "epoch" in m]
            _line(axis, r["start"], range(len(points)), [c for _, c in points])
            axis.set_xticks(range(len(points)), [e for e, _ in points])
        axis.set_xlabel("epochs of training on all images")
        _accuracy(axis)
    axes[0].set_ylabel("test accuracy")
    return {"better_start": _legend(figure, axes)}


def seen_tasks(content: dict[str, Any]) -> dict[str, Figure]:
    """Distances to the nearest zoo model."""
    distances = content["settings"]["distances"]
    kinds = {
        "generated_to_nearest_zoo": ("generated to its nearest zoo model", "#d55e00", "-"),
        "zoo_nearest_neighbour": ("zoo model to its nearest other", "#0072b2", "--"),
        "closed_form_to_nearest_zoo": ("closed form to its nearest zoo model", "#000000", ":"),
    }
    known = {k: distances[k] for k in kinds if k in distances}
    if not known:
        return {}
    figure, (axis,) = _panels(["distance over all weights"])
    figure.set_size_inches(5.5, 3.6)
    most = max(max(v) for v in known.values())
    for kind, values in known.items():
        label, colour, dashes = kinds[kind]
        axis.hist(values, bins=25, range=(0, most), histtype="step", label=label, color=colour, ls=dashes, lw=1.6)
    axis.set_xlabel("Euclidean distance")
    axis.set_ylabel("networks")
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return {"distances": figure}


def novelty(content: dict[str, Any]) -> dict[str, Figure]:
    """The lead of generated networks against each score; a point a set, the mean of its tasks."""
    drawn = {}
    for target, tasks in content["settings"]["tasks_measured"].items():
        names = list(tasks[0]["scores"])
        figure, axes = _panels([n.split(":")[0] for n in names])
        for axis, name in zip(axes, names, strict=True):
            for kind, (colour, marker) in {"seen": ("#0072b2", "o"), "unseen": ("#d55e00", "^")}.items():
                sets = dict.fromkeys(t["set"] for t in tasks if (kind == "seen") == t["set"].endswith("trained on"))
                own = [[t for t in tasks if t["set"] == s] for s in sets]
                x = [sum(t["scores"][name] for t in s) / len(s) for s in own]
                label = "classes trained on" if kind == "seen" else "classes and sets never trained on, spoilt ones too"
                axis.scatter(
                    x, [sum(t["lead"] for t in s) / len(s) for s in own], 22, colour, marker=marker, label=label
                )
            axis.axhline(0, color="#999999", lw=0.8)
            axis.set_xlabel("score")
            _accuracy(axis)
        axes[0].set_ylabel("generated ahead of closed form")
        drawn[f"novelty-{target}"] = _legend(figure, axes)
    return drawn


DRAWINGS: dict[str, Drawing] = {
    "fewshot": fewshot,
    "better_start": better_start,
    "seen_tasks": seen_tasks,
    "novelty": novelty,
}


def draw(folder: Path) -> list[Path]:
    """Draw everything that a folder has results for; the files written."""
    written = []
    # The same figures give the same files: no dates, no random ids.
    with plt.rc_context({"svg.hashsalt": "loomweight", "svg.fonttype": "none", "font.size": 9}):
        for name, drawing in DRAWINGS.items():
            source = folder / f"{name}.json"
            if not source.exists():
                continue
            for title, figure in drawing(json.loads(source.read_text())).items():
                written.append(folder / f"{title}.svg")
                figure.savefig(written[-1], metadata={"Date": None}, facecolor="white")
                plt.close(figure)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    for path in draw(parser.parse_args().results):
        print(path)


if __name__ == "__main__":
    main()

"""Draws docs/results/*.svg from the result files beside them; what has no result file yet is left out.

python -m benchmarks.plots
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks import plots_fewshot, plots_similarity
from benchmarks.figures import legend, line, panels, percent_axis

RESULTS = Path("docs/results")
Drawing = Callable[[dict[str, Any]], dict[str, Figure]]


def better_start(content: dict[str, Any]) -> dict[str, Figure]:
    """Accuracy after n epochs of training, by starting point."""
    sets = list(dict.fromkeys(r["set"] for r in content["rows"]))
    figure, axes = panels(sets)
    for axis, name in zip(axes, sets, strict=True):
        for r in (r for r in content["rows"] if r["set"] == name):
            points = [(m.split()[0], c) for m, c in r["points"].items() if "epoch" in m]
            line(axis, r["start"], range(len(points)), [c for _, c in points])
            axis.set_xticks(range(len(points)), [e for e, _ in points])
        axis.set_xlabel("epochs of training on all images")
        percent_axis(axis)
    axes[0].set_ylabel("test accuracy")
    return {"better_start": legend(figure, axes)}


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
    figure, (axis,) = panels(["distance over all weights"])
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
        figure, axes = panels([n.split(":")[0] for n in names])
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
            percent_axis(axis)
        axes[0].set_ylabel("generated ahead of closed form")
        drawn[f"novelty-{target}"] = legend(figure, axes)
    return drawn


DRAWINGS: dict[str, Drawing] = {
    "fewshot": plots_fewshot.draw,
    "better_start": better_start,
    "seen_tasks": seen_tasks,
    "novelty": novelty,
    "similarity": plots_similarity.similarity,
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

"""Figures of the similarity benchmark: the matrix ordered by task, learning curves, score against transfer gain."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.retrieval import Floats
from benchmarks.similarity_bench import OURS

BLUE, RED, GREY = "#0072b2", "#d55e00", "#999999"


def similarity(content: dict[str, Any]) -> dict[str, Figure]:
    """Every figure that the result file has rows for."""
    rows = content["rows"]
    drawn = {}
    if "matrix" in rows:
        drawn["similarity-matrix"] = _matrix(rows["matrix"][0])
    if "curves" in rows:
        drawn["similarity-curves"] = _curves(rows["curves"], rows.get("b", []))
    if "d" in rows:
        drawn["similarity-transfer"] = _transfer(rows["d"])
    return drawn


def _matrix(row: dict[str, Any]) -> Figure:
    scores = np.array(row["scores"])
    figure, axis = plt.subplots(figsize=(7.5, 6.5))
    image = axis.imshow(scores, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    names = list(dict.fromkeys(row["tasks"]))
    middle = [np.mean([i for i, t in enumerate(row["tasks"]) if t == n]) for n in names]
    axis.set_yticks(middle, [n.replace("_", " ") for n in names], fontsize=7)
    axis.set_xticks([])
    axis.set_title("similarity of models of unseen tasks, ordered by task", fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.7)
    figure.tight_layout()
    return figure


def _curves(curves: list[dict[str, Any]], methods: list[dict[str, Any]]) -> Figure:
    b = [r for r in curves if r["protocol"] == "B"]
    whole, most = max(r["tasks"] for r in b), max(r["models"] for r in b)
    panels: list[tuple[str, str, str, list[dict[str, Any]]]] = [
        ("unseen tasks", "tasks learned from", "map", sorted((r for r in b if r["models"] == most), key=_tasks)),
        ("unseen tasks", "models a task", "map", sorted((r for r in b if r["tasks"] == whole), key=_models)),
        ("seen tasks", "models a task", "top1", sorted((r for r in curves if r["protocol"] == "A"), key=_models)),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.3))
    baselines = [r for r in methods if r["kind"] == "baseline"]
    for axis, (title, label, measure, points) in zip(axes, panels, strict=True):
        x = [_tasks(r) if label.startswith("tasks") else _models(r) for r in points]
        _interval_line(axis, x, [r[measure] for r in points], OURS, RED)
        if measure == "map" and baselines:
            best = max(baselines, key=lambda r: float(r["map"]["mean"]))
            axis.axhline(best["map"]["mean"], color=GREY, ls="--", lw=1, label=f"best baseline: {best['method']}")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label)
        axis.set_ylabel("mAP" if measure == "map" else "top-1")
        axis.set_ylim(0, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7.5, loc="lower right")
    figure.tight_layout()
    return figure


def _tasks(row: dict[str, Any]) -> int:
    return int(row["tasks"])


def _models(row: dict[str, Any]) -> int:
    return int(row["models"])


def _interval_line(axis: Axes, x: list[int], cells: list[dict[str, float]], label: str, colour: str) -> None:
    y = [c["mean"] for c in cells]
    below = [max(0.0, c["mean"] - c["low"]) for c in cells]
    above = [max(0.0, c["high"] - c["mean"]) for c in cells]
    axis.errorbar(x, y, [below, above], label=label, color=colour, marker="o", ms=4, lw=1.6, elinewidth=1)


def _transfer(rows: list[dict[str, Any]]) -> Figure:
    (own,) = [r for r in rows if r.get("scores")]
    (measured,) = [r for r in rows if r["method"] == "measured"]
    score, gain = np.array(own["scores"]), np.array(measured["gain"])
    upper = np.triu_indices(len(score), 1)
    both: Floats = (gain + gain.T) / 2
    figure, axis = plt.subplots(figsize=(5, 3.8))
    axis.scatter(score[upper], 100 * both[upper], 12, BLUE, alpha=0.6)
    cell = own["transfer_gain"]
    axis.set_title(
        f"pairs of unseen tasks; Spearman {cell['value']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})", fontsize=9
    )
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set_xlabel("similarity")
    axis.set_ylabel("transfer gain, points of accuracy")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure

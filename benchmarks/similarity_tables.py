"""docs/results/similarity.md from its result file: protocols A to D, controls, curves, calibration."""

from collections.abc import Callable
from typing import Any

from benchmarks.ablations_table import signed
from benchmarks.render_fewshot import grid, percent

Row = dict[str, Any]

KINDS = {
    "ours": "",
    "baseline": "compares weights",
    "control": "control",
    "runs the models": "upper bound: runs the networks on images",
}


def number(cell: Row | float | None) -> str:
    """A measure with its interval, two digits."""
    if cell is None:
        return "–"
    if isinstance(cell, dict):
        middle = cell.get("mean", cell.get("value"))
        return f"{middle:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"
    return f"{cell:.2f}"


def _a(rows: list[Row]) -> str:
    lines = [
        [r["method"], KINDS[r["kind"]], percent(r["top1"]), signed(r["ahead_of_best_baseline"])]
        for r in sorted(rows, key=lambda r: -r["top1"]["mean"])
    ]
    return grid(["method", "", "top-1, %", f"points ahead of {rows[0]['ahead_of_best_baseline']['baseline']}"], lines)


def _b(rows: list[Row]) -> str:
    lines = [
        [
            r["method"],
            KINDS[r["kind"]],
            number(r["map"]),
            f"{100 * r['ahead_of_best_baseline']['mean']:+.0f}",
            *(f"{100 * r[f'rank{k}']['mean']:.0f}" for k in (1, 5, 10)),
            number(r["auc"]),
            number(r["nmi"]),
            number(r.get("map_withheld")),
        ]
        for r in sorted(rows, key=lambda r: -r["map"]["mean"])
    ]
    ahead = f"points of mAP ahead of {rows[0]['ahead_of_best_baseline']['baseline']}"
    head = ["method", "", "mAP", ahead, "CMC 1", "5", "10", "pair AUC", "NMI", "mAP, withheld classes alone"]
    return grid(head, lines)


def _c(rows: list[Row]) -> str:
    lines = [
        [
            r["network"],
            f"{100 * r['accuracy']:.1f}",
            r["method"],
            number(r["map"]),
            number(r["auc"]),
            number(r["chance"]),
        ]
        for r in rows
    ]
    return grid(["queries", "their accuracy, %", "method", "mAP", "pair AUC", "chance mAP"], lines)


def _d(rows: list[Row]) -> str:
    found = [r for r in rows if r["method"] != "measured"]
    lines = [[r["method"], number(r["superclass"]), number(r["transfer_gain"])] for r in found]
    return grid(["Spearman of the score with", "superclass relation", "measured transfer gain"], lines)


def _controls(rows: list[Row]) -> str:
    lines = [
        [r["set"], r["method"], number(r["map"]), number(r["chance"]), number(r["above_chance"]), number(r["auc"])]
        for r in rows
    ]
    return grid(["set", "method", "mAP", "chance", "above chance", "pair AUC"], lines)


def _curves(rows: list[Row]) -> str:
    lines = [
        [
            r["protocol"],
            str(r["tasks"]),
            str(r["models"]),
            number(r["map"]) if "map" in r else f"{percent(r['top1'])} %",
        ]
        for r in rows
    ]
    return grid(["protocol", "tasks", "models a task learned from", "mAP (B) or top-1 (A)"], lines)


def _exactness(rows: list[Row]) -> str:
    return grid(
        ["models against their permuted copies", "least similarity", "largest error"],
        [[str(r["models"]), f"{r['least_similarity']:.7f}", f"{r['largest_error']:.1e}"] for r in rows],
    )


def _calibration(rows: list[Row]) -> str:
    lines = [[f"{r['from']:.1f}", f"{r['mean']:.2f}", f"{r['same_task']:.2f}", str(r["pairs"])] for r in rows]
    return grid(["probability from", "its mean", "share of one task", "pairs"], lines)


PARTS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "a": ("A: new models of seen tasks", _a),
    "b": ("B: models of unseen tasks", _b),
    "c": ("C: unseen architectures, unseen tasks", _c),
    "d": ("D: relatedness of tasks", _d),
    "controls": ("Other pairings and controls, by protocol B's retrieval", _controls),
    "curves": ("What more models and more tasks would give", _curves),
    "exactness": ("Exact under permutation", _exactness),
    "calibration": ("Is the probability to be believed? (withheld tasks, half of the pairs of one task)", _calibration),
}


SHORT = (
    "chain, contrastive",
    "chain-linear, softmax",
    "second-order, softmax",
    "statistics",
    "aligned cosine",
    "cosine",
)
_NAMES = {
    "chain, contrastive": "served: learned probes through the layers",
    "chain-linear, softmax": "the same without rectifiers: products of matrices alone",
    "second-order, softmax": "the published second-order network, reconstructed",
    "statistics": "statistics of each tensor",
    "aligned cosine": "cosine after matching hidden units",
}


def short(content: Row) -> str:
    """What is served beside what a user would do instead."""
    a, b = ({r["method"]: r for r in content["rows"][part]} for part in ("a", "b"))
    lines = [[_NAMES.get(m, m), percent(a[m]["top1"]), number(b[m]["map"]), f"{b[m]['auc']:.2f}"] for m in SHORT]
    upper = "logits on probe images"
    lines.append(
        [
            "upper bound: runs both networks on images",
            percent(a[upper]["top1"]),
            number(b[upper]["map"]),
            f"{b[upper]['auc']:.2f}",
        ]
    )
    return grid(["compared by", "A: top-1, %", "B: mAP", "B: AUC of pairs"], lines)


def table(content: Row) -> str:
    """Every part that was made."""
    s, rows = content["settings"], content["rows"]
    tasks = s["tasks"]
    intro = (
        f"{s['models']} models ({', '.join(s['networks'])}; independent seeds; test accuracy "
        f"{percent(s['test_accuracy'])} %; {s['core_seconds'] / 3600:.1f} core-hours). Protocol B learns from "
        f"{tasks['train']} tasks and asks for {tasks['unseen']} others, {tasks['withheld']} of them of classes that no "
        "training may see. Intervals go over tasks.\n"
    )
    found = [f"## {title}\n\n{made(rows[name])}" for name, (title, made) in PARTS.items() if name in rows]
    return "\n".join([intro, *found])

"""What the plots have in common: one style an arm everywhere, panels, error bars, a legend below."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("svg")  # no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter, ScalarFormatter

# Okabe and Ito's palette, told apart with every common colour vision; ours first and strongest, rivals by marker too.
STYLES: dict[str, tuple[str, str, str]] = {
    "generated alone, best of 8": ("#d55e00", "o", "-"),
    "generated": ("#d55e00", "o", "-"),
    "service's answer": ("#000000", "s", "-"),
    "conditional mean": ("#d55e00", "h", ":"),
    "closed form": ("#999999", "d", "--"),
    "shared initialisation": ("#999999", "d", "--"),
    "trunk probe": ("#0072b2", "^", "--"),
    "trunk probe, then fine-tune 100": ("#0072b2", "D", ":"),
    "trunk probe, 100 a class": ("#0072b2", "v", ":"),
    "nearest class mean": ("#009e73", "v", "--"),
    "logistic probe": ("#56b4e9", "x", "--"),
    "fine-tune 10": ("#cc79a7", ".", ":"),
    "fine-tune 100": ("#cc79a7", "P", ":"),
    "fine-tune 1000": ("#cc79a7", "*", ":"),
    "scratch 100": ("#e69f00", "1", ":"),
    "scratch 1000": ("#e69f00", "2", ":"),
    "random": ("#e69f00", "1", ":"),
    "best zoo trunk, new head": ("#6b5b00", ">", "--"),
    "best zoo model by the samples": ("#6b5b00", "<", ":"),
    "retrieve": ("#b5a900", "+", ":"),
    "retrieved": ("#b5a900", "+", ":"),
    "average": ("#b5a900", "X", ":"),
}


def errors(cells: Sequence[dict[str, float]]) -> list[list[float]]:
    """Lengths of error bars, below and above, of intervals."""
    return [[max(0.0, c["mean"] - c["low"]) for c in cells], [max(0.0, c["high"] - c["mean"]) for c in cells]]


def panels(titles: Sequence[str], *, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure with one titled panel each, at most so many side by side."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(max(6.0, 3.1 * columns + 0.4), 2.9 * rows + 0.8), squeeze=False)
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    for axis, title in zip(axes.flat, titles, strict=False):  # the grid may have places left over
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    return figure, list(axes.flat[: len(titles)])


def percent_axis(axis: Axes) -> None:
    """Shares as whole percent."""
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def ticks(axis: Axes, at: Sequence[float]) -> None:
    """Only these, as plain numbers, on a logarithmic axis too."""
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(list(at))


def line(axis: Axes, name: str, x: Sequence[float], cells: Sequence[dict[str, float]]) -> None:
    """An arm in its style, with the intervals as error bars."""
    colour, marker, dashes = STYLES[name]
    width = 1.8 if dashes == "-" else 1.2
    y = [c["mean"] for c in cells]
    axis.errorbar(x, y, errors(cells), label=name, color=colour, marker=marker, ms=5, ls=dashes, lw=width, elinewidth=1)


def legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    """The same figure with one legend of all panels below."""
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    width, height = figure.get_size_inches()
    columns = max(1, int(width // 2.3))
    figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=columns, frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0, (0.1 + 0.19 * -(-len(handles) // columns)) / height, 1, 1))
    return figure

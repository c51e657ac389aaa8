"""In which order a checkpoint's layers come, and what each of them reads, told from names and widths.

A wrong link costs meaning, never exactness: where no signal has the width that a layer reads, the layer is given the
mean over channels of the last signal, which no order of hidden units can change.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

INPUT, MEAN = -1, -2
Shape = tuple[str, tuple[int, ...]]
"""Kind of a layer, and its weight's (outputs, inputs, height, width)."""


@dataclass(frozen=True)
class Link:
    """What a layer reads: the signal behind layer `source`, INPUT, or MEAN (the last signal's mean channel).

    `spread` values of every channel side by side make the layer's inputs (a flattened map); `groups` as in a grouped
    convolution; `joins`: a shortcut, whose output is added to the signal that it bypasses.
    """

    source: int
    spread: int = 1
    groups: int = 1
    joins: bool = False


@lru_cache(maxsize=65_536)
def natural(name: str) -> list[list[tuple[int, int, str]]]:
    """Sort key in which numbers inside a name count as numbers."""
    return [
        [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.findall(r"\d+|\D+", part)]
        for part in name.split(".")
    ]


def order(layers: Mapping[str, Shape]) -> list[str]:
    """Names of the layers, the one nearest to the input first."""
    names = sorted(layers, key=natural)
    split = {name: name.split(".") for name in names}
    while len(names) > 1 and len({tuple(p[:1]) for p in split.values()}) == 1 and min(map(len, split.values())) > 1:
        split = {name: parts[1:] for name, parts in split.items()}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(split[name][0], []).append(name)
    convolutions = [layers[n][1] for n in names if layers[n][0] == "conv"]
    stem = _stem(convolutions)

    def rank(group: list[str]) -> int:
        shapes = [layers[n] for n in group]
        if any(kind == "conv" and shape[1] == stem for kind, shape in shapes[:2]):
            return 0
        if re.search(r"emb|wte|wpe", group[0].lower()):
            return 0
        outputs = shapes[-1][1][0]
        unread = all(outputs != layers[n][1][1] for n in names)
        plain = bool(convolutions) and all(kind != "conv" for kind, _ in shapes)
        return 1 + plain + unread

    return [name for group in sorted(groups.values(), key=rank) for name in group]


def _stem(convolutions: Sequence[tuple[int, ...]]) -> int | None:
    """Channels of the pictures that the network takes: few, no other convolution's outputs, and three before one.

    A depthwise convolution has one input channel too.
    """
    inputs, outputs = {s[1] for s in convolutions}, {s[0] for s in convolutions}
    few = [n for n in (3, 1, 2, 4) if n in inputs]
    return next((n for n in few if n not in outputs), few[0] if few else None)


def link(layers: Sequence[Shape]) -> list[Link]:
    """What every layer of an ordered list reads."""
    links: list[Link] = []
    for index, (kind, shape) in enumerate(layers):
        if index == 0:
            links.append(Link(INPUT))
            continue
        found = _source(kind, shape, layers[:index])
        joins = found.source not in (MEAN, index - 1) and shape[0] == layers[index - 1][1][0]
        links.append(Link(found.source, found.spread, found.groups, joins))
    return links


def _source(kind: str, shape: tuple[int, ...], before: Sequence[Shape]) -> Link:
    outputs, inputs = shape[:2]
    last = len(before) - 1
    width, map_before = before[last][1][0], before[last][0] == "conv"
    if inputs == width:
        return Link(last)
    if kind == "linear" and map_before and inputs % width == 0 and math.isqrt(inputs // width) ** 2 == inputs // width:
        return Link(last, spread=inputs // width)
    if kind == "conv" and inputs == 1 and outputs % width == 0:
        return Link(last, groups=width)
    older = [j for j in range(last, -1, -1) if before[j][1][0] == inputs]
    if older:
        return Link(older[0])
    if kind == "conv" and width % inputs == 0 and outputs % (width // inputs) == 0:
        return Link(last, groups=width // inputs)
    return Link(MEAN)

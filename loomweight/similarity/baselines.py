"""What a learned similarity must beat: comparisons of two checkpoints that nobody trained.

Vectors for collections of models (`raw`, `layerwise`, `statistics`, `norms`, `singular_values`), to be compared by
cosine; and `aligned`, a comparison of two models after weight matching (Git Re-Basin; Ainsworth et al. 2023, section
3.2) along the links of their readings.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from loomweight.similarity.layers import Reading, ReadLayer

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
LARGE = 1_000_000
"""Weights above which matching makes one sweep over what layers read, instead of five over both sides."""
MATCHING = 2e10
"""Sum over sweeps of layers' units cubed, what matching takes at worst, above which it is left out: some seconds."""
_AT_ONCE = 2**20


def raw(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values of all float tensors, by name."""
    return torch.cat([tensors[k].float().flatten() for k in sorted(tensors) if tensors[k].is_floating_point()])


def layerwise(tensors: Mapping[str, Tensor]) -> Tensor:
    """As `raw`, every tensor scaled to unit length first."""
    floats = [tensors[k].float().flatten() for k in sorted(tensors) if tensors[k].is_floating_point()]
    return torch.cat([t / t.norm().clamp_min(1e-12) for t in floats])


def statistics(tensors: Mapping[str, Tensor], *, only: str = "all") -> Tensor:
    """s(W) of SANE: mean, variance and quantiles 1/25/50/75/99 of every float tensor, by name; 7 values each.

    `only="vectors"` leaves the 1-D tensors: biases, and everything that normalisation layers hold;
    `only="running"` their running statistics alone. Empty where a checkpoint has none.
    """
    found = []
    for name in sorted(tensors):
        tensor = tensors[name]
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if (only == "vectors" and tensor.ndim != 1) or (only == "running" and ".running_" not in name):
            continue
        x = tensor.float().flatten().numpy()
        found.append(np.concatenate(([x.mean(), x.var()], np.quantile(x, QUANTILES))))
    return torch.from_numpy(np.concatenate(found).astype(np.float32)) if found else torch.zeros(0)


def norms(tensors: Mapping[str, Tensor]) -> Tensor:
    """Logarithm of every float tensor's length, by name."""
    floats = [tensors[k].float() for k in sorted(tensors) if tensors[k].is_floating_point()]
    return torch.stack([t.norm() for t in floats]).clamp_min(1e-12).log()


def singular_values(reading: Reading, *, most: int = 64) -> Tensor:
    """The largest singular values of every layer's matrix, over their root sum of squares: (layers * most,)."""
    found = []
    for layer in reading.layers:
        values = torch.linalg.svdvals(layer.weight.flatten(1))[:most]
        found.append(torch.nn.functional.pad(values / values.norm().clamp_min(1e-12), (0, most - len(values))))
    return torch.cat(found)


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Cosine of two vectors; None where their lengths differ or one is empty."""
    if a.shape != b.shape or not a.numel():
        return None
    dot, one, two = (0.0, 0.0, 0.0)
    # A part at a time: doubles of everything would take twice the memory of both.
    for x, y in zip(torch.split(a, _AT_ONCE), torch.split(b, _AT_ONCE), strict=True):
        p, q = x.double(), y.double()
        dot, one, two = dot + float(p @ q), one + float(p @ p), two + float(q @ q)
    return dot / max(math.sqrt(one * two), 1e-300)


def aligned(a: Reading, b: Reading) -> float | None:
    """Cosine of the weights once b's hidden units are matched with a's; None for different or very wide networks."""
    if a.fingerprint != b.fingerprint or _sweeps(a) * sum(layer.outputs**3 for layer in a.layers[:-1]) > MATCHING:
        return None
    return cosine(_flat(a, [torch.arange(x.outputs) for x in a.layers]), aligned_to(a, b))


def aligned_to(reference: Reading, reading: Reading) -> Tensor:
    """All weights and biases of a reading, its hidden units matched with those of a reference of its architecture."""
    large = reference.parameters > LARGE
    orders = [torch.arange(layer.outputs) for layer in reading.layers]
    for _ in range(_sweeps(reference)):
        moved = False
        for j in range(len(reading.layers) - 1):
            found = _match(reference, reading, orders, j, both_sides=not large)
            moved |= not torch.equal(found, orders[j])
            orders[j] = found
        if not moved:
            break
    return _flat(reading, orders)


def _sweeps(reading: Reading) -> int:
    return 1 if reading.parameters > LARGE else 5


def _flat(reading: Reading, orders: list[Tensor]) -> Tensor:
    parts = [(_inputs(x, orders)[o].flatten(), x.bias[o]) for x, o in zip(reading.layers, orders, strict=True)]
    return torch.cat([p for pair in parts for p in pair])


def _match(a: Reading, b: Reading, orders: list[Tensor], j: int, *, both_sides: bool) -> Tensor:
    layer = b.layers[j]
    if layer.link.groups > 1:
        source = orders[layer.link.source]
        # A depthwise filter goes where its channel goes; other groups keep their order.
        return source if len(source) == layer.outputs == layer.link.groups else orders[j]
    gain = a.layers[j].weight.flatten(1) @ _inputs(layer, orders).flatten(1).T
    gain = gain + torch.outer(a.layers[j].bias, layer.bias)
    if both_sides:
        for k, reader in enumerate(b.layers):
            if reader.link.source == j and reader.link.groups == 1:
                ours, theirs = a.layers[k].weight, reader.weight[orders[k]]
                gain = gain + _by_input(ours, layer.outputs) @ _by_input(theirs, layer.outputs).T
    rows, columns = linear_sum_assignment(torch.nan_to_num(gain).numpy(), maximize=True)
    order = torch.empty(layer.outputs, dtype=torch.long)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return order


def _inputs(layer: ReadLayer, orders: list[Tensor]) -> Tensor:
    """A layer's weight with its inputs in the order that its source's units now have."""
    link = layer.link
    if link.source < 0 or link.groups > 1:
        return layer.weight
    order = orders[link.source]
    by_unit = layer.weight.reshape(layer.outputs, len(order), link.spread, *layer.weight.shape[2:])
    return by_unit[:, order].flatten(1, 2)


def _by_input(weight: Tensor, units: int) -> Tensor:
    """(outputs, inputs, ...) as (units, everything read from that unit)."""
    return weight.reshape(len(weight), units, -1).transpose(0, 1).flatten(1)

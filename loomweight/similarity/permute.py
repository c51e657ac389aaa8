"""Copies of a checkpoint with its hidden units in another order: the symmetry that a similarity must not see.

Works on whatever `layers.read` connects: the units behind a layer are reordered in every tensor that holds one value,
row or column for each of them. A shortcut and what it bypasses share one order.
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from loomweight.errors import InvalidCheckpoint
from loomweight.similarity.layers import Reading, read


def shuffled(tensors: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    """The same function with every hidden layer's units in a random order; the last layer's outputs keep theirs.

    Raises InvalidCheckpoint where a layer's input is not known, or where convolutions are grouped: no order of theirs
    is known to be free.
    """
    reading = read(tensors)
    if reading.guessed or any(layer.link.groups > 1 for layer in reading.layers):
        raise InvalidCheckpoint("units can be reordered only where every layer's input is known and whole")
    orders = _orders(reading, generator)
    moved = dict(tensors)
    for index, layer in enumerate(reading.layers):
        weight = tensors[layer.name]
        table = layer.kind == "embedding"
        weight = weight.transpose(0, 1) if table else weight
        if layer.link.source >= 0:
            order = orders[layer.link.source]
            by_unit = weight.reshape(len(weight), len(order), layer.link.spread, *weight.shape[2:])
            weight = by_unit[:, order].flatten(1, 2)
        weight = weight[orders[index]]
        moved[layer.name] = (weight.transpose(0, 1) if table else weight).contiguous()
        for name in layer.vectors:
            moved[name] = tensors[name][orders[index]]
    return moved


def _orders(reading: Reading, generator: Generator) -> list[Tensor]:
    layers = reading.layers
    space = list(range(len(layers)))  # layers that write to the same units
    for index, layer in enumerate(layers):
        if layer.link.joins:
            space[index] = space[index - 1]
    drawn = {s: torch.randperm(layers[s].outputs, generator=generator) for s in dict.fromkeys(space)}
    drawn[space[-1]] = torch.arange(layers[-1].outputs)
    return [drawn[s] for s in space]

"""Checkpoint <-> token sequence, after SANE (Schürholt et al. 2024, section 3.1).

Each layer is a matrix of one row per output unit: its weights, then its bias. Rows are zero-padded and cut into pieces
of `size` values; a mask is 1 on real values; each token knows its place: number in the sequence, layer, row in the
layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from loomweight.architectures import ArchitectureSpec, Layer, Weights
from loomweight.errors import InvalidCheckpoint


@dataclass(frozen=True)
class TokenSequence:
    """A checkpoint as tokens. Padding never travels without its mask."""

    tokens: Tensor  # (t, size) float
    mask: Tensor  # (t, size) bool: real values
    positions: Tensor  # (t, 3) int: n in sequence, l layer, k row


def _pieces(layer: Layer, size: int) -> int:
    return -(-(layer.fan_in + 1) // size)


def to_tokens(spec: ArchitectureSpec, weights: Weights, size: int) -> TokenSequence:
    """Cut a checkpoint into tokens; raises InvalidCheckpoint where it does not fit the architecture."""
    classes = spec.classes(weights)
    tokens, masks, positions = [], [], []
    for index, layer in enumerate(spec.layers(classes)):
        weight, bias = weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"]
        rows = torch.cat((weight.flatten(1), bias[:, None]), 1)  # (outputs, fan_in + 1)
        pieces = _pieces(layer, size)
        padded = rows.new_zeros(layer.outputs, pieces * size)
        padded[:, : rows.shape[1]] = rows
        real = torch.arange(pieces * size).expand_as(padded) < rows.shape[1]
        tokens.append(padded.reshape(-1, size))  # (outputs * pieces, size)
        masks.append(real.reshape(-1, size))
        row = torch.arange(layer.outputs).repeat_interleave(pieces)
        positions.append(torch.stack((torch.zeros_like(row), torch.full_like(row, index), row), 1))
    place = torch.cat(positions)
    place[:, 0] = torch.arange(len(place))
    return TokenSequence(torch.cat(tokens), torch.cat(masks), place)


def from_tokens(spec: ArchitectureSpec, tokens: Tensor, classes: int) -> dict[str, Tensor]:
    """Exact inverse of `to_tokens` for (t, size) tokens; raises InvalidCheckpoint where their number does not fit."""
    size = tokens.shape[1]
    counts = [layer.outputs * _pieces(layer, size) for layer in spec.layers(classes)]
    if len(tokens) != sum(counts):
        raise InvalidCheckpoint(
            f"{spec.name} with {classes} classes has {sum(counts)} tokens of {size}, not {len(tokens)}"
        )
    weights = {}
    for layer, piece in zip(spec.layers(classes), torch.split(tokens, counts), strict=True):
        rows = piece.reshape(layer.outputs, -1)[:, : layer.fan_in + 1]
        shape = (
            (layer.outputs, layer.inputs, layer.kernel, layer.kernel) if layer.kernel else (layer.outputs, layer.inputs)
        )
        weights[f"{layer.name}.weight"] = rows[:, :-1].reshape(shape)
        weights[f"{layer.name}.bias"] = rows[:, -1].clone()
    return weights

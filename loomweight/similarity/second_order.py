"""The published second-order network, reconstructed (LPS, arXiv 1907.11943, from its abstract and public code's
outline).

First layer: every filter is dotted with learned meta-filters; the responses of each are sorted over output channels,
which is the alignment: their order does not matter; then a linear map. Later layers: filters are split into kernels;
every meta-kernel is matched with its best input kernel (maximum over input channels), summed over the kernels of its
meta-filter, sorted over output channels, then a linear map. Stages are fused as x1 + 0.1 (x2 + x3 + x4).

Ours: kernels of other sizes are resized to 3x3; sorted responses are read at a fixed number of quantiles, so that any
width fits; layers behind the fourth share its stage; each layer is scaled to unit variance first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from loomweight.similarity.layers import Reading, ReadLayer
from loomweight.similarity.network import Embeddings, unit

STAGES = 4


@dataclass(frozen=True)
class SecondOrderConfig:
    """Shape: meta-filters of the first stage and of later ones, kernels of a later meta-filter, quantiles, width."""

    first: int = 100
    later: int = 50
    kernels: int = 4
    quantiles: int = 32
    width: int = 128


class SecondOrderNetwork(nn.Module):
    """Readings to embeddings; see the module's text."""

    def __init__(self, config: SecondOrderConfig, generator: Generator) -> None:
        super().__init__()
        c = self.config = config
        self.first = nn.Parameter(torch.randn(c.first, 27, generator=generator) / 27**0.5)
        later = torch.randn(STAGES - 1, c.later * c.kernels, 9, generator=generator) / 3
        self.later = nn.Parameter(later)
        widths = [c.first] + [c.later] * (STAGES - 1)
        self.norms = nn.ModuleList([nn.LayerNorm(c.quantiles * n) for n in widths])
        self.maps = nn.ModuleList([nn.Linear(c.quantiles * n, c.width) for n in widths])
        for layer in self.maps:
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
                layer.bias.zero_()

    @property
    def dim(self) -> int:
        """Values of a model's vector."""
        return self.config.width

    def forward(self, readings: Sequence[Reading]) -> Embeddings:
        """One vector a model (n, width), and the stages' own vectors (layers, width)."""
        models, layers = [], []
        for reading in readings:
            stages = torch.stack([self._stage(i, layer) for i, layer in enumerate(reading.layers)])  # (layers, width)
            later = stages[1:].sum(0) * (STAGES - 1) / max(1, len(stages) - 1)
            models.append(stages[0] + 0.1 * later)
            layers.append(unit(stages))
        return Embeddings(unit(torch.stack(models)), layers)

    def _stage(self, index: int, layer: ReadLayer) -> Tensor:
        stage = min(index, STAGES - 1)
        weight = layer.weight / layer.weight.square().mean().sqrt().clamp_min(1e-12)
        if weight.shape[2:] != (3, 3):
            weight = F.interpolate(weight, (3, 3), mode="bilinear", align_corners=False)
        if stage == 0:
            filters = weight if weight.shape[1] == 3 else weight.mean(1, keepdim=True).expand(-1, 3, -1, -1)
            found = filters.flatten(1) @ self.first.T  # (outputs, first)
        else:
            matches = weight.flatten(2) @ self.later[stage - 1].T  # (outputs, inputs, later * kernels)
            best = matches.amax(1)  # (outputs, later * kernels)
            found = best.reshape(len(best), self.config.later, self.config.kernels).sum(2)
        ranked = found.sort(0).values.T[None]  # (1, filters, outputs)
        at = F.interpolate(ranked, self.config.quantiles, mode="linear", align_corners=True)[0]  # (filters, quantiles)
        out: Tensor = self.maps[stage](self.norms[stage](at.flatten()))
        return out

"""Our second-order network: a checkpoint's layer tokens (see `chain`) to one vector a model and one a layer.

What it learns is the probes, which start as coloured noise, and where to look. A few slots attend over the layers:
their keys are positions that know the architecture (relative depth, kind, widths), their values the tokens
themselves; they start at even relative depths, the last slot at the last layer. A slot's token, less the mean over
models, is brought to unit length and weighted by a learned share. Untrained, the cosine of two vectors is a centred
CKA by depth.

Deeper maps behind the tokens (linear ones from principal components, a transformer over layers) fit the training
tasks at once and lost on tasks not seen in training (docs/decisions/0005); probes transfer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn

from loomweight.similarity import chain
from loomweight.similarity.layers import Reading

KINDS = ("conv", "linear", "embedding")
PLACES = len(KINDS) + 6
PROBE_RATE = 30.0
"""Probes are stored at a thirtieth of their values, which makes an adaptive optimiser's steps thirty times as large."""


@dataclass(frozen=True)
class ChainConfig:
    """Shape of the network. `slots` counts the places looked at, the last layer included."""

    probes: int = 64
    side: int = 16
    rectified: bool = True
    slots: int = 4
    width: int = 16

    @property
    def token(self) -> int:
        """Values of a layer token."""
        return self.probes * (self.probes + 1) // 2


@dataclass(frozen=True)
class Embeddings:
    """Vectors of unit length: one a model (n, dim), and for each model one a layer (layers, width)."""

    models: Tensor
    layers: list[Tensor]


def unit(x: Tensor) -> Tensor:
    """To length one along the last dimension; zeros stay zeros."""
    size: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / size.clamp_min(1e-8)


def places(reading: Reading) -> Tensor:
    """Where each layer stands and what it is: (layers, PLACES)."""
    count = len(reading.layers)
    rows = []
    for i, layer in enumerate(reading.layers):
        outputs, inputs, height, _ = layer.weight.shape
        kind = [float(layer.kind == k) for k in KINDS]
        scale = [torch.tensor(float(n)).log2().item() / 8 for n in (outputs, inputs, height)]
        rows.append([*kind, (i + 1) / count, float(i == 0), float(i == count - 1), *scale])
    return torch.tensor(rows)


class ChainNetwork(nn.Module):
    """Readings to embeddings; see the module's text."""

    means: Tensor  # (slots, token)

    def __init__(self, config: ChainConfig, generator: Generator) -> None:
        super().__init__()
        c = self.config = config
        self.probes = nn.Parameter(chain.smooth_noise(c.probes, c.side, generator) / PROBE_RATE)
        # Late layers tell tasks apart, early ones hardly.
        self.shares = nn.Parameter(torch.linspace(0, 2, c.slots) if c.slots > 1 else torch.zeros(1))
        self.look = nn.Sequential(nn.Linear(PLACES, c.width), nn.GELU(), nn.Linear(c.width, c.slots))
        with torch.no_grad():
            first, last = self.look[0], self.look[2]
            assert isinstance(first, nn.Linear)
            assert isinstance(last, nn.Linear)
            first.weight.copy_(torch.randn(first.weight.shape, generator=generator) / PLACES**0.5)
            for start in (first.bias, last.weight, last.bias):
                start.zero_()
        self.register_buffer("means", torch.zeros(c.slots, c.token))
        self.mean_of: Callable[[Tensor], Tensor] = partial(torch.mean, dim=0)
        """Of a training batch (n, slots, token); another where a batch is shared out over processes."""

    @property
    def dim(self) -> int:
        """Values of a model's vector."""
        return self.config.slots * self.config.token

    def tokens(self, reading: Reading) -> Tensor:
        """Layer tokens (layers, token) of one checkpoint."""
        return chain.tokens(reading, PROBE_RATE * self.probes, rectified=self.config.rectified)

    def forward(self, readings: Sequence[Reading]) -> Embeddings:
        """Embed checkpoints of any architectures. In training the mean is the batch's, as in batch normalisation."""
        tokens = [self.tokens(r) for r in readings]
        looks = [self._looks(r) for r in readings]  # (slots, layers) each
        at_slots = torch.stack([look @ t for look, t in zip(looks, tokens, strict=True)])  # (n, slots, token)
        means = self.mean_of(at_slots.detach()) if self.training else self.means
        # A slot without a layer, or at a layer that answers every probe alike, says nothing.
        present = at_slots.detach().norm(dim=-1, keepdim=True) > 1e-6
        shares = self.shares.softmax(0).sqrt()[:, None]
        models = unit((unit(at_slots - means) * present * shares).flatten(1))
        layers = [unit(t - self._mean_by_layer(look)) for t, look in zip(tokens, looks, strict=True)]
        return Embeddings(models, layers)

    @torch.no_grad()
    def settle(self, readings: Sequence[Reading]) -> None:
        """Set the mean to that of the training models, with the probes as they now are."""
        self.means.copy_(torch.stack([self._looks(r) @ self.tokens(r) for r in readings]).mean(0))

    def _looks(self, reading: Reading) -> Tensor:
        start = starting_looks(len(reading.layers), self.config.slots)
        logits = (start + 1e-3).log() + self.look(places(reading)).T  # (slots, layers)
        only_last = torch.zeros_like(logits, dtype=torch.bool)
        only_last[:-1, -1] = only_last[-1, :-1] = True  # the last layer's responses are of another kind
        looks = logits.masked_fill(only_last, -torch.inf).softmax(1)
        return torch.nan_to_num(looks, nan=0.0)  # no hidden layer: nothing to look at

    def _mean_by_layer(self, looks: Tensor) -> Tensor:
        share = looks / looks.sum(0).clamp_min(1e-12)  # (slots, layers)
        return share.T @ self.means


def starting_looks(layers: int, slots: int) -> Tensor:
    """How much of each layer each slot sees at the start: (slots, layers), the last slot the last layer alone.

    Hidden slots stand at even depths among the hidden layers, the first on the first; a layer between two is shared.
    """
    weights = torch.zeros(slots, layers)
    weights[-1, -1] = 1
    hidden, own = layers - 1, slots - 1
    if hidden and own:
        at = torch.linspace(0, hidden - 1, own) if own > 1 else torch.tensor([hidden - 1.0])
        reach = max(1.0, (hidden - 1) / max(1, own - 1))
        near = (1 - (at[:, None] - torch.arange(hidden)).abs() / reach).clamp_min(0)
        weights[:-1, :-1] = near / near.sum(1, keepdim=True)
    return weights

"""The weight autoencoder: checkpoints of one architecture <-> a few latent tokens.

A checkpoint is taken as its difference from the shared initialisation, cut into tokens (tokens.py), each layer brought
to unit scale. The trunk's tokens become `latents` global latent tokens, each head row becomes the latent token of its
class; so class order and class count pass through unchanged. Both maps are linear with Gaussian noise on the latents (a
linear VAE; Lucas et al. 2019): a zoo of hundreds determines a subspace, not a deep encoder, and a zero latent is the
shared network exactly. It starts from the zoo's principal components and is then trained for weights and for behaviour
(docs/decisions/0004).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loomweight.architectures import ArchitectureSpec, Weights
from loomweight.tokens import TokenSequence, to_tokens

TOKEN_SIZE = 289
"""Values in a token: the longest row of `cnn-l` with its bias, as in SANE."""


@dataclass(frozen=True)
class WeightVaeConfig:
    """Shape: `latents` global tokens, all latent tokens of `dim` values; `row` values in a head row, bias included."""

    trunk: int  # weights and biases below the head
    row: int
    latents: int
    dim: int


def row_tokens(spec: ArchitectureSpec) -> int:
    """Tokens that one head row takes."""
    return -(-(spec.width + 1) // TOKEN_SIZE)


def split(spec: ArchitectureSpec, sequence: TokenSequence, classes: int) -> tuple[Tensor, Tensor]:
    """Tokens to the trunk's values (p,) and head rows (classes, width + 1), by the mask."""
    first = len(sequence.tokens) - classes * row_tokens(spec)
    trunk = sequence.tokens[:first][sequence.mask[:first]]
    rows = sequence.tokens[first:].reshape(classes, -1)[:, : spec.width + 1]
    return trunk, rows


def join(spec: ArchitectureSpec, trunk: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Exact inverse of `split` after `to_tokens`: trunk values (p,) and head rows (classes, width + 1) to tensors."""
    weights: dict[str, Tensor] = {}
    first = 0
    for layer in spec.trunk:
        matrix = trunk[first : first + layer.outputs * (layer.fan_in + 1)].view(layer.outputs, layer.fan_in + 1)
        first += matrix.numel()
        shape = (
            (layer.outputs, layer.inputs, layer.kernel, layer.kernel) if layer.kernel else (layer.outputs, layer.inputs)
        )
        weights[f"{layer.name}.weight"] = matrix[:, :-1].reshape(shape)
        weights[f"{layer.name}.bias"] = matrix[:, -1]
    return {**weights, "head.weight": rows[:, :-1], "head.bias": rows[:, -1]}


def flatten(spec: ArchitectureSpec, weights: Weights) -> tuple[Tensor, Tensor]:
    """A checkpoint as trunk values (p,) and head rows (classes, width + 1)."""
    return split(spec, to_tokens(spec, weights, TOKEN_SIZE), spec.classes(weights))


class WeightVae(nn.Module):
    """Encodes and decodes differences from the shared initialisation; see the module's text."""

    def __init__(self, config: WeightVaeConfig) -> None:
        super().__init__()
        self.config = config
        code = config.latents * config.dim
        if config.trunk:
            self.encode_trunk = nn.Linear(config.trunk, code, bias=False)
            self.decode_trunk = nn.Linear(code, config.trunk, bias=False)
        self.encode_rows = nn.Linear(config.row, config.dim, bias=False)
        self.decode_rows = nn.Linear(config.dim, config.row, bias=False)
        self.log_noise = nn.Parameter(torch.full((config.dim,), -3.0))  # log std of the posterior, by latent value
        self.register_buffer("shared", torch.zeros(config.trunk))
        self.register_buffer("scale", torch.ones(config.trunk))  # of each layer's differences
        self.register_buffer("row_scale", torch.ones(config.row))
        self.shared: Tensor
        self.scale: Tensor
        self.row_scale: Tensor

    def encode(self, trunk: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """trunk (b, p), rows (b, k, row) -> posterior means: global (b, latents, dim), class (b, k, dim)."""
        if not self.config.trunk:
            return trunk.new_zeros(len(trunk), 0, self.config.dim), self.encode_row(rows)
        code = self.encode_trunk((trunk - self.shared) / self.scale)
        return code.unflatten(-1, (self.config.latents, self.config.dim)), self.encode_row(rows)

    def encode_row(self, rows: Tensor) -> Tensor:
        """Head rows, or differences of head rows, (..., row) -> latents (..., dim); linear."""
        code: Tensor = self.encode_rows(rows / self.row_scale)
        return code

    def decode(self, trunk_code: Tensor) -> Tensor:
        """Global latents (b, latents, dim) -> trunk values (b, p)."""
        if not self.config.trunk:
            return trunk_code.new_zeros(len(trunk_code), 0)
        # Large weights, few codes: with the weights on the left, the product does not copy them first.
        trunk: Tensor = (self.decode_trunk.weight @ trunk_code.flatten(-2).T).T.contiguous()
        return self.shared + self.scale * trunk

    def decode_row(self, row_code: Tensor) -> Tensor:
        """Latents (..., dim) -> head rows, or differences of head rows, (..., row); linear."""
        rows: Tensor = self.row_scale * self.decode_rows(row_code)
        return rows

    def kl(self, *means: Tensor) -> Tensor:
        """KL divergence of the posteriors to N(0, 1), mean per latent value."""
        mean = torch.cat([m.reshape(-1, self.config.dim) for m in means])
        return 0.5 * (mean.square() + (2 * self.log_noise).exp() - 1 - 2 * self.log_noise).mean()

    @torch.no_grad()
    def start(self, trunks: Tensor, rows: Tensor) -> None:
        """Set the maps to the principal components of a zoo: trunks (m, p) and head rows (r, row)."""
        c = self.config
        if c.trunk:
            self._principal(self.encode_trunk, self.decode_trunk, (trunks - self.shared) / self.scale)
        self._principal(self.encode_rows, self.decode_rows, rows / self.row_scale)

    @staticmethod
    def _principal(encode: nn.Linear, decode: nn.Linear, x: Tensor) -> None:
        # Uncentred, so that zero stays zero; each latent has unit mean square over the zoo.
        _, s, v = torch.linalg.svd(x.double(), full_matrices=False)
        k = min(len(s), encode.out_features)
        std = s[:k] / len(x) ** 0.5
        std = std.clamp(min=0.05 * float(std[0]))  # directions the zoo hardly uses must not be blown up on the way in
        encode.weight.zero_()
        decode.weight.zero_()
        encode.weight[:k] = (v[:k] / std[:, None]).float()
        decode.weight[:, :k] = (v[:k].T * std).float()

"""The conditional denoiser: noisy latent tokens and a condition to clean latent tokens.

A transformer over one token per class and a few global ones, without position codes among the classes: reordering the
classes of the condition reorders the generated rows, exactly. Its output starts at zero, and zero is the closed-form
model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape: `latents` global and any number of class tokens of `dim` values; sizes of a condition's two parts."""

    latents: int
    dim: int
    classwise: int
    overall: int
    width: int = 192
    layers: int = 3
    heads: int = 4


@dataclass(frozen=True)
class Condition:
    """What is known of a task, batched: per class (b, classes, classwise) and overall (b, overall)."""

    classwise: Tensor
    overall: Tensor


class Block(nn.Module):
    """Pre-norm transformer block, modulated by the noise level (adaLN; Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulate = nn.Linear(width, 4 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (b, t, w), time (b, w)."""
        a1, b1, a2, b2 = self.modulate(time)[:, None].chunk(4, -1)
        split = (self.heads, x.shape[-1] // self.heads)
        q, k, v = (y.unflatten(-1, split).transpose(1, 2) for y in self.qkv(self.norm1(x) * (1 + a1) + b1).chunk(3, -1))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.feed(self.norm2(x) * (1 + a2) + b2)
        return out


class Denoiser(nn.Module):
    """z (b, latents + classes, dim), t (b,), condition -> clean latents of z's shape."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.latent_in = nn.Linear(config.dim, w)
        self.condition_in = nn.Sequential(nn.Linear(config.classwise, w), nn.GELU(), nn.Linear(w, w))
        self.overall_in = nn.Sequential(nn.Linear(config.overall, w), nn.GELU(), nn.Linear(w, w))
        self.place = nn.Parameter(0.02 * torch.randn(config.latents, w))
        self.unconditional = nn.Parameter(0.02 * torch.randn(w))
        self.time = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
        self.blocks = nn.ModuleList(Block(w, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(w)
        self.latent_out = nn.Linear(w, config.dim)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)

    def forward(self, z: Tensor, t: Tensor, classwise: Tensor, overall: Tensor, keep: Tensor) -> Tensor:
        """`keep` (b,) is 1 where the condition is seen and 0 where it is dropped (classifier-free guidance)."""
        tokens = self.condition_in(classwise)  # (b, classes, w)
        tokens = torch.where(keep[:, None, None] > 0, tokens, self.unconditional)
        overall = keep[:, None] * self.overall_in(overall)  # (b, w)
        place = self.place.expand(len(z), -1, -1) + overall[:, None]
        time = self.time(_frequencies(t, self.config.width)) + overall
        x = self.latent_in(z) + torch.cat((place, tokens), 1)  # (b, latents + classes, w)
        for block in self.blocks:
            x = block(x, time)
        out: Tensor = self.latent_out(self.norm(x))
        return out


def rates(width: int, device: torch.device | None = None) -> Tensor:
    """Angular rates (width / 2,) of the sinusoids that tell a denoiser the time."""
    half = width // 2
    return torch.exp(torch.arange(half, device=device) * (-math.log(1000.0) / half)) * 1000


def _frequencies(t: Tensor, width: int) -> Tensor:
    """Sinusoids of times (b,) -> (b, width)."""
    angle = t[:, None] * rates(width, t.device)
    return torch.cat((angle.cos(), angle.sin()), -1)

"""The dataset encoder: a few images a class to one code per class and one for the whole set.

Set Transformer blocks (Lee et al. 2019: ISAB section 3.2, PMA section 3.3), first within each class, then across
classes, as in D2NWG (Soro et al. 2025, section 3.3), but the codes of the classes are kept: a pooled code cannot tell a
generator which output row is which class. Reordering the classes reorders the class codes and leaves the set code
alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SetEncoderConfig:
    """Shape of the set encoder; `inputs` is the dimension of image features."""

    inputs: int
    width: int = 128
    heads: int = 2
    inducing: int = 16


class _Attention(nn.Module):
    """MAB: queries attend to keys, then a feed-forward step; both residual, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_f = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries (..., q, w), or (q, w) if all sets have the same, keys (..., k, w), mask (..., k) bool: True where a
        key is real."""
        split = (self.heads, queries.shape[-1] // self.heads)
        q = self.q(self.norm_q(queries)).unflatten(-1, split).transpose(-2, -3)  # (..., heads, q, w / heads)
        k, v = (x.unflatten(-1, split).transpose(-2, -3) for x in self.kv(self.norm_k(keys)).chunk(2, -1))
        q = q.expand(*k.shape[:-2], *q.shape[-2:])
        allowed = None if mask is None else mask[..., None, None, :]
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = queries + self.out(y.transpose(-2, -3).flatten(-2))
        out: Tensor = x + self.feed(self.norm_f(x))
        return out


class _Induced(nn.Module):
    """ISAB: attention through a few learned inducing points, linear in the size of the set."""

    def __init__(self, width: int, heads: int, inducing: int) -> None:
        super().__init__()
        self.points = nn.Parameter(0.02 * torch.randn(inducing, width))
        self.gather, self.spread = _Attention(width, heads), _Attention(width, heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.spread(x, self.gather(self.points, x, mask))
        return out


class _Pool(nn.Module):
    """PMA with one seed: a set to one vector."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.seed = nn.Parameter(0.02 * torch.randn(1, width))
        self.attend = _Attention(width, heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        pooled: Tensor = self.attend(self.seed, x, mask)  # (..., 1, w)
        return pooled.squeeze(-2)


class SetEncoder(nn.Module):
    """Features (b, k, m, inputs) by class and image, mask (b, k, m) -> class codes (b, k, w), set codes (b, w)."""

    def __init__(self, config: SetEncoderConfig) -> None:
        super().__init__()
        self.config = config
        w, h, m = config.width, config.heads, config.inducing
        self.embed = nn.Linear(config.inputs, w)
        self.within = nn.ModuleList([_Induced(w, h, m), _Induced(w, h, m)])
        self.pool_images = _Pool(w, h)
        self.across = nn.ModuleList([_Attention(w, h), _Attention(w, h)])
        self.pool_classes = _Pool(w, h)
        self.norm = nn.LayerNorm(w)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Class codes and set codes; `mask` is True where an image is real."""
        x = self.embed(features)
        for block in self.within:
            x = block(x, mask)
        codes = self.pool_images(x, mask)  # (b, classes, w)
        for block in self.across:
            codes = block(codes, codes)
        return self.norm(codes), self.norm(self.pool_classes(codes))


def alignment_loss(dataset: Tensor, weights: Tensor, temperature: float = 0.1) -> Tensor:
    """Symmetric contrastive loss between dataset codes and weight codes (b, w) of the same tasks.

    Targets are soft, softmax((D D^T + W W^T) / 2), so that related tasks are not pushed apart (D2NWG, section 3.3).
    """
    d, w = nn.functional.normalize(dataset, dim=-1), nn.functional.normalize(weights, dim=-1)
    logits = d @ w.T / temperature
    targets = ((d @ d.T + w @ w.T) / (2 * temperature)).softmax(-1).detach()
    return (nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.T, targets.T)) / 2

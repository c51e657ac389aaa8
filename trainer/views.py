"""What the same picture can look like elsewhere: views of whole tasks, and augmentations of single images.

A *view* is one fixed change for all images of a task (a grey camera, an inverted scan); an *augmentation* differs image
by image. Both take and give float images (n, 3, 32, 32) in [0, 1] and draw from an explicit generator.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

View = Callable[[Tensor], Tensor]


def grey(x: Tensor) -> Tensor:
    """Luma, in all three channels (ITU-R BT.601)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)


def invert(x: Tensor) -> Tensor:
    """The negative."""
    return 1 - x


def low_resolution(x: Tensor, side: int) -> Tensor:
    """Down to side x side and up again."""
    small = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, x.shape[-2:], mode="bilinear", antialias=True)


def smaller(x: Tensor, side: int) -> Tensor:
    """The picture at side x side in the middle of its own border colour."""
    small = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    before = (x.shape[-1] - side) // 2
    after = x.shape[-1] - side - before
    return F.pad(small, (before, after, before, after), mode="replicate")


def recolour(x: Tensor, generator: Generator) -> Tensor:
    """One random rotation-like mix of the channels for all images, kept within [0, 1]."""
    mix = torch.eye(3) + 0.6 * torch.randn(3, 3, generator=generator)
    y = torch.einsum("oc,nchw->nohw", mix / mix.abs().sum(1, keepdim=True), x - 0.5)
    return (y + 0.5).clamp(0, 1)


def contrast(x: Tensor, generator: Generator) -> Tensor:
    """One random gamma and contrast for all images."""
    gamma = math.exp(0.4 * torch.randn((), generator=generator).item())
    low = 0.4 * torch.rand((), generator=generator).item()
    return low / 2 + (1 - low) * x.clamp(1e-4, 1) ** gamma


def turn(x: Tensor, quarters: int) -> Tensor:
    """Every image by so many quarter turns."""
    return torch.rot90(x, quarters, (-2, -1))


def jigsaw(x: Tensor, generator: Generator) -> Tensor:
    """The four quarters of every image in one random other order, each turned as well."""
    half = x.shape[-1] // 2
    tiles = [x[..., i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
    first, *rest = (1 + torch.randperm(3, generator=generator)).tolist()
    order = [first, 0, *rest]  # the first quarter always moves
    quarters = torch.randint(4, (4,), generator=generator).tolist()
    a, b, c, d = (turn(tiles[k], q) for k, q in zip(order, quarters, strict=True))
    return torch.cat((torch.cat((a, b), -1), torch.cat((c, d), -1)), -2)


VIEWS = ("plain", "grey", "invert", "low_resolution", "smaller", "recolour", "contrast")
"""What augmentation draws from: the same things under another light."""

NEW_CLASSES = {"turn-90": 1, "turn-180": 2, "turn-270": 3}
"""Views that make classes which the encoder does not know, by their quarter turns (Liu et al. 2020, task augmentation
by rotating); with `jigsaw`."""


def view(name: str, x: Tensor, generator: Generator) -> Tensor:
    """Apply the named view; its parameters, where it has any, are drawn once."""
    if name == "plain":
        return x
    if name == "grey":
        return grey(x)
    if name == "invert":
        return invert(x)
    if name == "low_resolution":
        return low_resolution(x, int(torch.randint(8, 17, (), generator=generator)))
    if name == "smaller":
        return smaller(x, int(torch.randint(16, 29, (), generator=generator)))
    if name == "recolour":
        return recolour(x, generator)
    if name == "contrast":
        return contrast(x, generator)
    if name in NEW_CLASSES:
        return turn(x, NEW_CLASSES[name])
    if name == "jigsaw":
        return jigsaw(x, generator)
    raise ValueError(f"unknown view {name}")


def jitter(x: Tensor, generator: Generator, *, flip: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """Random shift, scale, turn of every image (one affine resampling); `flip` (n,) bool says which may be mirrored."""
    n = len(x)
    scale = 1 + 0.12 * strength * torch.randn(n, generator=generator).clamp(-2, 2)
    turn = 0.08 * strength * torch.randn(n, generator=generator)
    shift = 0.16 * strength * (2 * torch.rand(n, 2, generator=generator) - 1)
    sign = torch.ones(n)
    if flip is not None:
        sign = torch.where(flip & (torch.rand(n, generator=generator) < 0.5), -1.0, 1.0)
    cos, sin = scale * turn.cos(), scale * turn.sin()
    theta = torch.stack(
        (torch.stack((sign * cos, -sin, shift[:, 0]), 1), torch.stack((sign * sin, cos, shift[:, 1]), 1)), 1
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def augment(x: Tensor, generator: Generator, *, flip: Tensor | None = None) -> Tensor:
    """Training augmentation: jitter for every image, and a random view for about half of them, in groups."""
    x = jitter(x, generator, flip=flip)
    lot = torch.randint(0, 14, (len(x),), generator=generator)
    for number, name in enumerate(VIEWS[1:]):
        chosen = (lot == number).nonzero().squeeze(1)
        if len(chosen):
            x[chosen] = view(name, x[chosen], generator)
    return x

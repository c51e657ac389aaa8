"""Classifiers in closed form: where every generated network starts from.

Ridge regression of one-hot labels on features (as in R2-D2, Bertinetto et al. 2019) and nearest class means (Snell et
al. 2017), mixed in shares that are learned as functions of the numbers of images and classes, written back as the head
of a network. A generator that adds nothing is this model.

Sets of images come as (..., classes, images, d) with a mask (..., classes, images), True where an image is real.
"""

import torch
from torch import Tensor, nn


def ridge(features: Tensor, mask: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    """Class-balanced ridge regression, batched: features (..., k, m, d) -> weight (..., k, d), bias (..., k).

    The penalty is `strength` times the features' mean variance, so that it does not depend on their scale. Every class
    needs an image.
    """
    k, m, d = features.shape[-3:]
    share = mask / (mask.sum(-1, keepdim=True) * k)  # (..., k, m): sums to 1, every class 1 / k
    weight = share.flatten(-2)[..., None]  # (..., n, 1) with n = k m
    x = features.flatten(-3, -2)  # (..., n, d)
    y = torch.eye(k, dtype=x.dtype).repeat_interleave(m, 0) - 1 / k  # (n, k)
    mean = (weight * x).sum(-2, keepdim=True)  # (..., 1, d)
    half = weight.sqrt() * (x - mean)
    target = weight.sqrt() * y  # (..., n, k)
    penalty = (strength * (half.square().sum((-2, -1)) / d + 1e-8))[..., None, None]
    if k * m < d:  # the n x n system is the smaller one
        kernel = half @ half.transpose(-1, -2) + penalty * torch.eye(k * m, dtype=x.dtype)
        solution = half.transpose(-1, -2) @ torch.linalg.solve(kernel, target)  # (..., d, k)
    else:
        covariance = half.transpose(-1, -2) @ half + penalty * torch.eye(d, dtype=x.dtype)
        solution = torch.linalg.solve(covariance, half.transpose(-1, -2) @ target)
    bias = -(mean @ solution).squeeze(-2)
    return solution.transpose(-1, -2), bias


def nearest_mean(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest class mean as a linear classifier: features (..., k, m, d) -> weight (..., k, d), bias (..., k).

    Logits are minus half the squared distances to the class means over the features' mean square about their centre,
    up to a part that all classes share; so they do not depend on the features' scale.
    """
    weight = (mask.to(features.dtype) / mask.sum(-1, keepdim=True))[..., None]  # (..., k, m, 1)
    means = (weight * features).sum(-2)  # (..., k, d)
    centre = means.mean(-2, keepdim=True)
    spread = (weight * (features - centre[..., None, :]).square()).sum((-3, -2, -1)) / mask.shape[-2] + 1e-8
    about = (means - centre) / spread[..., None, None]
    bias = -(about * centre).sum(-1) - 0.5 * (about * (means - centre)).sum(-1)
    return about, bias - bias.mean(-1, keepdim=True)


class ClosedForm(nn.Module):
    """Ridge regression plus nearest class mean, their shares and ridge's strength learned; gives head rows, bias last.

    Neither wins everywhere: means are hard to beat on good features and few images, ridge uses many.
    """

    def __init__(self) -> None:
        super().__init__()
        # log strength = a + b log(images a class)
        self.strength = nn.Parameter(torch.tensor([0.0, -0.5]))
        # log share = a + b log(images a class) + c log(classes), of ridge and of the nearest mean
        self.scale = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))
        self.nearest = nn.Parameter(torch.tensor([0.0, 0.0, 0.0]))

    def forward(self, features: Tensor, mask: Tensor, *, ridge_share: float = 1.0) -> Tensor:
        """features (b, k, m, d), mask (b, k, m) -> rows (b, k, d + 1); `ridge_share` 0 leaves the nearest mean."""
        shots = mask.sum((-2, -1)).div(mask.shape[-2]).log()  # (b,)
        strength = (self.strength[0] + self.strength[1] * shots).exp()
        known = torch.stack((torch.ones_like(shots), shots, torch.full_like(shots, mask.shape[-2]).log()), -1)

        def scaled(share: Tensor, solution: tuple[Tensor, Tensor]) -> Tensor:
            weight, bias = solution
            return (known @ share.to(known.dtype)).exp()[:, None, None] * torch.cat((weight, bias[..., None]), -1)

        rows = scaled(self.nearest, nearest_mean(features, mask))
        if ridge_share:
            rows = ridge_share * scaled(self.scale, ridge(features, mask, strength)) + rows
        return rows

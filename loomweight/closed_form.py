"""Classifiers in closed form: where every generated network starts from.

Ridge regression of one-hot labels on features, its strength and its logit scale learned as functions of the number of
images (as in R2-D2, Bertinetto et al. 2019), written back as the head of a network. A generator that adds nothing is
this model.

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


class RidgeHead(nn.Module):
    """Ridge regression with learned strength and logit scale; gives head rows, bias last."""

    def __init__(self) -> None:
        super().__init__()
        # log strength = a + b log(images a class)
        self.strength = nn.Parameter(torch.tensor([0.0, -0.5]))
        # log scale = a + b log(images a class) + c log(classes)
        self.scale = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features (b, k, m, d), mask (b, k, m) -> rows (b, k, d + 1)."""
        shots = mask.sum((-2, -1)).div(mask.shape[-2]).log()  # (b,)
        strength = (self.strength[0] + self.strength[1] * shots).exp()
        classes = torch.tensor(float(mask.shape[-2])).log()
        scale = (self.scale[0] + self.scale[1] * shots + self.scale[2] * classes).exp()
        weight, bias = ridge(features, mask, strength)
        return scale[:, None, None] * torch.cat((weight, bias[..., None]), -1)

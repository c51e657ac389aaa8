"""L2 logistic regression with its strength chosen by cross-validation on the samples, for few images and many features.

Every fold and every strength is one column block of one problem, so that a step of all of them is one matrix product.
Features are rotated onto the n dimensions that n samples span, which changes nothing: neither penalty nor logits see
the rotation. There the curvature is near to diagonal, and truncated Newton (conjugate gradients with that diagonal as
preconditioner, backtracking) takes few steps. The optimum is scikit-learn's `LogisticRegression(C=strength)`, reached
more closely than its default tolerance does and several times faster (docs/log.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties to choose from, for features of mean square norm near 1."""
ONE_IMAGE = 10.0
"""Where a class has a single image there is nothing to validate on; on validation classes 1 to 100 do the same."""
FOLDS = 3


@dataclass(frozen=True)
class Rotated:
    """Features in the coordinates that they span, with a last column of ones for the bias."""

    x: Tensor  # (n, r + 1) float64
    basis: Tensor  # (d, r)
    mean: Tensor  # (d,)

    def back(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        """A solution (r + 1, k) as weight (k, d) and bias (k,) on the features as they were."""
        weight = (self.basis @ solution[:-1]).T
        return weight, solution[-1] - weight @ self.mean


def rotate(features: Tensor) -> Rotated:
    """Features (n, d), brought to unit scale by one common factor, in their own principal coordinates."""
    factor = features.std().clamp(min=1e-6).double() * features.shape[1] ** 0.5
    x = features.double() / factor
    mean = x.mean(0)
    centred = x - mean  # the bias is free, so this changes nothing but the conditioning
    wide = centred.shape[0] < centred.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    basis = vectors[:, kept]
    if wide:
        basis = centred.T @ basis / values[kept].sqrt()  # (d, r), orthonormal
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    return Rotated(torch.cat((centred @ basis, ones), 1), basis / factor, mean * factor)


def minimise(
    x: Tensor, y: Tensor, shares: Tensor, strengths: Tensor, *, start: Tensor | None = None, tolerance: float = 1e-6
) -> Tensor:
    """Solve b penalised problems on the same samples at once: (r + 1, b, k).

    x (n, r + 1), its last column unpenalised ones; y (n, k) one-hot; shares (n, b), 0 for samples that a problem leaves
    out; strengths (b,). Problem b minimises |w|^2 / 2 / (strength m) + the mean cross-entropy of its m samples, until
    no gradient is larger than `tolerance`.
    """
    count = shares.sum(0)
    shares = (shares / count)[..., None]  # (n, b, 1)
    penalty = torch.ones(x.shape[1], len(strengths), 1, dtype=x.dtype) / (strengths * count)[:, None]  # (r + 1, b, 1)
    penalty[-1] = 0
    w = x.new_zeros(x.shape[1], len(strengths), y.shape[1]) if start is None else start.clone()
    active = torch.arange(len(strengths))
    for _ in range(100):
        one = _Problems(x, y, shares[:, active], penalty[:, active])
        logits = one.forward(w[:, active])
        gradient = one.gradient(w[:, active], logits)
        steepest = gradient.abs().amax((0, 2))
        going = steepest > tolerance
        if not going.any():
            break
        active = active[going]  # what has converged costs nothing more
        one = _Problems(x, y, shares[:, active], penalty[:, active])
        w[:, active] = one.step(w[:, active], logits[:, going], gradient[:, going], steepest[going])
    return w


@dataclass(frozen=True)
class _Problems:
    """Penalised problems side by side; see `minimise`."""

    x: Tensor
    y: Tensor
    shares: Tensor  # (n, b, 1)
    penalty: Tensor  # (r + 1, b, 1)

    def forward(self, w: Tensor) -> Tensor:
        """(r + 1, b, k) -> (n, b, k), all problems in one product."""
        return (self.x @ w.flatten(1)).view(len(self.x), *w.shape[1:])

    def backward(self, z: Tensor) -> Tensor:
        """(n, b, k) -> (r + 1, b, k): its transpose."""
        return (self.x.T @ z.flatten(1)).view(self.x.shape[1], *z.shape[1:])

    def loss(self, w: Tensor, logits: Tensor) -> Tensor:
        """(b,)"""
        entropy = logits.logsumexp(-1) - (logits * self.y[:, None]).sum(-1)  # (n, b)
        return (self.penalty * w.square()).sum((0, 2)) / 2 + (self.shares[..., 0] * entropy).sum(0)

    def gradient(self, w: Tensor, logits: Tensor) -> Tensor:
        """(r + 1, b, k)"""
        return self.backward(self.shares * (logits.softmax(-1) - self.y[:, None])) + self.penalty * w

    def step(self, w: Tensor, logits: Tensor, gradient: Tensor, steepest: Tensor) -> Tensor:
        """Weights after one truncated Newton step with backtracking."""
        direction, along = self._newton(logits, gradient, steepest)
        slope, before = (gradient * direction).sum((0, 2)), self.loss(w, logits)
        length = torch.ones_like(before)
        for _ in range(30):
            after = w + length[:, None] * direction
            worse = self.loss(after, logits + length[:, None] * along) > before + 1e-4 * length * slope + 1e-14
            if not worse.any():
                break
            length = torch.where(worse, length / 2, length)
        return after

    def _newton(self, logits: Tensor, gradient: Tensor, steepest: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's direction (r + 1, b, k) by preconditioned conjugate gradients, and what it adds to the logits."""
        p = logits.softmax(-1)
        curvature = (self.shares * p * (1 - p)).sum(0).mean(-1).clamp(min=1e-6)  # (b,)
        diagonal = (self.x.square().mean(0)[:, None] * curvature)[..., None] + self.penalty
        direction, along, residual = torch.zeros_like(gradient), torch.zeros_like(logits), -gradient
        scaled = residual / diagonal
        search, product = scaled, (residual * scaled).sum((0, 2))
        enough = product * steepest.clamp(max=0.01)  # squared: the nearer the optimum, the more exact the step
        for _ in range(100):
            z = self.forward(search)
            hz = self.shares * p * (z - (p * z).sum(-1, keepdim=True))
            bent = self.backward(hz) + self.penalty * search
            size = (product / ((search * bent).sum((0, 2)) + 1e-300))[:, None]
            direction, along, residual = direction + size * search, along + size * z, residual - size * bent
            scaled = residual / diagonal
            last, product = product, (residual * scaled).sum((0, 2))
            if (product <= enough).all():
                break
            search = scaled + (product / (last + 1e-300))[:, None] * search
        return direction, along


def judged(logits: Tensor, y: Tensor, judge: str) -> Tensor:
    """How well held-out logits (n, s, k) of s strengths do, (s,): by "accuracy" or by "likelihood"."""
    if judge == "accuracy":
        return (logits.argmax(-1) == y[:, None]).double().mean(0)
    return torch.stack([-F.cross_entropy(one, y) for one in logits.unbind(1)])


@torch.no_grad()
def fit(features: Tensor, y: Tensor, classes: int, seed: int = 0, *, judge: str = "accuracy") -> tuple[Tensor, Tensor]:
    """Features (n, d), labels (n,) -> weight (classes, d), bias (classes,).

    The strength does best, by the judge, on stratified folds of the samples; the strongest penalty among equals.
    """
    r = rotate(features)
    one_hot = torch.eye(classes, dtype=torch.float64)[y]
    folds = min(FOLDS, int(torch.bincount(y, minlength=classes).min()))
    strength, start = torch.tensor([ONE_IMAGE], dtype=torch.float64), None
    if folds > 1:
        strengths = torch.tensor(STRENGTHS, dtype=torch.float64)
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        held = [torch.from_numpy(test) for _, test in splitter.split(np.zeros(len(y)), y.numpy())]
        shares = torch.ones(len(y), folds + 1, 1, dtype=torch.float64)  # the last leaves nothing out: a warm start
        for fold, test in enumerate(held):
            shares[test, fold] = 0
        shares = shares.expand(-1, -1, len(strengths)).flatten(1)
        w = minimise(r.x, one_hot, shares, strengths.repeat(folds + 1), tolerance=1e-4)  # (r + 1, b, k)
        w = torch.unflatten(w, 1, (folds + 1, len(strengths)))
        logits = torch.cat([torch.einsum("nr,rsk->nsk", r.x[test], w[:, fold]) for fold, test in enumerate(held)])
        best = int(judged(logits, y[torch.cat(held)], judge).argmax())
        strength, start = strengths[best : best + 1], w[:, -1, best : best + 1]
    shares = torch.ones(len(y), 1, dtype=torch.float64)
    weight, bias = r.back(minimise(r.x, one_hot, shares, strength, start=start)[:, 0])
    return weight.float(), bias.float()

"""Judging candidates: by cross-validation on the conditioning samples, on held-out ones, and beside baselines."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loomweight.candidates import BLEND, CLOSED_FORM, Candidate, Kind, decode, pending
from loomweight.loom import Heads, Loom, Support, class_means

ONE_FOLD_ABOVE = 10
"""Images a class."""
TEMPERATURES = 2.0 ** torch.arange(-3, 4)
SHARPNESS = 0.3
"""Of a blend's shares; 1 would be Bayesian model averaging (pseudo-BMA, Yao et al. 2018), were the images asked about
independent of each other's folds; 0 an average that nothing decides. Chosen on validation classes (docs/log.md, 22)."""
DOUBT = 2.0
"""Standard errors by which a candidate must be ahead of the one that leads by default."""


@dataclass(frozen=True)
class Evidence:
    """How each candidate, in order, did on images that did not condition it."""

    losses: Tensor  # (candidates, images): cross-entropy at the candidate's best temperature
    accuracy: tuple[float, ...]
    baselines: dict[str, float]

    @property
    def images(self) -> int:
        """How many were asked about."""
        return self.losses.shape[1]

    @property
    def loss(self) -> tuple[float, ...]:
        """Of each candidate, its mean."""
        return tuple(self.losses.mean(1).tolist())


def calibrated(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The best of a few factors (...) on logits (..., n, k), and the cross-entropy of each image (..., n) with it.

    Candidates differ in how sure they are of themselves, most of all far from the training tasks; that must not decide.
    """
    of = truth.expand(logits.shape[:-1])[..., None]
    # One factor at a time: logits may be many, and are held once more and not seven times.
    losses = torch.stack([-F.log_softmax(logits * t, -1).gather(-1, of).squeeze(-1) for t in TEMPERATURES])
    best = losses.mean(-1).argmin(0)
    return TEMPERATURES[best], losses.gather(0, best[None, ..., None].expand(1, *losses.shape[1:])).squeeze(0)


def calibrated_loss(logits: Tensor, truth: Tensor) -> float:
    """Mean cross-entropy of logits (n, k) at the best of a few temperatures."""
    return float(calibrated(logits, truth)[1].mean())


def _accuracy(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(-1) == truth).float().mean())


def score(loom: Loom, network: Candidate, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Calibrated loss and accuracy of one network on adapted images (n, c, h, w)."""
    logits = loom.logits(network.trunk, network.rows, x)
    return calibrated_loss(logits, truth), _accuracy(logits, truth)


def folds_of(support: Support) -> int:
    """Folds for cross-validation, at most three.

    None where half of the classes or more have a single image: what the others say would not speak for all.
    """
    counts = support.mask.sum(-1)
    several = counts[counts > 1]
    if 2 * len(several) <= counts.numel():
        return 0
    return min(int(several.min()), 3)


def with_folds(support: Support, folds: int) -> tuple[Support, Tensor]:
    """The support of one task, then itself without each fold; and what each fold is asked about (folds, k, m).

    The only image of a class is never asked about. The others keep one of their first images in every fold. Where
    images are many one fold has enough to ask about, and only it is given: every fold costs passes over all images.
    """
    place = torch.arange(support.mask.shape[-1]) % max(1, folds)  # images stand in random order
    several = support.mask & (support.mask.sum(-1, keepdim=True) > 1)
    tested = several & (place == torch.arange(folds)[:, None])[:, None]
    if support.mask.sum(-1).max() > ONE_FOLD_ABOVE:
        tested = tested[:1]
        folds = len(tested)
    mask = torch.cat((support.mask, support.mask & ~tested))

    def repeated(x: Tensor) -> Tensor:
        return x.expand(1 + folds, *x.shape[1:])

    images, features, own = repeated(support.images), repeated(support.features), repeated(support.trunk_features)
    return Support(images, features, own, mask), tested


@dataclass(frozen=True)
class Answers:
    """What networks made without some of the samples say of those."""

    logits: Tensor  # (kinds, n, k)
    truth: Tensor  # (n,)


def cross_validate(
    loom: Loom, held: Support, tested: Tensor, latents: Tensor, kinds: Sequence[Kind]
) -> tuple[Answers, dict[str, float]]:
    """Ask each kind's networks, latents (folds, kinds, latents + classes, dim) woven from `held`, about the images that
    it left out; and how the closed form and the nearest class mean do on those.

    Kinds that share a trunk share its pass over the images; the shared initialisation's features are known already.
    """
    truth = torch.arange(held.classes)[:, None].expand(tested.shape)[tested]
    passes: dict[tuple[float, int | None], Heads] = {}
    said = []
    for i, kind in enumerate(kinds):
        trunk = kind.trunk, kind.draw
        if trunk not in passes:
            features = held.trunk_features
            if kind.trunk:
                features = loom.support_features(loom.trunks(latents[:, i]), held)
            passes[trunk] = loom.heads(features, held)
        heads = passes[trunk]
        rows = heads.rows(latents[:, i], kind.ridge)  # (f, k, width + 1)
        logits = torch.einsum("fkmw,fcw->fkmc", heads.features, rows[..., :-1]) + rows[:, None, None, :, -1]
        said.append(logits[tested])
    features, mask = loom.looked_at(held)
    asked = tested[..., : mask.shape[-1]]
    nearest = -torch.unflatten(torch.cdist(features.flatten(1, 2), class_means(features, mask)), 1, mask.shape[1:])
    few = torch.arange(held.classes)[:, None].expand(asked.shape)[asked]
    closed = said[next(i for i, k in enumerate(kinds) if k == CLOSED_FORM)]
    known = {"closed_form": _accuracy(closed, truth), "nearest_class_mean": _accuracy(nearest[asked], few)}
    return Answers(torch.stack(said), truth), known


def evidence(answers: Answers, baselines: dict[str, float]) -> Evidence:
    """How good the answers are."""
    losses = calibrated(answers.logits, answers.truth)[1]
    return Evidence(losses, tuple(_accuracy(a, answers.truth) for a in answers.logits), baselines)


def blend(candidates: Sequence[Candidate], answers: Answers, chosen: Sequence[int]) -> tuple[Candidate, Tensor]:
    """One network from candidates that share a trunk, and what it would have answered (n, k).

    Heads on the same features can be averaged: the average's logits are the average of theirs. Each is brought to its
    best temperature first, and its share falls with its loss, softly: choosing one alone throws away what the others
    know, and with few images the choice is mostly luck.
    """
    theirs = answers.logits[list(chosen)]
    factors, losses = calibrated(theirs, answers.truth)
    weights = factors * torch.softmax(-SHARPNESS * len(answers.truth) * losses.mean(-1), 0)
    logits = (weights[:, None, None] * theirs).sum(0)
    weights = weights * calibrated(logits, answers.truth)[0]
    members = tuple((w, candidates[i]) for w, i in zip(weights.tolist(), chosen, strict=True))
    empty = logits.new_zeros(0)
    return Candidate(None, BLEND, empty, empty, members=members), logits


def judge(
    loom: Loom, networks: Sequence[Candidate], support: Support, features: Tensor, x: Tensor, truth: Tensor
) -> Evidence:
    """How finished networks do on adapted images x (n, c, h, w) with the encoder's features (n, dim)."""
    said = torch.stack([loom.logits(n.trunk, n.rows, x) for n in networks])
    zero = torch.zeros(loom.latent_shape(1, support.classes))
    closed = decode(loom, pending(zero[0], CLOSED_FORM), support)
    nearest = -torch.cdist(features, class_means(*loom.looked_at(support))[0])
    known = {
        "closed_form": _accuracy(loom.logits(closed.trunk, closed.rows, x), truth),
        "nearest_class_mean": _accuracy(nearest, truth),
    }
    return evidence(Answers(said, truth), known)


def rank(count: int, found: Sequence[Evidence], *, leader: int | None = None) -> list[int]:
    """Best first, by likelihood, finer than accuracy; each evidence counts by its number of images.

    Where there is none the order given stays. `leader` stays first unless the likeliest is ahead of it by more than
    `DOUBT` standard errors over the images: on average it is the best, and few images cannot tell otherwise.
    """
    if not found:
        return list(range(count))
    losses = torch.cat([e.losses for e in found], 1)
    order = sorted(range(count), key=losses.mean(1).tolist().__getitem__)
    if leader is not None:
        ahead = losses[leader] - losses[order[0]]
        if len(ahead) < 2 or not ahead.mean() > DOUBT * ahead.std() / len(ahead) ** 0.5:
            order = [leader, *(i for i in order if i != leader)]
    return order

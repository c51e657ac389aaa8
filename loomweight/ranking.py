"""Judging candidates: by cross-validation on the conditioning samples, on held-out ones, and beside baselines."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loomweight.candidates import CLOSED_FORM, Candidate, Kind, decode, pending
from loomweight.loom import Loom, Support, class_means

ONE_FOLD_ABOVE = 10
"""Images a class."""
TEMPERATURES = 2.0 ** torch.arange(-3, 4)


@dataclass(frozen=True)
class Evidence:
    """How each candidate, in order, did on so many images that did not condition it."""

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int
    baselines: dict[str, float]


def calibrated_loss(logits: Tensor, truth: Tensor) -> float:
    """Mean cross-entropy of logits (n, k) at the best of a few temperatures.

    Candidates differ in how sure they are of themselves, most of all far from the training tasks; that must not decide.
    """
    return float(torch.stack([F.cross_entropy(logits * t, truth) for t in TEMPERATURES]).min())


def _accuracy(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(-1) == truth).float().mean())


def score(loom: Loom, network: Candidate, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Calibrated loss and accuracy on adapted images (n, c, h, w)."""
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


def cross_validate(loom: Loom, held: Support, tested: Tensor, latents: Tensor, kinds: Sequence[Kind]) -> Evidence:
    """Judge each kind's latents (folds, kinds, latents + classes, dim), woven from `held`, on the images it left out.

    Kinds that share a trunk share its pass over the images; the shared initialisation's features are known already.
    """
    truth = torch.arange(held.classes)[:, None].expand(tested.shape)[tested]
    first = loom.config.vae.latents
    passes: dict[tuple[float, int | None], Tensor] = {}
    loss, accuracy = [], []
    for i, kind in enumerate(kinds):
        trunk = kind.trunk, kind.draw
        if trunk not in passes:
            features = held.trunk_features
            if kind.trunk:
                features = loom.support_features(loom.trunks(latents[:, i]), held)
            passes[trunk] = features
        features = passes[trunk]
        base = loom.closed_form(features, held.mask, ridge_share=kind.ridge)
        rows = base + loom.vae.decode_row(latents[:, i, first:])  # (f, k, width + 1)
        logits = torch.einsum("fkmw,fcw->fkmc", features, rows[..., :-1]) + rows[:, None, None, :, -1]
        loss.append(calibrated_loss(logits[tested], truth))
        accuracy.append(_accuracy(logits[tested], truth))
    features, mask = loom.looked_at(held)
    asked = tested[..., : mask.shape[-1]]
    nearest = -torch.unflatten(torch.cdist(features.flatten(1, 2), class_means(features, mask)), 1, mask.shape[1:])
    truth = torch.arange(held.classes)[:, None].expand(asked.shape)[asked]
    closed = next(i for i, k in enumerate(kinds) if k == CLOSED_FORM)
    known = {"closed_form": accuracy[closed], "nearest_class_mean": _accuracy(nearest[asked], truth)}
    return Evidence(tuple(loss), tuple(accuracy), int(tested.sum()), known)


def judge(
    loom: Loom, networks: Sequence[Candidate], support: Support, features: Tensor, x: Tensor, truth: Tensor
) -> Evidence:
    """How finished networks do on adapted images x (n, c, h, w) with the encoder's features (n, dim)."""
    scores = [score(loom, n, x, truth) for n in networks]
    zero = torch.zeros(loom.latent_shape(1, support.classes))
    closed = decode(loom, pending(zero[0], CLOSED_FORM), support)
    nearest = -torch.cdist(features, class_means(*loom.looked_at(support))[0])
    known = {"closed_form": score(loom, closed, x, truth)[1], "nearest_class_mean": _accuracy(nearest, truth)}
    return Evidence(tuple(s[0] for s in scores), tuple(s[1] for s in scores), len(truth), known)


def rank(count: int, evidence: Sequence[Evidence]) -> list[int]:
    """Best first, by likelihood, finer than accuracy; each evidence counts by its number of images.

    Where there is none the order given stays.
    """
    return sorted(range(count), key=lambda i: sum(e.images * e.loss[i] for e in evidence))

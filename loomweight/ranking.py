"""Judging candidates: on held-out samples, by cross-validation on the conditioning ones, and beside baselines."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from loomweight.bundle import Zoo
from loomweight.candidates import (
    Candidate,
    Denoise,
    Sampling,
    Scale,
    decode,
    draw_noise,
    pending,
    sample_latents,
    scales,
    shrink,
)
from loomweight.loom import Loom, Support


@dataclass(frozen=True)
class Score:
    """How a network does on samples."""

    loss: float
    accuracy: float


def score(loom: Loom, network: Candidate, x: Tensor, truth: Tensor) -> Score:
    """Mean cross-entropy and accuracy on adapted images (n, c, h, w)."""
    logits = loom.logits(network.trunk, network.rows, x)
    return Score(float(F.cross_entropy(logits, truth)), float((logits.argmax(-1) == truth).float().mean()))


@dataclass(frozen=True)
class Evidence:
    """Cross-validated loss by origin, over so many images; empty where a class has a single image."""

    loss: dict[str, float]
    images: int


def cross_validate(
    loom: Loom, denoise: Denoise, support: Support, sampling: Sampling, *, folds: int = 3, steps: int = 4
) -> Evidence:
    """How each scale of the generated difference does on conditioning images that did not condition it.

    All folds are generated in one batch; every trunk runs over the images once, for its training and its test fold.
    """
    smallest = int(support.mask.sum(-1).min())
    folds = min(folds, smallest)
    if folds < 2:
        return Evidence({}, 0)
    place = torch.arange(support.mask.shape[-1]) % folds  # images stand in random order
    tested = support.mask & (place == torch.arange(folds)[:, None])[:, None]  # (f, k, m)
    held = Support(
        support.images.expand(folds, *support.images.shape[1:]),
        support.features.expand(folds, *support.features.shape[1:]),
        support.trunk_features.expand(folds, *support.trunk_features.shape[1:]),
        support.mask & ~tested,
    )
    quick = replace(sampling, steps=min(steps, sampling.steps), candidates=folds)
    noise = draw_noise(loom, support.classes, quick)
    latents = sample_latents(loom, denoise, loom.condition(held), noise, quick)
    truth = torch.arange(support.classes)[:, None].expand(tested.shape)[tested]
    found = {}
    for share in sorted({s.trunk for s in scales(loom)}):
        part = shrink(loom, latents, Scale("", share, 1))
        features = loom.support_features(loom.trunks(part), held)
        base = loom.ridge(features, held.mask)
        change = loom.vae.decode_row(part[:, loom.config.vae.latents :])
        for s in (s for s in scales(loom) if s.trunk == share):
            rows = base + s.rows * change  # (f, k, width + 1)
            logits = torch.einsum("fkmw,fcw->fkmc", features, rows[..., :-1]) + rows[:, None, None, :, -1]
            found[s.origin] = float(F.cross_entropy(logits[tested], truth))
    return Evidence(found, len(truth))


def rank(networks: list[Candidate], scores: list[Score], evidence: Evidence, images: int) -> list[int]:
    """Best first, by likelihood: finer than accuracy. `scores` are of `images` held-out images, none where that is 0.

    What was cross-validated counts by its number of images beside the held-out ones; single samples count as their mean
    does. Where there is no evidence at all the order given stays: the mean of the samples first, best on average.
    """

    def loss(i: int) -> float:
        origin = "diffusion-mean" if networks[i].origin == "diffusion" else networks[i].origin
        seen = evidence.images if origin in evidence.loss else 0
        total = images * scores[i].loss + seen * evidence.loss.get(origin, 0.0)
        return total / max(1, images + seen)

    return sorted(range(len(networks)), key=loss) if images or evidence.images else list(range(len(networks)))


def baselines(loom: Loom, support: Support, features: Tensor, x: Tensor, truth: Tensor) -> dict[str, float]:
    """Held-out accuracy of what a user would do instead, on the same images: closed form and nearest class mean."""
    zero = torch.zeros(loom.latent_shape(1, support.classes))
    closed = decode(loom, pending(zero[0], "closed-form"), support)
    weight = (support.mask / support.mask.sum(-1, keepdim=True))[0, ..., None]
    means = (weight * support.features[0]).sum(1)
    nearest = torch.cdist(features, means).argmin(1)
    return {
        "closed_form": score(loom, closed, x, truth).accuracy,
        "nearest_class_mean": float((nearest == truth).float().mean()),
    }


def novelty(loom: Loom, support: Support, zoo: Zoo) -> dict[str, float | str | None]:
    """How unlike the training tasks this one is: the share of zoo tasks that lie nearer to their own nearest neighbour.

    0 is familiar, 1 farther from all training tasks than any of them is from the others.
    """
    with torch.inference_mode():
        _, code = loom.set_encoder(support.features, support.mask)
        codes = F.normalize(zoo.set_codes, dim=-1)
        among = (codes @ codes.T).fill_diagonal_(-1).amax(1)
        nearest = (F.normalize(code, dim=-1) @ codes.T).amax()
        share = float((among > nearest).float().mean())
    warning = None
    if share >= 0.99:
        warning = "These samples are unlike every task in training: trust the held-out accuracy, not the card's."
    return {"score": share, "warning": warning}

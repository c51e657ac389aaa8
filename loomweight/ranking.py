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
    guided,
    pending,
    scales,
    shrink,
)
from loomweight.diffusion import sample
from loomweight.loom import Loom, Support


@dataclass(frozen=True)
class Score:
    """How a network does on samples."""

    loss: float
    accuracy: float


TEMPERATURES = 2.0 ** torch.arange(-3, 4)


def calibrated_loss(logits: Tensor, truth: Tensor) -> float:
    """Mean cross-entropy of logits (n, k) at the best of a few temperatures.

    Candidates differ in how sure they are of themselves, most of all far from the training tasks; that must not decide.
    """
    return float(torch.stack([F.cross_entropy(logits * t, truth) for t in TEMPERATURES]).min())


def score(loom: Loom, network: Candidate, x: Tensor, truth: Tensor) -> Score:
    """Calibrated loss and accuracy on adapted images (n, c, h, w)."""
    logits = loom.logits(network.trunk, network.rows, x)
    return Score(calibrated_loss(logits, truth), float((logits.argmax(-1) == truth).float().mean()))


@dataclass(frozen=True)
class Evidence:
    """Cross-validated loss by origin, over so many images; empty where a class has a single image."""

    loss: dict[str, float]
    images: int


def cross_validate(loom: Loom, denoise: Denoise, support: Support, sampling: Sampling, *, folds: int = 3) -> Evidence:
    """How each kind of candidate does on conditioning images that did not condition it.

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
    truth = torch.arange(support.classes)[:, None].expand(tested.shape)[tested]
    found = {}

    def judge(latents: Tensor, kinds: list[Scale]) -> None:
        """Kinds that share a trunk scale, on latents that have it."""
        features = loom.support_features(loom.trunks(latents), held)
        base = loom.ridge(features, held.mask)
        change = loom.vae.decode_row(latents[:, loom.config.vae.latents :])
        for kind in kinds:
            rows = base + kind.rows * change  # (f, k, width + 1)
            logits = torch.einsum("fkmw,fcw->fkmc", features, rows[..., :-1]) + rows[:, None, None, :, -1]
            found[kind.origin] = calibrated_loss(logits[tested], truth)

    noise = draw_noise(loom, support.classes, replace(sampling, candidates=folds))
    predict = guided(denoise, loom.condition(held), sampling.guidance)
    mean = loom.unscale(predict(noise, torch.ones(folds)))
    for share in sorted({s.trunk for s in scales(loom)}):
        judge(shrink(loom, mean, Scale("", share, 1)), [s for s in scales(loom) if s.trunk == share])
    judge(loom.unscale(sample(predict, noise, sampling.steps)), [Scale("diffusion", 1, 1)])
    return Evidence(found, len(truth))


def rank(networks: list[Candidate], scores: list[Score], evidence: Evidence, images: int) -> list[int]:
    """Best first, by likelihood: finer than accuracy. `scores` are of `images` held-out images, none where that is 0.

    What was cross-validated, each kind of candidate, counts by its number of images beside the held-out ones. Where
    there is no evidence at all the order given stays.
    """

    def loss(i: int) -> float:
        seen = evidence.images if networks[i].origin in evidence.loss else 0
        total = images * scores[i].loss + seen * evidence.loss.get(networks[i].origin, 0.0)
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

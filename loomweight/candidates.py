"""Candidates: where weight sets come from, how they are decoded, judged and ranked."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from loomweight.bundle import Zoo
from loomweight.diffusion import Progress, sample
from loomweight.loom import Loom, Support

SCALES = (0.5, 0.25)
"""Shrunken differences that join the candidates; zero, the closed form, always does."""


@dataclass(frozen=True)
class Candidate:
    """A weight set on its way: latents first, then flat trunk (p,) and head rows (classes, width + 1)."""

    latents: Tensor | None  # (latents + classes, dim)
    origin: str
    trunk: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    steps: int
    guidance: float
    temperature: float
    candidates: int
    seed: int


@dataclass(frozen=True)
class Score:
    """How a network does on samples."""

    loss: float
    accuracy: float


def _pending(latents: Tensor, origin: str) -> Candidate:
    empty = latents.new_zeros(0)
    return Candidate(latents, origin, empty, empty)


def diffusion(
    loom: Loom, denoise: Callable[[Tensor, Tensor, Tensor], Tensor], classes: int, sampling: Sampling, progress: Progress
) -> list[Candidate]:
    """Samples, their mean, shrunken versions of the mean, and the closed form."""
    generator = Generator().manual_seed(sampling.seed)
    shape = loom.latent_shape(sampling.candidates, classes)
    noise = sampling.temperature * torch.randn(shape, generator=generator)
    g = sampling.guidance

    def guided(z: Tensor, t: Tensor) -> Tensor:
        with_condition = torch.ones(len(z))
        if g == 1:
            return denoise(z, t, with_condition)
        both = denoise(z.repeat(2, 1, 1), t.repeat(2), torch.cat((with_condition, 0 * with_condition)))
        conditional, unconditional = both.chunk(2)
        return unconditional + g * (conditional - unconditional)

    latents = loom.unscale(sample(guided, noise, sampling.steps, progress=progress))
    mean = latents.mean(0)
    return [
        _pending(mean, "diffusion-mean"),
        *(_pending(z, "diffusion") for z in latents),
        *(_pending(s * mean, f"diffusion-scaled-{s}") for s in SCALES),
        _pending(torch.zeros_like(mean), "closed-form"),
    ]


def _nearest(loom: Loom, support: Support, zoo: Zoo, classes: int, count: int) -> Tensor:
    """Zoo models with enough classes, nearest by dataset code first."""
    _, code = loom.set_encoder(support.features, support.mask)
    distance = 1 - F.cosine_similarity(code, zoo.set_codes)
    distance = distance.masked_fill(zoo.tensors["class_counts"] < classes, torch.inf)
    order = distance.argsort()
    return order[: min(count, int(distance.isfinite().sum()))]


def retrieve(loom: Loom, support: Support, zoo: Zoo, sampling: Sampling) -> list[Candidate]:
    """The zoo models nearest by dataset code as they are, their head rows matched to the request's classes."""
    weight = (support.mask / support.mask.sum(-1, keepdim=True))[0, ..., None]
    means = (weight * support.features[0]).sum(1)  # (k, D)
    found = []
    for i in _nearest(loom, support, zoo, support.classes, sampling.candidates).tolist():
        own = (zoo.tensors["row_models"] == i).nonzero().squeeze(1)
        cost = torch.cdist(means, zoo.tensors["class_means"][own].float())
        _, chosen = linear_sum_assignment(cost.numpy())
        rows = zoo.tensors["rows"][own[torch.from_numpy(chosen)]].float()
        found.append(Candidate(None, "retrieve", zoo.tensors["trunks"][i].float(), rows))
    return found


def kde(loom: Loom, support: Support, zoo: Zoo, sampling: Sampling, *, neighbours: int = 8, bandwidth: float = 0.2) -> list[Candidate]:
    """SANE's kernel density sampling (section 3.3): each trunk token drawn around its own anchor among the nearest zoo
    models; the head is the closed form on that trunk, since the zoo's classes are others.
    """
    generator = Generator().manual_seed(sampling.seed)
    prompts = zoo.tensors["trunk_codes"][_nearest(loom, support, zoo, 0, neighbours)].float()  # (p, latents, dim)
    width = bandwidth * prompts.std(0, correction=0) * sampling.temperature
    classes = torch.zeros(support.classes, loom.config.vae.dim)
    found = []
    for _ in range(sampling.candidates):
        anchor = torch.randint(len(prompts), (prompts.shape[1],), generator=generator)
        drawn = prompts[anchor, torch.arange(prompts.shape[1])]
        drawn = drawn + width * torch.randn(drawn.shape, generator=generator)
        found.append(_pending(torch.cat((drawn, classes)), "kde"))
    return found


def decode(loom: Loom, candidate: Candidate, support: Support) -> Candidate:
    """Latents to weights; what is weights already passes."""
    if candidate.latents is None:
        return candidate
    latents = candidate.latents[None]
    trunk = loom.trunks(latents)
    rows, _ = loom.rows(latents, trunk, support)
    return Candidate(candidate.latents, candidate.origin, trunk[0], rows[0])


def score(loom: Loom, network: Candidate, x: Tensor, truth: Tensor) -> Score:
    """Mean cross-entropy and accuracy on adapted images (n, c, h, w)."""
    logits = loom.logits(network.trunk, network.rows, x)
    return Score(float(F.cross_entropy(logits, truth)), float((logits.argmax(-1) == truth).float().mean()))


def rank(networks: list[Candidate], scores: list[Score], *, on_holdout: bool) -> list[int]:
    """Best first. Held-out likelihood decides (it is finer than accuracy); ties keep the order given.

    Without held-out samples closed forms would win by having been fitted to the very samples that judge: then the order is
    the one given, the mean of the samples first, which is best on average (docs/results).
    """
    if not on_holdout:
        return list(range(len(networks)))
    return sorted(range(len(networks)), key=lambda i: scores[i].loss)


def baselines(loom: Loom, support: Support, features: Tensor, x: Tensor, truth: Tensor) -> dict[str, float]:
    """Held-out accuracy of what a user would do instead, on the same images: closed form and nearest class mean."""
    zero = torch.zeros(loom.latent_shape(1, support.classes))
    closed = decode(loom, _pending(zero[0], "closed-form"), support)
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

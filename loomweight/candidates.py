"""Candidates: where weight sets come from, and how they become networks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from loomweight.bundle import Zoo
from loomweight.denoiser import Condition
from loomweight.diffusion import Progress, sample
from loomweight.loom import Loom, Support


@dataclass(frozen=True)
class Scale:
    """How much of the generated difference a candidate takes: of the trunk's, and of the head rows'."""

    origin: str
    trunk: float
    rows: float


SCALES = (
    Scale("mean", 1, 1),
    Scale("mean-half-rows", 1, 0.5),
    Scale("mean-trunk", 1, 0),
    Scale("mean-half", 0.5, 0.5),
    Scale("mean-half-trunk", 0.5, 0),
    Scale("mean-quarter", 0.25, 0.25),
    Scale("closed-form", 0, 0),
)
"""The conditional mean in full, and shrunken: far from training tasks less is more; nothing is the closed form."""


def scales(loom: Loom) -> tuple[Scale, ...]:
    """Those that differ for this target: without a trunk only the rows' share counts."""
    if loom.spec.trunk:
        return SCALES
    return tuple({s.rows: s for s in SCALES if s.rows or s.origin == "closed-form"}.values())


Denoise = Callable[[Tensor, Tensor, Condition, Tensor], Tensor]
"""z (b, tokens, dim), t (b,), condition (b, ...), keep (b,) -> clean latents of unit scale."""


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


def pending(latents: Tensor, origin: str) -> Candidate:
    """A candidate that is latents so far."""
    empty = latents.new_zeros(0)
    return Candidate(latents, origin, empty, empty)


def guided(denoise: Denoise, condition: Condition, guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser under one condition for each item, with classifier-free guidance (Ho & Salimans 2022)."""

    def predict(z: Tensor, t: Tensor) -> Tensor:
        with_condition = torch.ones(len(z))
        if guidance == 1:
            return denoise(z, t, condition, with_condition)
        twice = Condition(condition.classwise.repeat(2, 1, 1), condition.overall.repeat(2, 1))
        both = denoise(z.repeat(2, 1, 1), t.repeat(2), twice, torch.cat((with_condition, 0 * with_condition)))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return predict


def draw_noise(loom: Loom, classes: int, sampling: Sampling) -> Tensor:
    """Starting noise of all candidates (candidates, latents + classes, dim)."""
    generator = Generator().manual_seed(sampling.seed)
    # One draw a candidate: torch fills a tensor's last values out of turn, and more of them must not change the first.
    shape = loom.latent_shape(1, classes)
    return sampling.temperature * torch.cat(
        [torch.randn(shape, generator=generator) for _ in range(sampling.candidates)]
    )


def diffusion(
    loom: Loom,
    denoise: Denoise,
    condition: Condition,
    classes: int,
    sampling: Sampling,
    progress: Progress,
    *,
    prior: str = "mean",
) -> list[Candidate]:
    """The conditional mean, shrunken versions of it down to the closed form, and samples.

    The mean is the prediction from pure noise. `prior` comes first: best on average where nothing can rank.
    """
    noise = draw_noise(loom, classes, sampling)
    expanded = Condition(condition.classwise.expand(len(noise), -1, -1), condition.overall.expand(len(noise), -1))
    predict = guided(denoise, expanded, sampling.guidance)
    mean = loom.unscale(predict(noise, torch.ones(len(noise)))).mean(0)
    samples = loom.unscale(sample(predict, noise, sampling.steps, progress=progress))
    shrunken = [pending(shrink(loom, mean, s), s.origin) for s in scales(loom)]
    first = [c for c in shrunken if c.origin == prior]
    return [*first, *(c for c in shrunken if c.origin != prior), *(pending(z, "diffusion") for z in samples)]


def shrink(loom: Loom, latents: Tensor, scale: Scale) -> Tensor:
    """Latents (..., latents + classes, dim) with their global and class tokens scaled."""
    first = loom.config.vae.latents
    return torch.cat((scale.trunk * latents[..., :first, :], scale.rows * latents[..., first:, :]), -2)


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


def kde(
    loom: Loom, support: Support, zoo: Zoo, sampling: Sampling, *, neighbours: int = 8, bandwidth: float = 0.2
) -> list[Candidate]:
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
        found.append(pending(torch.cat((drawn, classes)), "kde"))
    return found


def decode(loom: Loom, candidate: Candidate, support: Support) -> Candidate:
    """Latents to weights; what is weights already passes."""
    if candidate.latents is None:
        return candidate
    latents = candidate.latents[None]
    trunk = loom.trunks(latents)
    rows, _ = loom.rows(latents, trunk, support)
    return Candidate(candidate.latents, candidate.origin, trunk[0], rows[0])

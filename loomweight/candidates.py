"""Candidates: where weight sets come from, and how they become networks."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from loomweight.bundle import Zoo
from loomweight.denoiser import Condition
from loomweight.diffusion import Progress, sample
from loomweight.loom import Loom, Support, class_means

MEAN = "conditional-mean"
"""The method without sampling: the denoiser's one prediction from nothing, and shares of it."""


@dataclass(frozen=True)
class Kind:
    """One way to make latents: shares of the conditional mean's difference (trunk, head rows), or a sample."""

    origin: str
    trunk: float = 1
    rows: float = 1
    draw: int | None = None  # number of the sample; None: the conditional mean
    ridge: float = 1  # share of ridge in the closed form beside the nearest mean

    @property
    def closed(self) -> bool:
        """Whether nothing of it is generated."""
        return self.trunk == self.rows == 0


CLOSED_FORM = Kind("closed-form", 0, 0)
SCALES = (
    Kind("mean"),
    Kind("mean-half", rows=0.5),
    Kind("mean-quarter", rows=0.25),
    Kind("mean-trunk", rows=0),
    CLOSED_FORM,
)
"""The conditional mean in full, and with less of its head rows' difference: far from training tasks less is more."""
HEAD_SCALES = (*SCALES[:3], CLOSED_FORM, Kind("nearest-mean", 0, 0, ridge=0))
"""The same without a trunk. On good features the nearest mean alone can be better than with ridge beside it."""
BLEND = "blend"
"""Origin of the network whose head rows are an average over kinds that share a trunk; see `ranking.blend`."""


def kinds(loom: Loom, method: str, candidates: int, prior: str) -> list[Kind]:
    """What a request weaves: closed forms always, `prior` first (best on average where nothing can rank).

    Of the conditional mean at most `candidates` shares; samples, so many, come behind all of them.
    """
    shares = sorted(SCALES if loom.spec.trunk else HEAD_SCALES, key=lambda k: k.origin != prior)
    if method != MEAN:
        return shares + [Kind("diffusion", draw=i) for i in range(candidates)]
    mean = [k for k in shares if not k.closed][:candidates]
    return [k for k in shares if k.closed or k in mean]


def together(loom: Loom, kinds: list[Kind]) -> list[int]:
    """Numbers of the kinds whose heads can be averaged: those of the conditional mean's trunk, all if there is none."""
    return [i for i, k in enumerate(kinds) if k.draw is None and (k.trunk == 1 or not loom.spec.trunk)]


Denoise = Callable[[Tensor, Tensor, Condition, Tensor], Tensor]
"""z (b, tokens, dim), t (b,), condition (b, ...), keep (b,) -> clean latents of unit scale."""


@dataclass(frozen=True)
class Candidate:
    """A weight set on its way: latents first, then flat trunk (p,) and head rows (classes, width + 1)."""

    latents: Tensor | None  # (latents + classes, dim)
    origin: str
    trunk: Tensor
    rows: Tensor
    ridge: float = 1  # see `Kind`
    members: "tuple[tuple[float, Candidate], ...]" = ()  # of a blend: what its rows are a weighted sum of


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    steps: int
    guidance: float
    temperature: float
    candidates: int
    seed: int


def pending(latents: Tensor, kind: Kind) -> Candidate:
    """A candidate that is latents so far."""
    empty = latents.new_zeros(0)
    return Candidate(latents, kind.origin, empty, empty, kind.ridge)


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


def weave(
    loom: Loom, denoise: Denoise, condition: Condition, kinds: list[Kind], sampling: Sampling, progress: Progress
) -> Tensor:
    """Latents (b, kinds, latents + classes, dim) under each of b conditions, from the same noise under all of them."""
    batch, classes = condition.classwise.shape[:2]
    nothing = torch.zeros(loom.latent_shape(batch, classes))
    mean = loom.unscale(guided(denoise, condition, sampling.guidance)(nothing, torch.ones(batch)))
    draws = sum(k.draw is not None for k in kinds)
    samples = mean.new_zeros(batch, 0, *mean.shape[1:])
    if draws:
        noise = draw_noise(loom, classes, sampling)[:draws].repeat(batch, 1, 1)
        each = Condition(*(c.repeat_interleave(draws, 0) for c in (condition.classwise, condition.overall)))
        drawn = sample(guided(denoise, each, sampling.guidance), noise, sampling.steps, progress=progress)
        samples = torch.unflatten(loom.unscale(drawn), 0, (batch, draws))
    return torch.stack([shrink(loom, mean, k) if k.draw is None else samples[:, k.draw] for k in kinds], 1)


def shrink(loom: Loom, latents: Tensor, kind: Kind) -> Tensor:
    """Latents (..., latents + classes, dim) with their global and class tokens scaled."""
    first = loom.config.vae.latents
    return torch.cat((kind.trunk * latents[..., :first, :], kind.rows * latents[..., first:, :]), -2)


def _nearest(loom: Loom, support: Support, zoo: Zoo, classes: int, count: int) -> Tensor:
    """Zoo models with enough classes, nearest by dataset code first."""
    _, code = loom.set_encoder(*loom.looked_at(support))
    distance = 1 - F.cosine_similarity(code, zoo.set_codes)
    distance = distance.masked_fill(zoo.tensors["class_counts"] < classes, torch.inf)
    order = distance.argsort()
    return order[: min(count, int(distance.isfinite().sum()))]


def retrieve(loom: Loom, support: Support, zoo: Zoo, sampling: Sampling) -> list[Candidate]:
    """The zoo models nearest by dataset code as they are, their head rows matched to the request's classes."""
    means = class_means(*loom.looked_at(support))[0]  # (k, D)
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
        found.append(pending(torch.cat((drawn, classes)), Kind("kde")))
    return found


def decode(loom: Loom, candidate: Candidate, support: Support) -> Candidate:
    """Latents to weights; what is weights already passes. A blend's members share the first one's trunk."""
    parts = candidate.members or ((1.0, candidate),)
    first = parts[0][1].latents
    if first is None:
        return candidate
    trunk = loom.trunks(first[None])
    heads = loom.heads(loom.support_features(trunk, support), support)
    rows = sum(w * heads.rows(_latents(c)[None], c.ridge) for w, c in parts)
    assert isinstance(rows, Tensor)
    return replace(candidate, trunk=trunk[0], rows=rows[0])


def _latents(candidate: Candidate) -> Tensor:
    assert candidate.latents is not None
    return candidate.latents

"""What each choice at request time earns, for table 6: one setting of a trained loom swept, the others at the product's
defaults.

A sweep takes a loom and gives what tries all its values on a task. Names are `way: value`; the product's own value is
the one that the others are compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.loom_tasks import Task, Try, accuracy, share_right
from loomweight import candidates as weaving
from loomweight import ranking
from loomweight.candidates import CLOSED_FORM, SCALES, Candidate, Kind, Sampling
from loomweight.loom import LOOKED_AT, Loom, Support
from loomweight.ranking import Answers

MEAN = Kind("mean")
DEFAULT = Sampling(steps=8, guidance=1.0, temperature=1.0, candidates=1, seed=0)
"""As the starter bundle samples."""

GUIDANCE = (0.5, 1.0, 2.0, 4.0)
STEPS = (1, 2, 4, 8, 32)
TEMPERATURES = (0.0, 0.5, 1.0, 2.0)
CANDIDATES = (1, 2, 4, 8, 16, 32)
SHARES = (0.25, 0.5, 1.0)
FOLDS = (2, 3, 5)
HELD_OUT = (0.1, 0.2, 0.34)
LOOKS = (1, 2, 4, 8, 16)


def samples(count: int) -> list[Kind]:
    """So many samples, as a request numbers them."""
    return [Kind("diffusion", draw=i) for i in range(count)]


def woven(loom: Loom, support: Support, kinds: list[Kind], how: Sampling) -> Tensor:
    """Latents (b, kinds, latents + classes, dim) of each task, or fold, of the support."""
    return weaving.weave(loom, loom.denoise, loom.condition(support), kinds, how, lambda step, steps: None)


def of(task: Task, count: int = 1, **settings: Any) -> Sampling:
    """The default sampling with some settings changed, seeded by the task."""
    return replace(DEFAULT, candidates=count, seed=task.seed, **settings)


def guidance(loom: Loom) -> Try:
    """Classifier-free guidance, for the conditional mean and for one sample."""

    def attempt(task: Task) -> dict[str, float]:
        found = {}
        for g in GUIDANCE:
            mean, sample = woven(loom, task.support, [MEAN, *samples(1)], of(task, guidance=g))[0]
            found[f"conditional mean: {g:g}"] = accuracy(loom, mean, task)
            found[f"one sample: {g:g}"] = accuracy(loom, sample, task)
        return found

    return attempt


def _one_sample(loom: Loom, setting: str, values: Sequence[float]) -> Try:
    def answer(task: Task, value: float) -> float:
        changed: dict[str, Any] = {setting: value}
        return accuracy(loom, woven(loom, task.support, samples(1), of(task, **changed))[0, 0], task)

    return lambda task: {f"one sample: {v:g}": answer(task, v) for v in values}


def shares(loom: Loom) -> Try:
    """Shares of the conditional mean's difference, of trunk and head rows together and of either alone."""
    kinds = [CLOSED_FORM, *(Kind("", s * trunk, s * rows) for trunk, rows in ((1, 1), (1, 0), (0, 1)) for s in SHARES)]

    def attempt(task: Task) -> dict[str, float]:
        latents = woven(loom, task.support, kinds, of(task))[0]
        names = (f"trunk {k.trunk:g}, rows {k.rows:g}" for k in kinds)
        return {f"share: {n}": accuracy(loom, z, task) for n, z in zip(names, latents, strict=True)}

    return attempt


def cross_validated(
    loom: Loom, task: Task, kinds: list[Kind], how: Sampling, folds: int
) -> tuple[list[Candidate], Answers | None]:
    """Candidates from all images, and what they would have answered by so many folds."""
    together, tested = ranking.with_folds(task.support, folds)
    latents = woven(loom, together, kinds, how)
    found = [weaving.pending(z, k) for z, k in zip(latents[0], kinds, strict=True)]
    if not folds:
        return found, None
    return found, ranking.cross_validate(loom, together.part(slice(1, None)), tested, latents[1:], kinds)[0]


def right(loom: Loom, candidate: Candidate, task: Task) -> float:
    """Accuracy of a candidate on the images that judge."""
    network = weaving.decode(loom, candidate, task.support)
    return share_right(loom.logits(network.trunk, network.rows, task.query), task.truth)


def candidates(loom: Loom) -> Try:
    """The best ranked of so many samples, alone and beside the shares of the conditional mean."""

    def attempt(task: Task) -> dict[str, float]:
        most = max(CANDIDATES)
        kinds = [*SCALES, *samples(most)]
        woven, answers = cross_validated(loom, task, kinds, of(task, most), ranking.folds_of(task.support))
        order = ranking.rank(len(woven), [ranking.evidence(answers, {})] if answers else [])
        known: dict[int, float] = {}

        def best(allowed: Callable[[int], bool]) -> float:
            first = next(i for i in order if allowed(i))
            if first not in known:
                known[first] = right(loom, woven[first], task)
            return known[first]

        others = len(SCALES)
        found = {"conditional mean: alone": best(lambda i: i == 0)}
        found["conditional mean: its best share"] = best(lambda i: i < others)
        for n in CANDIDATES:
            found[f"best sample of: {n}"] = best(lambda i, n=n: others <= i < others + n)  # type: ignore[misc]
            found[f"best of shares and samples: {n}"] = best(lambda i, n=n: i < others + n)  # type: ignore[misc]
        return found

    return attempt


def without_last(support: Support, count: int) -> tuple[Support, Tensor]:
    """The support of one task without the last images of each class, and which those are (k, m)."""
    held = torch.zeros_like(support.mask[0])
    held[:, held.shape[1] - count :] = True
    return replace(support, mask=support.mask & ~held), held


def held_out(loom: Loom, task: Task, share: float) -> float:
    """Accuracy of the best ranked share of the conditional mean where some images rank and never condition."""
    count = max(1, round(share * task.support.mask.shape[-1]))
    support, held = without_last(task.support, count)
    latents = woven(loom, support, list(SCALES), of(task))[0]
    truth = torch.arange(len(held))[:, None].expand(held.shape)[held]

    def loss(z: Tensor) -> float:
        trunks = loom.trunks(z[None])
        rows, _ = loom.rows(z[None], trunks, support)
        return ranking.calibrated_loss(loom.logits(trunks[0], rows[0], support.images[0][held]), truth)

    return accuracy(loom, min(latents, key=loss), task, support)


def evidence(loom: Loom) -> Try:
    """What weighs the shares of the conditional mean: nothing, folds (blended, or the best alone), held-out images."""
    kinds = list(SCALES)

    def by_folds(task: Task, folds: int, *, blended: bool = True) -> float:
        found, answers = cross_validated(loom, task, kinds, of(task), folds)
        if answers is None:
            return right(loom, found[0], task)
        if blended:
            return right(loom, ranking.blend(found, answers, weaving.together(loom, kinds))[0], task)
        return right(loom, found[ranking.rank(len(found), [ranking.evidence(answers, {})])[0]], task)

    def attempt(task: Task) -> dict[str, float]:
        product = ranking.folds_of(task.support)
        found = {
            "ranked by: the product's folds": by_folds(task, product),
            "ranked by: the product's folds, the best alone": by_folds(task, product, blended=False),
            "ranked by: nothing": by_folds(task, 0),
        }
        images = task.support.mask.shape[-1]
        if images > 1:
            found |= {f"ranked by: {n} folds": by_folds(task, n) for n in FOLDS if n <= images}
            found |= {f"ranked by: {h:.0%} held out": held_out(loom, task, h) for h in HELD_OUT}
        return found

    return attempt


class Looking(Loom):
    """Lets the encoder look at another number of images of each class."""

    first = LOOKED_AT

    def looked_at(self, support: Support) -> tuple[Tensor, Tensor]:
        """As of a loom."""
        return support.features[..., : self.first, :], support.mask[..., : self.first]


def looks(loom: Loom) -> Try:
    """Images of a class that the encoder looks at."""
    made = {}
    for n in LOOKS:
        made[n] = Looking(loom.spec, loom.config)
        made[n].load_state_dict(loom.state_dict())
        made[n].first = n

    def attempt(task: Task) -> dict[str, float]:
        means = {n: woven(other, task.support, [MEAN], of(task))[0, 0] for n, other in made.items()}
        return {f"looks at: {n}": accuracy(loom, z, task) for n, z in means.items()}

    return attempt


@dataclass(frozen=True)
class Sweep:
    """A sweep, and the product's own value of each way to answer; `reference` where a way has none."""

    what: str
    make: Callable[[Loom], Try]
    default: str
    reference: str = ""


SWEEPS = {
    "guidance": Sweep("classifier-free guidance", guidance, "1"),
    "steps": Sweep("sampler steps", lambda loom: _one_sample(loom, "steps", STEPS), "8"),
    "temperature": Sweep("temperature", lambda loom: _one_sample(loom, "temperature", TEMPERATURES), "1"),
    "shares": Sweep("share of the difference", shares, "trunk 1, rows 1"),
    "candidates": Sweep("candidates", candidates, "", "conditional mean: its best share"),
    "evidence": Sweep("what ranks", evidence, "the product's folds"),
    "looks": Sweep("images of a class that the encoder sees", looks, str(LOOKED_AT)),
}


def reference(name: str, way: str) -> str:
    """What a way to answer, `way: value`, of a sweep is compared with."""
    sweep = SWEEPS[name]
    return sweep.reference or f"{way.partition(': ')[0]}: {sweep.default}"

"""From samples to ranked checkpoints: the whole path, for one request, on a loaded bundle."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from loomweight import candidates as weave
from loomweight import ranking as ranks
from loomweight.bundle import Bundle, TargetInfo
from loomweight.candidates import BLEND, MEAN, Candidate, Denoise, Sampling
from loomweight.denoiser import Condition
from loomweight.errors import Canceled, InvalidRequest
from loomweight.loom import LOOKED_AT, Loom, Support
from loomweight.novelty import Novelty
from loomweight.ranking import Answers, Evidence
from loomweight.runtime import Runtime, open_runtime
from loomweight.splits import Split, flatten_split, split_samples
from loomweight.weight_vae import join

METHODS = (MEAN, "diffusion", "kde", "retrieve")
HOLDOUT = 0.2
"""Share of the samples that ranks where cross-validation cannot: zoo models, and networks trained on the samples."""

Array = NDArray[np.float32]
RankedOn = Literal["holdout", "cross-validation", "conditioning"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GenerateOptions:
    """A request's options; None takes the bundle's default.

    `holdout` None ranks by cross-validation and gives networks made from all samples (what cannot be cross-validated
    holds out `HOLDOUT`); a number is the share that never conditions and only ranks.
    """

    target: str
    seed: int
    method: str = MEAN
    candidates: int = 8
    keep: int = 1
    holdout: float | None = None
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    refine_steps: int = 0

    @property
    def cross_validated(self) -> bool:
        """Whether each way to make a network can be made again without some of the samples."""
        return self.method in (MEAN, "diffusion") and not self.refine_steps


@dataclass(frozen=True)
class GeneratedModel:
    """One generated network; row i of its head answers for classes[i]."""

    target: str
    classes: tuple[str, ...]
    tensors: dict[str, Array]
    origin: str
    rank: int
    holdout_accuracy: float | None


@dataclass(frozen=True)
class GenerationResult:
    """What a request gets, best model first; times in milliseconds."""

    models: tuple[GeneratedModel, ...]
    classes: tuple[str, ...]
    seed: int
    method: str
    bundle: str
    ranked_on: RankedOn
    n_holdout: int
    baselines: dict[str, float]
    novelty: dict[str, float | str | None]
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class Weaving:
    """A request's candidates before they are ranked: woven ones are latents so far, borrowed ones weights."""

    options: GenerateOptions
    loom: Loom
    split: Split
    support: Support
    adapted: Tensor  # (n, c, h, w): all images as the target takes them; for a head their features
    features: Tensor  # (n, dim); of images that the encoder did not look at, zeros
    candidates: list[Candidate]
    answers: Answers | None = None  # of the candidates, in order, where they were cross-validated
    cross_validated: Evidence | None = None

    def network(self, i: int) -> Candidate:
        """Candidate number i with its weights."""
        if not self.candidates[i].rows.numel():
            with torch.inference_mode():
                self.candidates[i] = weave.decode(self.loom, self.candidates[i], self.support)
        return self.candidates[i]

    def networks(self) -> list[Candidate]:
        """All candidates with their weights."""
        return [self.network(i) for i in range(len(self.candidates))]


@dataclass(frozen=True)
class Ranking:
    """Candidates in order, best first, and what judged them."""

    order: list[int]
    ranked_on: RankedOn
    evidence: Evidence | None  # of the kind that `ranked_on` names; None where nothing but conditioning samples judged

    def accuracy(self, i: int) -> float | None:
        """Accuracy of a candidate on images that did not condition it, where there were any."""
        return self.evidence.accuracy[i] if self.evidence else None


class Generator:
    """A loaded bundle that answers requests. Not thread-safe; one a process."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.looms = {t.id: bundle.loom(t.id) for t in bundle.targets}
        self.zoos = {t.id: bundle.zoo(t.id) for t in bundle.targets}
        self.novelties = {name: Novelty(zoo) for name, zoo in self.zoos.items()}

    @classmethod
    def load(
        cls, bundle_dir: Path, *, device: str = "cpu", backend: str = "auto", threads: int | None = None
    ) -> "Generator":
        """Verify and load a bundle; raises InvalidBundle."""
        if threads is not None:
            torch.set_num_threads(threads)
        bundle = Bundle.open(Path(bundle_dir))
        return cls(bundle, open_runtime(bundle, backend=backend, device=device, threads=threads))

    def targets(self) -> list[TargetInfo]:
        """What can be generated."""
        return self.bundle.targets

    def generate(
        self,
        images: Array,
        labels: Sequence[str],
        options: GenerateOptions,
        *,
        progress: Progress = lambda stage, step, steps: None,
        canceled: Callable[[], bool] = lambda: False,
    ) -> GenerationResult:
        """Images (n, 3, 32, 32) float in [0, 1] with one label each -> ranked networks.

        The same arguments, bundle, device and thread count give the same weights, bit for bit. Raises InvalidRequest
        for what the caller can mend, and Canceled when `canceled()` turns true between two steps.
        """

        def report(stage: str, step: int, steps: int) -> None:
            if canceled():
                raise Canceled
            progress(stage, step, steps)

        clock = _Clock()
        w = self.weave(images, labels, options, report, clock)
        if options.refine_steps:
            w.candidates += [_refine(w, n, options.refine_steps, report) for n in w.networks()]
            clock.lap("refine")
        report("rank", 0, 1)
        ranking = self.rank(w)
        novelty = self.novelties[options.target].score(w.loom, w.support)
        clock.lap("rank")
        report("decode_weights", 0, 1)
        models = tuple(
            _model(w.loom, w.network(i), w.split.classes, place, ranking.accuracy(i))
            for place, i in enumerate(ranking.order[: options.keep])
        )
        clock.lap("decode_weights")
        return GenerationResult(
            models,
            w.split.classes,
            options.seed,
            options.method,
            self.bundle.id,
            ranking.ranked_on,
            ranking.evidence.images if ranking.evidence else 0,
            ranking.evidence.baselines if ranking.evidence else {},
            novelty,
            clock.times,
        )

    def weave(
        self,
        images: Array,
        labels: Sequence[str],
        options: GenerateOptions,
        report: Progress = lambda stage, step, steps: None,
        clock: "_Clock | None" = None,
    ) -> Weaving:
        """Everything up to the ranking: all candidates of a request, and their cross-validation."""
        clock = clock or _Clock()
        loom = self._loom(options)
        holdout = options.holdout
        if holdout is None:
            holdout = 0.0 if options.cross_validated else HOLDOUT
        split = split_samples(labels, holdout, options.seed, self._info(options.target))
        with torch.inference_mode():
            report("encode", 0, 1)
            adapted, features = self._read(loom, images, split)
            support = _support(loom, split, adapted, features)
            clock.lap("encode")
            report("sample", 0, 1)
            w = Weaving(options, loom, split, support, adapted, features, [])
            if options.method in (MEAN, "diffusion"):
                self._weave(w, report, clock)
            else:
                w.candidates = self._borrowed(w)
            clock.lap("sample")
        return w

    def rank(self, w: Weaving) -> Ranking:
        """Order the candidates of a request by cross-validated and held-out likelihood."""
        held_out = any(len(h) for h in w.split.holdout)
        leader = 0 if w.candidates[0].origin == BLEND else None
        if w.cross_validated and not held_out:
            order = ranks.rank(len(w.candidates), [w.cross_validated], leader=leader)
            return Ranking(order, "cross-validation", w.cross_validated)
        if not held_out and w.options.cross_validated:  # one image a class: what is best on average stays first
            return Ranking(list(range(len(w.candidates))), "conditioning", None)
        with torch.inference_mode():
            index, truth = flatten_split(w.split.holdout if held_out else w.split.conditioning)
            judged = ranks.judge(w.loom, w.networks(), w.support, w.features[index], w.adapted[index], truth)
        both = [judged, w.cross_validated] if w.cross_validated else [judged]
        order = ranks.rank(len(w.candidates), both, leader=leader)
        return Ranking(order, "holdout", judged) if held_out else Ranking(order, "conditioning", None)

    def _info(self, target: str) -> TargetInfo:
        return next(t for t in self.bundle.targets if t.id == target)

    def _loom(self, options: GenerateOptions) -> Loom:
        if options.target not in self.looms:
            raise InvalidRequest(f"unknown target {options.target!r}; this bundle has {sorted(self.looms)}")
        if options.method not in METHODS:
            raise InvalidRequest(f"unknown method {options.method!r}; there are {list(METHODS)}")
        if options.method == "kde" and not self.looms[options.target].spec.trunk:
            raise InvalidRequest(f"kde samples hidden layers and {options.target} has none; use another method")
        return self.looms[options.target]

    def _sampling(self, options: GenerateOptions) -> Sampling:
        defaults = self.bundle.manifest["defaults"]
        return Sampling(
            steps=defaults["steps"] if options.steps is None else options.steps,
            guidance=defaults["guidance"] if options.guidance is None else options.guidance,
            temperature=defaults["temperature"] if options.temperature is None else options.temperature,
            candidates=options.candidates,
            seed=options.seed,
        )

    def _read(self, loom: Loom, images: Array, split: Split) -> tuple[Tensor, Tensor]:
        """All images as the target takes them, and the encoder's features of those that it looks at."""
        x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        first = LOOKED_AT if loom.spec.trunk else None
        looked_at = [np.concatenate((c[:first], h)) for c, h in zip(split.conditioning, split.holdout, strict=True)]
        index, _ = flatten_split(looked_at)
        features = torch.zeros(len(x), loom.config.set_encoder.inputs)
        features[index] = self.runtime.encode(x[index])
        return loom.spec.adapt(x) if loom.spec.trunk else features, features

    def _weave(self, w: Weaving, report: Progress, clock: "_Clock") -> None:
        """Candidates from the denoiser; in the same batch, those of every fold."""
        options, sampling = w.options, self._sampling(w.options)
        kinds = weave.kinds(
            w.loom, options.method, options.candidates, self.bundle.manifest["defaults"]["prior"][options.target]
        )
        folds = ranks.folds_of(w.support) if options.cross_validated else 0
        together, tested = ranks.with_folds(w.support, folds)
        latents = weave.weave(
            w.loom,
            self._denoise(options.target),
            w.loom.condition(together),
            kinds,
            sampling,
            lambda i, n: report("sample", i, n),
        )
        w.candidates = [weave.pending(z, k) for z, k in zip(latents[0], kinds, strict=True)]
        if folds:
            clock.lap("sample")
            report("rank", 0, 1)
            held = together.part(slice(1, None))
            answers, baselines = ranks.cross_validate(w.loom, held, tested, latents[1:], kinds)
            blend, said = ranks.blend(w.candidates, answers, weave.together(w.loom, kinds))
            w.candidates.insert(0, blend)
            w.answers = Answers(torch.cat((said[None], answers.logits)), answers.truth)
            w.cross_validated = ranks.evidence(w.answers, baselines)
            clock.lap("rank")

    def _borrowed(self, w: Weaving) -> list[Candidate]:
        """Candidates from the zoo."""
        zoo, sampling = self.zoos[w.options.target], self._sampling(w.options)
        if w.options.method == "kde":
            return weave.kde(w.loom, w.support, zoo, sampling)
        found = weave.retrieve(w.loom, w.support, zoo, sampling)
        if not found:
            raise InvalidRequest(
                f"no stored {w.options.target} has {w.support.classes} classes; use {MEAN} or diffusion"
            )
        return found

    def _denoise(self, target: str) -> Denoise:
        def denoise(z: Tensor, t: Tensor, condition: Condition, keep: Tensor) -> Tensor:
            return self.runtime.denoise(target, z, t, condition.classwise, condition.overall, keep)

        return denoise


def _support(loom: Loom, split: Split, adapted: Tensor, features: Tensor) -> Support:
    """Conditioning images, padded to the largest class under a mask."""
    most = max(len(c) for c in split.conditioning)
    index = torch.zeros(len(split.classes), most, dtype=torch.long)
    mask = torch.zeros(len(split.classes), most, dtype=torch.bool)
    for i, chosen in enumerate(split.conditioning):
        index[i, : len(chosen)] = torch.from_numpy(chosen)
        mask[i, : len(chosen)] = True
    own = torch.unflatten(loom.features(loom.vae.shared, adapted[index.flatten()]), 0, index.shape)
    return Support(adapted[index][None], features[index][None], own[None], mask[None])


def _refine(w: Weaving, network: Candidate, steps: int, report: Progress) -> Candidate:
    """The network after so many gradient steps on the conditioning samples."""
    index, truth = flatten_split(w.split.conditioning)
    x = w.adapted[index].clone()  # leaves inference mode behind
    trunk, rows = (p.clone().requires_grad_() for p in (network.trunk, network.rows))
    optimizer = torch.optim.AdamW([trunk, rows], lr=1e-3)
    for i in range(steps):
        report("refine", i, steps)
        optimizer.zero_grad()
        F.cross_entropy(w.loom.logits(trunk, rows, x), truth).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return replace(network, origin=f"{network.origin}-refined", trunk=trunk.detach(), rows=rows.detach())


def _model(
    loom: Loom, network: Candidate, classes: tuple[str, ...], rank: int, accuracy: float | None
) -> GeneratedModel:
    tensors = join(loom.spec, network.trunk, network.rows)
    arrays = {name: np.ascontiguousarray(tensors[name].numpy()) for name in loom.spec.shapes(len(classes))}
    return GeneratedModel(loom.spec.name, classes, arrays, network.origin, rank, accuracy)


class _Clock:
    """Milliseconds by stage; a stage that comes in two parts has their sum."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.times[name] = self.times.get(name, 0.0) + (now - self._last) * 1000
        self._last = now

"""From samples to ranked checkpoints: the whole path, for one request, on a loaded bundle."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from loomweight import candidates as weave
from loomweight import ranking as ranks
from loomweight.bundle import Bundle, TargetInfo
from loomweight.candidates import Candidate, Denoise, Sampling
from loomweight.denoiser import Condition
from loomweight.errors import Canceled, InvalidRequest
from loomweight.loom import Loom, Support
from loomweight.ranking import Score
from loomweight.runtime import Runtime, open_runtime
from loomweight.weight_vae import join

METHODS = ("diffusion", "kde", "retrieve")
MAX_CONDITIONING = 400
"""Images that condition at most; more of a class are left out by the seed, and rank instead."""

Array = NDArray[np.float32]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GenerateOptions:
    """A request's options; None takes the bundle's default."""

    target: str
    seed: int
    method: str = "diffusion"
    candidates: int = 8
    keep: int = 1
    holdout: float = 0.2
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    refine_steps: int = 0


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
    ranked_on: str
    n_holdout: int
    baselines: dict[str, float]
    novelty: dict[str, float | str | None]
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Images by role: for each class the indices that condition and those that rank."""

    classes: tuple[str, ...]
    conditioning: list[NDArray[np.int64]]
    holdout: list[NDArray[np.int64]]


class Generator:
    """A loaded bundle that answers requests. Not thread-safe; one a process."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.looms = {t.id: bundle.loom(t.id) for t in bundle.targets}
        self.zoos = {t.id: bundle.zoo(t.id) for t in bundle.targets}

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
            refined = [self._refine(w, n, options.refine_steps, report) for n in w.networks]
            w = replace(w, networks=[*refined, *w.networks])
        report("rank", 0, 1)
        ranking = self.rank(w)
        models = tuple(
            _model(w.loom, w.networks[i], w.split.classes, place, ranking.accuracy(i))
            for place, i in enumerate(ranking.order[: options.keep])
        )
        with torch.inference_mode():
            seen = self.zoos[options.target]
            novelty = ranks.novelty(w.loom, w.support, seen)
            asked = ranking.index
            baselines = {}
            if ranking.on_holdout:
                baselines = ranks.baselines(w.loom, w.support, w.features[asked], w.adapted[asked], ranking.truth)
        clock.lap("rank")
        return GenerationResult(
            models,
            w.split.classes,
            options.seed,
            options.method,
            self.bundle.id,
            "holdout" if ranking.on_holdout else "conditioning",
            len(ranking.index) if ranking.on_holdout else 0,
            baselines,
            novelty,
            clock.times,
        )

    def rank(self, w: "Weaving") -> "Ranking":
        """Order the candidates of a request by held-out and cross-validated likelihood."""
        with torch.inference_mode():
            on_holdout = any(len(h) for h in w.split.holdout)
            index, truth = flatten_split(w.split.holdout if on_holdout else w.split.conditioning)
            scores = [ranks.score(w.loom, n, w.adapted[index], truth) for n in w.networks]
            evidence = ranks.Evidence({}, 0)
            if w.options.method == "diffusion" and not w.options.refine_steps:  # nothing refined was cross-validated
                sampling = self._sampling(w.options)
                evidence = ranks.cross_validate(w.loom, self._denoise(w.options.target), w.support, sampling)
            order = ranks.rank(w.networks, scores, evidence, len(index) if on_holdout else 0)
        return Ranking(order, scores, on_holdout, index, truth)

    def weave(
        self,
        images: Array,
        labels: Sequence[str],
        options: GenerateOptions,
        report: Progress = lambda stage, step, steps: None,
        clock: "_Clock | None" = None,
    ) -> "Weaving":
        """Everything up to the ranking: all candidates of a request, decoded."""
        clock = clock or _Clock()
        loom = self._loom(options)
        split = split_samples(labels, options, self._info(options.target))
        with torch.inference_mode():
            report("encode", 0, 1)
            x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
            features = self.runtime.encode(x)
            adapted = features if not loom.spec.trunk else loom.spec.adapt(x)
            support = _support(loom, split, adapted, features)
            condition = loom.condition(support)
            clock.lap("encode")
            found = self._candidates(loom, support, condition, options, report)
            clock.lap("sample")
            report("decode_weights", 0, 1)
            networks = [weave.decode(loom, c, support) for c in found]
            clock.lap("decode_weights")
        return Weaving(options, loom, split, support, adapted, features, networks)

    def _info(self, target: str) -> TargetInfo:
        return next(t for t in self.bundle.targets if t.id == target)

    def _loom(self, options: GenerateOptions) -> Loom:
        if options.target not in self.looms:
            raise InvalidRequest(f"unknown target {options.target!r}; this bundle has {sorted(self.looms)}")
        if options.method not in METHODS:
            raise InvalidRequest(f"unknown method {options.method!r}; there are {list(METHODS)}")
        if options.method == "kde" and not self.looms[options.target].spec.trunk:
            raise InvalidRequest(f"kde samples hidden layers and {options.target} has none; use diffusion or retrieve")
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

    def _candidates(
        self,
        loom: Loom,
        support: Support,
        condition: Condition,
        options: GenerateOptions,
        report: Progress,
    ) -> list[Candidate]:
        sampling = self._sampling(options)
        if options.method == "retrieve":
            found = weave.retrieve(loom, support, self.zoos[options.target], sampling)
            if not found:
                raise InvalidRequest(f"no stored {options.target} has {support.classes} classes; use diffusion")
            return found
        if options.method == "kde":
            return weave.kde(loom, support, self.zoos[options.target], sampling)

        denoise = self._denoise(options.target)
        prior = self.bundle.manifest["defaults"]["prior"][options.target]
        return weave.diffusion(
            loom, denoise, condition, support.classes, sampling, lambda i, n: report("sample", i, n), prior=prior
        )

    def _denoise(self, target: str) -> Denoise:
        def denoise(z: Tensor, t: Tensor, condition: Condition, keep: Tensor) -> Tensor:
            return self.runtime.denoise(target, z, t, condition.classwise, condition.overall, keep)

        return denoise

    def _refine(self, w: "Weaving", network: Candidate, steps: int, report: Progress) -> Candidate:
        index, truth = flatten_split(w.split.conditioning)
        x = w.adapted[index].clone()  # leaves inference mode behind
        trunk, rows = (p.clone().requires_grad_() for p in (network.trunk, network.rows))
        optimizer = torch.optim.AdamW([trunk, rows], lr=1e-3)
        for i in range(steps):
            report("refine", i, steps)
            optimizer.zero_grad()
            F.cross_entropy(w.loom.logits(trunk, rows, x), truth).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return Candidate(network.latents, f"{network.origin}-refined", trunk.detach(), rows.detach())


@dataclass(frozen=True)
class Weaving:
    """A request before its ranking: what went in, and the candidates."""

    options: GenerateOptions
    loom: Loom
    split: Split
    support: Support
    adapted: Tensor  # (n, c, h, w): all images as the target takes them; for a head their features
    features: Tensor  # (n, dim)
    networks: list[Candidate]


@dataclass(frozen=True)
class Ranking:
    """Candidates in order, best first, and the images that judged them."""

    order: list[int]
    scores: list[Score]
    on_holdout: bool
    index: Tensor
    truth: Tensor

    def accuracy(self, i: int) -> float | None:
        """Held-out accuracy of a candidate, where samples were held out."""
        return self.scores[i].accuracy if self.on_holdout else None


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


def _model(
    loom: Loom, network: Candidate, classes: tuple[str, ...], rank: int, accuracy: float | None
) -> GeneratedModel:
    tensors = join(loom.spec, network.trunk, network.rows)
    arrays = {name: np.ascontiguousarray(tensors[name].numpy()) for name in loom.spec.shapes(len(classes))}
    return GeneratedModel(loom.spec.name, classes, arrays, network.origin, rank, accuracy)


class _Clock:
    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.times[name] = (now - self._last) * 1000
        self._last = now


def flatten_split(index: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Indices by class to image indices and class numbers."""
    truth = np.repeat(np.arange(len(index)), [len(i) for i in index])
    return torch.from_numpy(np.concatenate(index)), torch.from_numpy(truth)


def split_samples(labels: Sequence[str], options: GenerateOptions, info: TargetInfo) -> Split:
    """Classes in sorted order; of each, the seed's choice of `holdout` of the samples (rounded down) ranks."""
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(str(label), []).append(i)
    classes = tuple(sorted(members))
    if not info.min_classes <= len(classes) <= info.max_classes:
        raise InvalidRequest(
            f"{info.id} takes {info.min_classes} to {info.max_classes} classes; these samples have {len(classes)}: "
            f"{json.dumps(classes[:5], ensure_ascii=False)}"
        )
    rng = np.random.default_rng(options.seed)
    conditioning, holdout = [], []
    most = max(1, MAX_CONDITIONING // len(classes))
    for name in classes:
        own = rng.permutation(np.array(members[name]))
        ranked = max(int(options.holdout * len(own)), len(own) - most if options.holdout else 0)
        ranked = min(ranked, len(own) - 1)  # every class needs an image to condition on
        holdout.append(own[:ranked])
        conditioning.append(own[ranked:][:most])
    return Split(classes, conditioning, holdout)

"""A driver in the generator's place: honours its seam, takes no time, and does on command what must be tested."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from loomweight.errors import Canceled
from loomweight.generator import GeneratedModel, GenerateOptions, GenerationResult

TARGET = "tiny-head"


@dataclass
class StandIn:
    """`on_step` runs before every denoising step; `error` is raised instead of generating; it has `most` models."""

    error: Exception | None = None
    steps: int = 4
    most: int = 64
    on_step: Callable[[int], None] = lambda step: None
    runtime: object = None
    calls: list[GenerateOptions] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    bundle: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            id="tiny-0123456789ab",
            encoder=None,
            manifest={"default_target": TARGET, "card": {"licence": "CC0-1.0"}},
        )
    )
    looms: dict[str, SimpleNamespace] = field(default_factory=lambda: {TARGET: SimpleNamespace(spec=None)})

    def targets(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=TARGET, min_classes=2, max_classes=10)]

    def generate(
        self,
        images: np.ndarray,
        labels: list[str],
        options: GenerateOptions,
        *,
        progress: Callable[[str, int, int], None],
        canceled: Callable[[], bool],
    ) -> GenerationResult:
        self.calls.append(options)
        self.entered.set()
        assert images.shape == (len(labels), 3, 32, 32)
        for step in range(self.steps):
            self.on_step(step)
            if canceled():
                raise Canceled
            progress("sample", step + 1, self.steps)
        if self.error:
            raise self.error
        classes = tuple(sorted(set(labels)))
        return GenerationResult(
            models=tuple(self._model(rank, classes, options) for rank in range(min(options.keep, self.most))),
            classes=classes,
            seed=options.seed,
            method=options.method,
            bundle=self.bundle.id,
            ranked_on="cross-validation",
            n_holdout=len(labels),
            baselines={"chance": 1 / len(classes)},
            novelty={"score": 0.25, "warning": None},
            timings_ms={"encode": 1.0, "sample": 2.0, "decode_weights": 1.0, "rank": 1.0},
        )

    @staticmethod
    def _model(rank: int, classes: tuple[str, ...], options: GenerateOptions) -> GeneratedModel:
        rng = np.random.default_rng([options.seed, rank])
        tensors = {"head.weight": rng.normal(size=(len(classes), 4)).astype(np.float32)}
        return GeneratedModel(
            target=options.target,
            classes=classes,
            tensors=tensors,
            origin=options.method,
            rank=rank,
            holdout_accuracy=0.75,
        )


def to_onnx(spec: object, tensors: Mapping[str, np.ndarray], classes: tuple[str, ...], encoder: object) -> bytes:
    """Deterministic bytes in the place of an exported model."""
    return b"onnx:" + hashlib.sha256(tensors["head.weight"].tobytes()).digest()

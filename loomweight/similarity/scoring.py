"""The seam that services call: two checkpoints in, how related their tasks are out.

    compared = Similarity.load(bundle_dir).compare(tensors_a, tensors_b)

A part of a bundle in its folder `similarity/`: `network.safetensors`, and `similarity.json` with the network's shape,
the calibration, what trained weights look like, and the SHA-256 of the tensors; its id is the hash of all that.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Generator, Tensor

from loomweight.errors import InvalidBundle, InvalidCheckpoint
from loomweight.similarity import baselines
from loomweight.similarity.layers import Reading, read
from loomweight.similarity.network import ChainConfig, ChainNetwork, unit
from loomweight.similarity.spectrum import structure

FOLDER = "similarity"
METHOD = "chain"
FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """Logistic regression from score to probability of one task, fitted on pairs half of which share their task.

    One pair of numbers for two checkpoints of one architecture, one for different ones.
    """

    same: tuple[float, float]  # slope, offset
    different: tuple[float, float]

    def probability(self, score: float, *, same_architecture: bool) -> float:
        """Chance that two checkpoints have one task, before anything else is known about them (prior: one half)."""
        slope, offset = self.same if same_architecture else self.different
        return 1 / (1 + math.exp(-min(60.0, max(-60.0, slope * score + offset))))


@dataclass(frozen=True)
class Familiar:
    """What the models of training look like: below `structure` weights look untrained; below `nearest` a model is
    unlike all of them (cosine to the nearest of `anchors`)."""

    structure: float
    nearest: float


@dataclass(frozen=True)
class Sketch:
    """What comparing many needs of each: the vector, and what warnings are made of."""

    vector: Tensor  # (dim,)
    fingerprint: str
    structure: float
    nearest: float
    guessed: int
    count: int  # of layers


@dataclass(frozen=True)
class Embedding:
    """A checkpoint embedded: vectors of unit length, its architecture, and how trained and familiar it looks."""

    vector: Tensor  # (dim,)
    layers: Tensor  # (layers, width)
    names: tuple[str, ...]
    fingerprint: str
    structure: float
    nearest: float
    guessed: int
    reading: Reading = field(repr=False)

    @property
    def sketch(self) -> Sketch:
        """The same without its layers."""
        return Sketch(
            self.vector, self.fingerprint, self.structure, self.nearest, self.guessed, len(self.reading.layers)
        )


@dataclass(frozen=True)
class LayerPair:
    """Layer `a` of the first and layer `b` of the second checkpoint, at like depth, and how alike they are."""

    a: str
    b: str
    similarity: float


@dataclass(frozen=True)
class Comparison:
    """The answer; `baselines` are None where they are not defined."""

    similarity: float
    same_task_probability: float
    layers: tuple[LayerPair, ...]
    baselines: dict[str, float | None]
    warnings: tuple[str, ...]


class Similarity:
    """An opened similarity part."""

    def __init__(
        self, network: ChainNetwork, calibration: Calibration, familiar: Familiar, anchors: Tensor, part_id: str
    ) -> None:
        self.network, self.calibration, self.familiar = network.eval().requires_grad_(False), calibration, familiar
        self.anchors, self.id = anchors, part_id

    @classmethod
    def load(cls, bundle_dir: Path) -> "Similarity":
        """Open the part `similarity/` of a bundle; raises InvalidBundle that says what is missing or altered."""
        folder = bundle_dir / FOLDER
        try:
            meta = json.loads((folder / "similarity.json").read_text())
            data = (folder / "network.safetensors").read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidBundle(f"{bundle_dir} holds no readable similarity part: {error}") from error
        if meta.get("format") != FORMAT:
            raise InvalidBundle(f"{folder} has format {meta.get('format')}; this version reads {FORMAT}")
        if hashlib.sha256(data).hexdigest() != meta["sha256"] or identify(meta) != meta["id"]:
            raise InvalidBundle(f"{folder} was altered: its files do not match their hash")
        try:
            tensors = {k: v.float() for k, v in load(data).items()}
        except SafetensorError as error:
            raise InvalidBundle(f"{folder / 'network.safetensors'} is no safetensors file: {error}") from error
        anchors = tensors.pop("anchors")
        network = ChainNetwork(ChainConfig(**meta["network"]), Generator())
        network.load_state_dict(tensors)
        calibration = Calibration(**{k: (v[0], v[1]) for k, v in meta["calibration"].items()})
        return cls(network, calibration, Familiar(**meta["familiar"]), anchors, meta["id"])

    @torch.no_grad()
    def embed(self, tensors: Mapping[str, Tensor]) -> Embedding:
        """Embed a state dict; raises InvalidCheckpoint where it cannot be read (see `layers.read`), or says nothing."""
        reading = read(tensors)
        found = self.network([reading])
        vector = found.models[0]
        if not 0.5 < float(vector.norm()) < 2:
            raise InvalidCheckpoint("the network answers every input alike, as with all weights zero or out of range")
        nearest = float((self.anchors @ vector).max())
        names = tuple(layer.name.removesuffix(".weight") for layer in reading.layers)
        looks = structure(reading)
        return Embedding(vector, found.layers[0], names, reading.fingerprint, looks, nearest, reading.guessed, reading)

    def compare(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Comparison:
        """Compare two state dicts; symmetric."""
        return self.compare_embedded(self.embed(a), self.embed(b), a, b)

    def compare_embedded(
        self,
        one: Embedding,
        two: Embedding,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        leave_out: Sequence[str] = (),
    ) -> Comparison:
        """As `compare`, with the embeddings at hand; baselines may be left out, which take most of the time."""
        score = self.score(one.vector, two.vector)
        same = one.fingerprint == two.fingerprint
        vectors = {
            "cosine": baselines.raw,
            "layerwise_cosine": baselines.layerwise,
            "statistics": baselines.statistics,
        }
        others = {k: baselines.cosine(f(a), f(b)) if same else None for k, f in vectors.items() if k not in leave_out}
        if "aligned_cosine" not in leave_out:
            others["aligned_cosine"] = _symmetric_alignment(one.reading, two.reading)
        return Comparison(
            score,
            self.calibration.probability(score, same_architecture=same),
            tuple(_layer_pairs(one, two)),
            others,
            tuple(self.warnings(one, two)),
        )

    @staticmethod
    def score(one: Tensor, two: Tensor) -> float:
        """The similarity of two vectors; exactly symmetric."""
        one, two = one.double(), two.double()
        return _bounded(float(one @ two / (one.norm() * two.norm())))

    def matrix(self, embeddings: Sequence[Embedding | Sketch]) -> Tensor:
        """Similarity of every pair: (n, n), exactly symmetric, ones on the diagonal."""
        vectors = torch.stack([e.vector for e in embeddings]).double()
        product = (vectors @ vectors.T).clamp(-1, 1)
        product = (product + product.T) / 2
        return product.fill_diagonal_(1.0)

    def warnings(self, one: Embedding, two: Embedding) -> list[str]:
        """What a reader of the score should know, in plain words."""
        found = []
        if one.fingerprint != two.fingerprint:
            found.append(
                "The networks have different architectures: scores are lower than between two of one architecture."
            )
        return found + self.about("a", one.sketch) + self.about("b", two.sketch)

    def about(self, name: str, e: Sketch) -> list[str]:
        """What to know of one checkpoint, called `name`."""
        found = []
        if e.structure < self.familiar.structure:
            found.append(f"The weights of {name} look untrained: their layers resemble random matrices.")
        elif e.nearest < self.familiar.nearest:
            found.append(
                f"Checkpoint {name} is unlike every model that the similarity was learned from: "
                "score and probability were not tested on such networks."
            )
        if e.guessed:
            found.append(
                f"{e.guessed} of {e.count} layers of {name} could not be connected by name and shape; "
                "they were read without their input."
            )
        return found


def _symmetric_alignment(one: Reading, two: Reading) -> float | None:
    # Matching is a local search: from either side it may end elsewhere, and the answer must not depend on the order.
    first, second = sorted((one, two), key=lambda r: float(r.layers[0].weight.double().sum()))
    return baselines.aligned(first, second)


def _bounded(score: float) -> float:
    return max(-1.0, min(1.0, score))


def _layer_pairs(one: Embedding, two: Embedding) -> list[LayerPair]:
    """Layers at like relative depth, every layer of the deeper network once."""
    products = (one.layers.double() @ two.layers.double().T).tolist()
    n, m = len(one.names), len(two.names)
    count = max(n, m)
    pairs = []
    for step in range(count):
        i, j = (round(step * (size - 1) / max(1, count - 1)) if count > 1 else 0 for size in (n, m))
        pairs.append(LayerPair(one.names[i], two.names[j], _bounded(products[i][j])))
    return pairs


def identify(meta: Mapping[str, Any]) -> str:
    """The id that a part's description must have."""
    content = {k: v for k, v in meta.items() if k not in ("id", "card")}
    return f"lps-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"


def write(
    bundle_dir: Path,
    network: ChainNetwork,
    calibration: Calibration,
    familiar: Familiar,
    anchors: Tensor,
    card: dict[str, Any],
) -> str:
    """Write a part into a bundle's folder, its description last; returns its id. Large tensors are stored as halves."""
    folder = bundle_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "similarity.json").unlink(missing_ok=True)
    tensors = {**network.state_dict(), "anchors": unit(anchors)}
    data = save({k: (v.half() if v.numel() > 4096 else v).contiguous() for k, v in tensors.items()})
    (folder / "network.safetensors").write_bytes(data)
    meta: dict[str, Any] = {
        "format": FORMAT,
        "method": METHOD,
        "network": asdict(network.config),
        "calibration": asdict(calibration),
        "familiar": asdict(familiar),
        "sha256": hashlib.sha256(data).hexdigest(),
        "card": card,
    }
    meta = json.loads(json.dumps(meta))
    meta["id"] = identify(meta)
    (folder / "similarity.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    return str(meta["id"])

"""Embeddings that outlive a call: of one model, and of all zoo models that came with a bundle.

`similarity/zoo.safetensors` lies beside a bundle's similarity part and names the part that it was made with: with
another part it counts as not there. It has no share in the part's id, nor in the bundle's.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from loomweight.bundle import Bundle
from loomweight.similarity.network import unit
from loomweight.similarity.scoring import FOLDER, Similarity, Sketch
from loomweight.weight_vae import join

INDEX = "zoo.safetensors"


def pack(sketch: Sketch) -> bytes:
    """A sketch as a safetensors file."""
    about = {k: v for k, v in vars(sketch).items() if k != "vector"}
    return bytes(save({"vector": sketch.vector.contiguous()}, metadata={"sketch": json.dumps(about)}))


def unpack(data: bytes) -> Sketch:
    """Undo `pack`; raises ValueError for anything else."""
    try:
        about = json.loads(_metadata(data)["sketch"])
        return Sketch(vector=load(data)["vector"], **about)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"no sketch: {error}") from error


def _metadata(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, Any] = header["__metadata__"]
    return found


@dataclass(frozen=True)
class ZooIndex:
    """The zoo models of a bundle, embedded."""

    names: tuple[str, ...]  # target and number: "cnn-l/17"
    fingerprints: tuple[str, ...]
    vectors: Tensor  # (models, dim), unit

    @classmethod
    def load(cls, bundle_dir: Path, part: Similarity) -> Self | None:
        """Open the index of a bundle; None if there is none that was made with this part."""
        path = bundle_dir / FOLDER / INDEX
        try:
            with safe_open(path, framework="pt") as opened:
                about = opened.metadata() or {}
                if about.get("part") != part.id:
                    return None
                vectors = unit(opened.get_tensor("vectors").float())
            return cls(tuple(json.loads(about["names"])), tuple(json.loads(about["fingerprints"])), vectors)
        except (OSError, SafetensorError, KeyError, ValueError):
            return None


def zoo_models(bundle: Bundle) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every zoo model of a bundle: its name and its tensors."""
    for target in bundle.targets:
        spec, zoo = bundle.loom(target.id).spec, bundle.zoo(target.id).tensors
        for number, trunk in enumerate(zoo["trunks"]):
            rows = zoo["rows"][zoo["row_models"] == number].float()
            yield f"{target.id}/{number}", join(spec, trunk.float(), rows)


def build(bundle_dir: Path, *, most: int | None = None) -> ZooIndex:
    """Embed the zoo models of a bundle (`most` of them) with its similarity part, and write the index.

    Raises InvalidBundle where the bundle or its part is not sound.
    """
    bundle, part = Bundle.open(bundle_dir), Similarity.load(bundle_dir)
    names: list[str] = []
    sketches: list[Sketch] = []
    for name, tensors in zoo_models(bundle):
        if most is not None and len(names) >= most:
            break
        names.append(name)
        sketches.append(part.embed(tensors).sketch)
    return _write(bundle_dir, part, names, sketches)


def _write(bundle_dir: Path, part: Similarity, names: Sequence[str], sketches: Sequence[Sketch]) -> ZooIndex:
    fingerprints = [s.fingerprint for s in sketches]
    about = {"part": part.id, "names": json.dumps(names), "fingerprints": json.dumps(fingerprints)}
    vectors = torch.stack([s.vector for s in sketches])
    (bundle_dir / FOLDER / INDEX).write_bytes(save({"vectors": vectors.half()}, metadata=about))
    return ZooIndex(tuple(names), tuple(fingerprints), vectors)

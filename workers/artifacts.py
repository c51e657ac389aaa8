"""A generated network ► the files that are stored: safetensors, ONNX and the card that describes them."""

import hashlib
import json
from datetime import UTC, datetime
from typing import NamedTuple

from loomweight import __version__
from loomweight.checkpoints import to_safetensors
from loomweight.generator import GeneratedModel, GenerationResult, Generator
from loomweight.onnx_export import to_onnx
from model_store.models import new_model_id
from model_store.records import Artifact, Lineage, Measured, ModelCard, TensorInfo


class Origin(NamedTuple):
    """Where the models of one job come from."""

    job_id: str
    condition_sha256: str
    n_holdout: int
    owner: str | None = None


class Artifacts(NamedTuple):
    """Everything that `ModelRepository.save` takes."""

    card: ModelCard
    weights: bytes
    onnx: bytes


def export(generator: Generator, result: GenerationResult, model: GeneratedModel, origin: Origin) -> Artifacts:
    """Make the files of one model; the same model and origin give the same bytes, but for the card's time."""
    bundle = generator.bundle
    licence = str(bundle.manifest["card"]["licence"])
    metadata = {
        "generator": f"loomweight {__version__}",
        "bundle": result.bundle,
        "target": model.target,
        "origin": model.origin,
        "seed": str(result.seed),
        "condition_sha256": origin.condition_sha256,
        "classes": json.dumps(model.classes, ensure_ascii=False),
        "licence": licence,
    }
    weights = to_safetensors(model.tensors, metadata)
    onnx = to_onnx(generator.looms[model.target].spec, model.tensors, model.classes, bundle.encoder)
    card = ModelCard(
        id=new_model_id(origin.job_id, model.rank),
        target=model.target,
        classes=model.classes,
        origin=model.origin,
        seed=result.seed,
        bundle=result.bundle,
        sha256=hashlib.sha256(weights).hexdigest(),
        size=len(weights),
        tensors=_tensors(weights),
        measured=Measured.model_validate(
            {
                "holdout_accuracy": model.holdout_accuracy,
                "ranked_on": result.ranked_on,
                "n_holdout": origin.n_holdout,
                "baselines": result.baselines,
            }
        ),
        lineage=Lineage(job_id=origin.job_id, condition_sha256=origin.condition_sha256, rank=model.rank),
        licence=licence,
        created_at=datetime.now(UTC),
        onnx=Artifact(sha256=hashlib.sha256(onnx).hexdigest(), size=len(onnx)),
        owner=origin.owner,
    )
    return Artifacts(card, weights, onnx)


def _tensors(weights: bytes) -> tuple[TensorInfo, ...]:
    """Read the header of a safetensors file: the card describes the very bytes that are stored."""
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    header.pop("__metadata__", None)
    in_file_order = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
    return tuple(TensorInfo(name=name, dtype=info["dtype"], shape=info["shape"]) for name, info in in_file_order)

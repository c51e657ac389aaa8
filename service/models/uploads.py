"""A client's checkpoint file ► the facts that a card or a job needs. Values are the worker's business."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

from starlette.datastructures import UploadFile

from model_store.checkpoint import CheckpointError, NotSafetensors, OverLimit, read_header
from model_store.models import new_upload_id
from model_store.records import Lineage, ModelCard, TensorInfo
from model_store.store import CHUNK
from service.errors import InvalidCheckpoint, ServiceError, TooLarge, Unprocessable, UnsupportedType
from service.settings import GatewaySettings
from service.state import Services

ORIGIN = "uploaded"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Checkpoint:
    """A sound safetensors file, rewound. What lies beyond a megabyte of it is on disk, not in memory."""

    file: BinaryIO
    size: int
    sha256: str
    tensors: tuple[TensorInfo, ...]


def inspect(upload: UploadFile, settings: GatewaySettings, pointer: str) -> Checkpoint:
    """Check the file as far as its header goes. Raises `ServiceError` that says what is wrong with it."""
    file, size = upload.file, upload.size or 0
    if size > settings.max_checkpoint_bytes:
        raise TooLarge(
            f"The checkpoint has {size:,} bytes; the limit is {settings.max_checkpoint_bytes:,}. Send half precision, "
            "or what was trained without the optimiser's state.",
            pointer=pointer,
        )
    file.seek(0)
    try:
        tensors = read_header(file, size)
    except CheckpointError as error:
        raise _refusal(error)(str(error), pointer=pointer) from None
    if not tensors:
        raise InvalidCheckpoint("The checkpoint holds no tensors.", pointer=pointer)
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(CHUNK):
        digest.update(piece)
    file.seek(0)
    return Checkpoint(file, size, digest.hexdigest(), tensors)


def _refusal(error: CheckpointError) -> type[ServiceError]:
    if isinstance(error, NotSafetensors):
        return UnsupportedType
    return TooLarge if isinstance(error, OverLimit) else InvalidCheckpoint


def keep(
    services: Services, owner: str | None, checkpoint: Checkpoint, classes: Sequence[str], licence: str
) -> tuple[ModelCard, bool]:
    """Store an uploaded checkpoint as a model; returns its card, the first one if it was there, and whether it is new.

    Raises `ServiceError` for class names that cannot be.
    """
    model_id = new_upload_id(checkpoint.sha256, owner=owner or "")
    known = services.models.exists(model_id)
    card = ModelCard(
        id=model_id,
        target=None,
        classes=tuple(_names(classes, services.settings)),
        origin=ORIGIN,
        seed=None,
        bundle=None,
        sha256=checkpoint.sha256,
        size=checkpoint.size,
        tensors=checkpoint.tensors,
        measured=None,
        lineage=Lineage(),
        licence=licence or NOT_STATED,
        owner=owner,
        created_at=datetime.now(UTC),
    )
    services.metrics.upload_bytes.observe(checkpoint.size)
    return services.models.save(card, checkpoint.file), not known


def _names(classes: Sequence[str], settings: GatewaySettings) -> list[str]:
    if len(classes) > settings.max_classes:
        raise TooLarge(
            f"There are {len(classes):,} classes; the limit is {settings.max_classes:,}.", pointer="/classes"
        )
    names = [unicodedata.normalize("NFC", name).strip() for name in classes]
    for index, name in enumerate(names):
        if not name or len(name) > settings.max_label_length or not name.isprintable():
            detail = f"classes[{index}] must have 1 to {settings.max_label_length} printable characters."
            raise Unprocessable(detail, pointer=f"/classes/{index}")
    if len(set(names)) < len(names):
        raise Unprocessable("Two classes have one name.", pointer="/classes")
    return names

"""Where weights, cards and inputs live: one small protocol, a local directory and S3 behind it."""

from model_store.models import ModelRepository, Part, new_model_id, new_upload_id
from model_store.records import Artifact, Lineage, Measured, ModelCard, ModelPage, TensorInfo
from model_store.store import (
    AlreadyExists,
    ChunkStream,
    Corrupt,
    InvalidKey,
    NotFound,
    ObjectEntry,
    ObjectInfo,
    ObjectStore,
    RangeNotSatisfiable,
    S3Settings,
    StoreError,
    StoreUnavailable,
    open_store,
)

__all__ = [
    "AlreadyExists",
    "Artifact",
    "ChunkStream",
    "Corrupt",
    "InvalidKey",
    "Lineage",
    "Measured",
    "ModelCard",
    "ModelPage",
    "ModelRepository",
    "NotFound",
    "ObjectEntry",
    "ObjectInfo",
    "ObjectStore",
    "Part",
    "RangeNotSatisfiable",
    "S3Settings",
    "StoreError",
    "StoreUnavailable",
    "TensorInfo",
    "new_model_id",
    "new_upload_id",
    "open_store",
]

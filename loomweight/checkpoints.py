"""Checkpoints as bytes: safetensors with metadata that says where a network comes from and how to read it."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

Array = NDArray[np.float32]


def to_safetensors(tensors: Mapping[str, Array], metadata: Mapping[str, object]) -> bytes:
    """Serialise; the same tensors and metadata give the same bytes. Values that are not strings are stored as JSON."""
    text = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in sorted(metadata.items())}
    ordered = {k: np.ascontiguousarray(tensors[k]) for k in tensors}
    return _sorted_header(bytes(save(ordered, metadata=text)))


def _sorted_header(data: bytes) -> bytes:
    """safetensors keeps metadata in a hash map whose order changes from process to process: fix the order."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    if metadata is not None:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + data[8 + length :]


def condition_hash(images: NDArray[np.float32], labels: Sequence[str]) -> str:
    """SHA-256 over the conditioning images and labels, in their order."""
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    digest.update(json.dumps(list(labels)).encode())
    return digest.hexdigest()

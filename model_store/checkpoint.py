"""The header of a safetensors file from anybody, read strictly and in bounded memory; no tensor is touched.

    8 bytes     length n of the header, little-endian unsigned
    n bytes     JSON {name: {"dtype", "shape", "data_offsets": [start, end]}, "__metadata__": {text: text}}
    the rest    values, every byte of it some tensor's

Whoever opens a client's file goes through here first: the gateway on an upload, the worker before it makes tensors.

    CheckpointError
    ├── NotSafetensors   another format, a pickle above all: it is named, never opened
    ├── OverLimit        a header, a number of tensors or a name beyond what is read
    └── Damaged          cut off, or a header that contradicts itself or the file
"""

import json
import math
from collections.abc import Sequence
from threading import Lock
from typing import Any, BinaryIO

from model_store.records import TensorInfo

MAX_HEADER = 4 * 2**20
MAX_TENSORS = 10_000
MAX_NAME = 256
MAX_DIMENSIONS = 16
MAX_LENGTH = 2**40  # of one dimension: above any file, below what overflows

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_FIELDS = {"dtype", "shape", "data_offsets"}
CONVERT = (
    'Convert it where you trust it: python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() '
    "for k, v in torch.load('model.pt', map_location='cpu', weights_only=True).items()}, 'model.safetensors')\""
)
# Parsed JSON takes up to thirty times the memory of its text: one header of a process at a time.
_parsing = Lock()


class CheckpointError(ValueError):
    """The file is refused; the message says why, and what to do where that helps."""


class NotSafetensors(CheckpointError):
    """The file is of another format."""


class OverLimit(CheckpointError):
    """The file is larger, in some respect, than what is read."""


class Damaged(CheckpointError):
    """The file claims to be a safetensors file and is not a sound one."""


def read_header(file: BinaryIO, size: int) -> tuple[TensorInfo, ...]:
    """Return the tensors of a file of `size` bytes, in file order; `file` stands at its start, and is left anywhere.

    Raises `CheckpointError`.
    """
    start = file.read(16)
    # A header of 128 bytes begins as a pickle does; but behind its length stands a brace.
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[8:9] != b"{"):
        raise NotSafetensors(f"The file is a pickled checkpoint, which is never opened here. {CONVERT}")
    if len(start) < 9:
        raise Damaged(f"The file has {size:,} bytes, too few for a safetensors file.")
    if start[8:9] != b"{":
        raise NotSafetensors("The file is no safetensors file: send the weights as safetensors.")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        raise OverLimit(f"The safetensors header says it has {length:,} bytes; at most {MAX_HEADER:,} are read.")
    if 8 + length > size:
        raise Damaged("The safetensors file is cut off inside its header.")
    with _parsing:
        return _tensors(_parsed(start[8:] + file.read(8 + length - len(start)), length), size - 8 - length)


def _parsed(text: bytes, length: int) -> dict[str, Any]:
    try:
        header = json.loads(text[:length].decode(), object_pairs_hook=_once)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise Damaged("The safetensors header is no valid JSON.") from error
    assert isinstance(header, dict), "it begins with a brace"
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Damaged("The __metadata__ of the safetensors header must map texts to texts.")
    if len(header) > MAX_TENSORS:
        raise OverLimit(f"The file holds {len(header):,} tensors; at most {MAX_TENSORS:,} are read.")
    return header


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Damaged("The safetensors header names something twice.")
    return found


def _tensors(header: dict[str, Any], held: int) -> tuple[TensorInfo, ...]:
    """Check every entry, and that together they cover the `held` bytes behind the header once and without gaps."""
    found: list[tuple[int, int, TensorInfo]] = []
    for name, entry in header.items():
        if len(name) > MAX_NAME:
            raise OverLimit(f"A tensor's name has {len(name):,} characters; at most {MAX_NAME} are read.")
        if not name or not name.isprintable():
            raise Damaged("The safetensors header has a tensor without a printable name.")
        found.append(_entry(name, entry))
    found.sort(key=lambda each: each[:2])
    reached = 0
    for start, end, info in found:
        if start != reached:
            wrong = "overlaps another tensor" if start < reached else "leaves a gap before it"
            raise Damaged(f"The tensor {info.name!r} {wrong}: the offsets of the header are wrong.")
        reached = end
    if reached > held:
        raise Damaged(f"The file is cut off: its tensors take {reached:,} bytes, {held:,} are there.")
    if reached < held:
        raise Damaged(f"The file has {held - reached:,} bytes that belong to no tensor.")
    return tuple(info for _, _, info in found)


def _entry(name: str, entry: Any) -> tuple[int, int, TensorInfo]:
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise Damaged(f"The header of the tensor {name!r} must have dtype, shape and data_offsets, and nothing else.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise Damaged(f"The tensor {name!r} has a dtype that is not known here; {', '.join(_BITS)} are.")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Damaged(f"The tensor {name!r} has a shape or offsets that make no sense.")
    if len(shape) > MAX_DIMENSIONS or any(length > MAX_LENGTH for length in shape):
        raise OverLimit(f"The tensor {name!r} has a shape beyond what is read.")
    if math.prod(shape) * _BITS[dtype] != 8 * (offsets[1] - offsets[0]):
        raise Damaged(f"The tensor {name!r} has a shape that does not fit its offsets.")
    return offsets[0], offsets[1], TensorInfo(name=name, dtype=dtype, shape=tuple(shape))


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)

"""A safetensors file from anybody, opened with every limit checked before memory is spent."""

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from loomweight.errors import InvalidCheckpoint
from loomweight.similarity.layers import MAX_TENSORS

MAX_HEADER = 4 * 2**20
MAX_FILE = 100 * 2**20


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """Tensors by name; raises InvalidCheckpoint for anything that is not a sound safetensors file within the limits.

    Refused: other formats (a pickled checkpoint is named as such, never opened), files above 100 MiB, headers above
    4 MiB or longer than the file, too many tensors, names that come twice, offsets that overlap, leave gaps or
    reach beyond the end.
    """
    if len(data) > MAX_FILE:
        raise InvalidCheckpoint(f"the file has {len(data):,} bytes; at most {MAX_FILE:,} are read")
    # A header of 128 bytes begins like a pickle, too; but behind its length stands a brace.
    if data[:2] == b"PK" or (data[:1] == b"\x80" and data[8:9] != b"{"):
        raise InvalidCheckpoint("the file looks like a pickled checkpoint; save it with safetensors and send that")
    if len(data) < 8:
        raise InvalidCheckpoint("the file is too short to be a safetensors file")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise InvalidCheckpoint(f"no safetensors file: its header would have {length:,} bytes, above {MAX_HEADER:,}")
    if 8 + length > len(data):
        raise InvalidCheckpoint("the safetensors file is cut off inside its header")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"the safetensors header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise InvalidCheckpoint("the safetensors header is no JSON object")
    if len(header) - ("__metadata__" in header) > MAX_TENSORS:
        raise InvalidCheckpoint(f"the file holds {len(header):,} tensors; at most {MAX_TENSORS:,} are read")
    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InvalidCheckpoint(f"the safetensors file cannot be read: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidCheckpoint("the safetensors header names something twice")
    return found

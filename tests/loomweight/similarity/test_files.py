import contextlib
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from loomweight.errors import InvalidCheckpoint
from loomweight.similarity import files
from loomweight.similarity.layers import MAX_TENSORS

GOOD = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(start: int, end: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": [(end - start) // 4], "data_offsets": [start, end]}


def test_a_sound_file_is_read() -> None:
    found = files.tensors_of(save(GOOD, metadata={"from": "tests"}))
    assert all(torch.equal(found[k], GOOD[k]) for k in GOOD)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "too short"),
        (pickle.dumps({"a": 1}), "pickled"),
        (b"PK\x03\x04" + bytes(100), "pickled"),
        ((2**31).to_bytes(8, "little") + b"{}", "2,147,483,648 bytes"),
        (save(GOOD)[:30], "cut off inside its header"),
        (save(GOOD)[:-1], "cannot be read"),
        (save(GOOD) + b"more", "cannot be read"),
        (file(b"{nonsense"), "no JSON"),
        (file(b"[" * 10_000), "no JSON"),
        (file([1]), "no JSON object"),
        (file(b'{"a": 1, "a": 2}'), "twice"),
        (file({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "cannot be read"),
        (file({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)), "cannot be read"),
        (file({"a": entry(0, 8, "F99")}, bytes(8)), "cannot be read"),
        (file({f"{i}": entry(0, 0) for i in range(MAX_TENSORS + 1)}), "20,001 tensors"),
    ],
)
def test_what_is_no_sound_file_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=complaint):
        files.tensors_of(data)


def test_large_files_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE", 50)
    with pytest.raises(InvalidCheckpoint, match="at most 50"):
        files.tensors_of(save(GOOD))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(save(GOOD)) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(place: int, value: int) -> None:
    data = bytearray(save(GOOD))
    data[place] = value
    with contextlib.suppress(InvalidCheckpoint):
        files.tensors_of(bytes(data))

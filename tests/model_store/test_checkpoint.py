"""Files from anybody: sound ones are described, all others refused with a reason, and cheaply."""

import contextlib
import json
import pickle
import tracemalloc
from io import BytesIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from model_store import checkpoint
from model_store.checkpoint import CheckpointError, Damaged, NotSafetensors, OverLimit
from model_store.records import TensorInfo
from tests.checkpoints import HOSTILE, entry, file

GOOD = save({"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}, metadata={"from": "tests"})


def read(data: bytes) -> tuple[TensorInfo, ...]:
    return checkpoint.read_header(BytesIO(data), len(data))


def test_a_sound_file_is_described_in_file_order() -> None:
    kinds = {
        "a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64), "c": torch.zeros(0, 4, dtype=torch.bfloat16),
        "d": torch.zeros(1, 2, 1, 2, 1, dtype=torch.float16), "e": torch.zeros(3, dtype=torch.bool),
        "f": torch.zeros(2, dtype=torch.float8_e4m3fn), "g": torch.zeros(2, dtype=torch.complex64),
    }  # fmt: skip
    found = read(save(kinds))
    assert {t.name: t.shape for t in found} == {k: tuple(v.shape) for k, v in kinds.items()}
    assert {t.name: t.dtype for t in found}["c"] == "BF16"
    assert read(file({})) == ()


_KINDS = {"unsupported-media-type": NotSafetensors, "too-large": OverLimit, "invalid-checkpoint": Damaged}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_sound_file_is_refused(name: str) -> None:
    data, slug, complaint = HOSTILE[name]
    with pytest.raises(_KINDS[slug], match=complaint):
        read(data)


def test_a_pickle_is_answered_with_the_way_to_convert_it() -> None:
    with pytest.raises(NotSafetensors, match="weights_only=True"):
        read(pickle.dumps({"a": 1}))


def test_a_header_that_lies_costs_nothing() -> None:
    data = (2**31).to_bytes(8, "little") + b"{" + bytes(100)
    tracemalloc.start()
    with contextlib.suppress(CheckpointError):
        read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_the_worst_header_takes_bounded_memory() -> None:
    text = b'{"a":[' + b"{}," * (checkpoint.MAX_HEADER // 3 - 10) + b"{}]}"
    tracemalloc.start()
    with pytest.raises(Damaged):
        read(len(text).to_bytes(8, "little") + text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3))
def test_changed_bytes_are_read_or_refused(place: int, value: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        read(GOOD[:place] + value + GOOD[place + len(value) :])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        json_values | st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values}),
        max_size=3,
    ),
    st.binary(max_size=16),
)
def test_any_header_is_read_or_refused(header: dict[str, object], body: bytes) -> None:
    text = json.dumps(header).encode()
    with contextlib.suppress(CheckpointError):
        read(len(text).to_bytes(8, "little") + text + body)


def test_entries_are_what_safetensors_makes_of_them() -> None:
    data = file({"a": entry(0, 8), "b": entry(8, 8)}, bytes(8))
    assert read(data) == (
        TensorInfo(name="a", dtype="F32", shape=(2,)),
        TensorInfo(name="b", dtype="F32", shape=(0,)),
    )

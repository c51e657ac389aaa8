"""The hostile corpus, read in a process of its own: every upload read or refused, in bounded time and memory."""

import subprocess
import sys
from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.workers import hostile, uploads

MOST_SECONDS, MOST_MIB = 40, 1_400
EASY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_the_corpus_costs_little_and_runs_nothing() -> None:
    command = [sys.executable, "-m", "tests.workers.hostile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2_000:]
    read: dict[str, str] = {}
    for line in done.stdout.splitlines():
        kind, seconds, mib, name = line.split("\t")
        read[name] = kind
        assert float(seconds) < MOST_SECONDS, line
        assert int(mib) < MOST_MIB, line
    assert set(read) == set(hostile.IMAGES) | set(hostile.DATASETS)
    allowed = {"png of 39 flat megapixels", "png with 16 MiB of text", "png of 500 frames"}
    allowed |= {"zip of large flat images", "zip whose end record lies"}
    assert {name for name, kind in read.items() if kind == "read"} <= allowed


@st.composite
def npy_headers(draw: st.DrawFn) -> str:
    """Headers that look like numpy's, with anything for values."""
    descr = draw(
        st.sampled_from(["'|u1'", "'<U5'", "'|O'", "'<f8'", "'|V3'", "[('a', '|u1')]", "'>M8[s]'", "None", "'|S0'"])
    )
    numbers = st.integers(-3, 2**40) | st.sampled_from([2**63, 2**64, -(2**63)])
    shape = draw(st.lists(numbers, max_size=5).map(tuple) | numbers)
    order = draw(st.sampled_from(["True", "False", "1", "None"]))
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape!r}}}"


@EASY
@example("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 9223372036854775808)}")
@given(npy_headers())
def test_any_npy_header(header: str) -> None:
    assert hostile.read(hostile.npy_text(header), image=False)


@EASY
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("i"), st.integers(0, 2**32 - 1)),
            st.tuples(st.just("h"), st.integers(0, 2**16 - 1)),
        ),
        min_size=1,
        max_size=3,
    ),
    st.data(),
)
def test_any_number_in_a_zip_directory(changes: list[tuple[str, int]], data: st.DataObject) -> None:
    archive = bytearray(uploads.zipped(uploads.folder()))
    start = archive.index(b"PK\x01\x02")
    for kind, value in changes:
        width = 4 if kind == "i" else 2
        at = data.draw(st.integers(start + 4, len(archive) - width))
        archive[at : at + width] = value.to_bytes(width, "little")
    assert hostile.read(bytes(archive), image=False)


@EASY
@given(st.binary(min_size=4, max_size=4), st.binary(max_size=300), st.booleans())
def test_any_chunk_in_a_png(kind: bytes, body: bytes, true_length: bool) -> None:
    image = hostile.png_with(kind, body)
    if not true_length:
        image = image[:33] + b"\x00\x00\xff\xff" + image[37:]
    assert hostile.read(image, image=True)


@settings(EASY, max_examples=8)  # a process each
@given(st.data())
def test_any_footer_of_a_parquet(data: st.DataObject) -> None:
    table = bytearray(uploads.parquet([hostile.PNG] * 4, [0, 1, 0, 1]))
    footer = int.from_bytes(table[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 5))):
        table[data.draw(st.integers(len(table) - 8 - footer, len(table) - 9))] = data.draw(st.integers(0, 255))
    assert hostile.read(bytes(table), image=False)


def test_labels_of_an_npz_are_text_and_nothing_else() -> None:
    x: Any = np.zeros((2, 4, 4), np.uint8)
    for y in (np.array([1j, 2j]), np.array([b"a", b"\xff"]), np.array([True, False]), np.array(["a", "\ud800"])):
        assert hostile.read(uploads.npz(x=x, y=y), image=False)

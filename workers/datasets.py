"""The one-file sources: a zip in the ImageFolder layout, an npz, a parquet in the Hugging Face layout.

Each reader is a generator of `Item`s, so that an upload is never unpacked as a whole: the caller decodes one sample and
counts it before the next is read. Whatever a header declares is checked before the bytes behind it are inflated.
"""

import io
import json
import logging
import math
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from workers import parquet
from workers.images import Pixels
from workers.limits import (
    CorruptInput,
    InputTooLarge,
    Limits,
    UnsupportedInput,
    UnusableSamples,
    human_bytes,
    refusal,
)
from workers.messages import unpack_samples

_ZIP_ENTRY = b"PK\x01\x02"  # opens each record of a zip's central directory
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_CLUTTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_NPY_HEADER_BYTES = 10_000
_log = logging.getLogger(__name__)


class Item(NamedTuple):
    """One sample as it came: `image` is an encoded file or pixels (h,w,3)."""

    name: str
    label: str
    image: bytes | Pixels


# zip ------------------------------------------------------------------------------------------------------------------


def read_zip(data: bytes, limits: Limits) -> Iterator[Item]:
    """Yield the images of `class/name.png`, in the order of their names so that repacking a folder changes nothing."""
    with _open_zip(data, "zip", limits) as archive:
        entries = {}
        for info in archive.infolist():
            parts = _safe_parts(info.filename)
            if not info.filename.endswith(("/", "\\")) and not any(
                part in _CLUTTER or part.startswith(".") for part in parts
            ):
                entries[parts] = info
        if entries and all(len(parts) == 3 for parts in entries) and len({parts[0] for parts in entries}) == 1:
            entries = {parts[1:]: info for parts, info in entries.items()}
        for parts, info in sorted(entries.items(), key=lambda entry: entry[0]):
            if len(parts) != 2:
                raise UnusableSamples(
                    f"{info.filename!r} is not in the layout class/name.png: each image in the folder of its class."
                )
            if info.file_size > limits.item_bytes:
                raise InputTooLarge(
                    f"{info.filename!r} unpacks to {human_bytes(info.file_size)}; "
                    f"one image may have {human_bytes(limits.item_bytes)}."
                )
            yield Item(repr(info.filename), parts[0], _read_entry(archive, info))


def _open_zip(data: bytes, kind: str, limits: Limits) -> zipfile.ZipFile:
    if not data.startswith(b"PK"):
        raise UnsupportedInput(f"The dataset is not a {kind} file.")
    if data.count(_ZIP_ENTRY) > limits.archive_entries:  # before zipfile makes an object of each
        raise InputTooLarge(f"The {kind} has more than {limits.archive_entries:,} entries.")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # zipfile raises struct.error, ValueError and more beside BadZipFile
        raise CorruptInput(f"The {kind} cannot be read: {error}.") from error
    unpacked = sum(info.file_size for info in archive.infolist())
    ratio = unpacked / max(1, len(data))
    if unpacked > limits.unpacked_bytes or (unpacked > limits.ratio_floor_bytes and ratio > limits.compression_ratio):
        raise InputTooLarge(
            f"The {kind} would unpack to {human_bytes(unpacked)}, {ratio:,.0f} times its size; the limits are "
            f"{human_bytes(limits.unpacked_bytes)} and {limits.compression_ratio} times."
        )
    return archive


def _safe_parts(filename: str) -> tuple[str, ...]:
    path = PurePosixPath(filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in filename[:2] or "\0" in filename:
        raise UnusableSamples(f"{filename!r} points outside the archive; names must be relative and without '..'.")
    return path.parts


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int | None = None) -> bytes:
    if info.flag_bits & 0x1:
        raise UnusableSamples(f"{info.filename!r} is encrypted; send the archive without a password.")
    if info.compress_type not in _ZIP_METHODS:
        raise UnsupportedInput(f"{info.filename!r} is neither stored nor deflated; repack with plain zip compression.")
    try:
        with archive.open(info) as stream:
            return stream.read(info.file_size if size is None else size)  # never more than was declared and checked
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise CorruptInput(f"{info.filename!r} cannot be unpacked: {error}.") from error


# npz ------------------------------------------------------------------------------------------------------------------


def read_npz(data: bytes, limits: Limits) -> Iterator[Item]:
    """Yield the rows of `x` (n,h,w[,c] uint8) with the labels `y` (whole numbers or strings)."""
    with _open_zip(data, "npz", limits) as archive:
        x = _read_array(archive, "x", limits)
        y = _read_array(archive, "y", limits)
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise UnusableSamples(f"`x` is {x.dtype} {x.shape}; it must be uint8 (n,h,w), (n,h,w,1) or (n,h,w,3).")
    if y.ndim != 1 or y.dtype.kind not in "iuUS":
        raise UnusableSamples(f"`y` is {y.dtype} {y.shape}; it must be (n,) whole numbers or strings.")
    if len(x) != len(y):
        raise UnusableSamples(f"`x` has {len(x):,} images and `y` {len(y):,} labels; the counts must be equal.")
    height, width = x.shape[1:3]
    if height * width == 0:
        raise UnusableSamples(f"The images of `x` have no pixels: {x.shape}.")
    if height * width > limits.image_pixels:
        raise InputTooLarge(f"The images of `x` are {width}×{height}; the limit is {limits.image_pixels:,} pixels.")
    for index, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
        pixels = np.broadcast_to(image.reshape(height, width, -1), (height, width, 3))
        yield Item(f"x[{index}]", label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label), pixels)


def _read_array(archive: zipfile.ZipFile, name: str, limits: Limits) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError as error:
        raise UnusableSamples(f"The npz has no array `{name}`; it needs `x` and `y`.") from error
    head = io.BytesIO(_read_entry(archive, info, _NPY_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head, max_header_size=_NPY_HEADER_BYTES)
    except Exception as error:  # the header is a Python literal: its parser raises what it likes
        raise CorruptInput(f"`{name}` has no readable npy header: {error or type(error).__name__}.") from error
    _check_header(name, info, head.tell(), shape, dtype, limits)
    raw = _read_entry(archive, info)
    if len(raw) != info.file_size:
        raise CorruptInput(f"`{name}` ends early.")
    array = np.frombuffer(raw, dtype, count=math.prod(shape), offset=head.tell())
    try:
        return array.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # nothing, times a dimension that no array can have
        raise CorruptInput(f"`{name}` declares {dtype} {shape}: {error}.") from error


def _check_header(
    name: str, info: zipfile.ZipInfo, header: int, shape: tuple[int, ...], dtype: np.dtype[Any], limits: Limits
) -> None:
    """Refuse an array by what it declares, before it is inflated; np.load and its pickles never see it."""
    if dtype.hasobject:
        raise UnsupportedInput(f"`{name}` holds Python objects; save it with a plain dtype.")
    if shape and shape[0] > limits.samples:
        raise InputTooLarge(f"`{name}` has {shape[0]:,} rows; the limit is {limits.samples:,} samples.")
    if header + math.prod(shape) * dtype.itemsize != info.file_size or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise CorruptInput(f"`{name}` declares {dtype} {shape} but has {human_bytes(info.file_size)}.")


# parquet --------------------------------------------------------------------------------------------------------------


def read_parquet(data: bytes, limits: Limits) -> Iterator[Item]:
    """Yield the rows of a Hugging Face image classification table, read in a process of their own.

    Damaged metadata can make the C++ library end its process, and compressed pages may unpack to anything.
    """
    command = [sys.executable, "-m", "workers.parquet", json.dumps(asdict(limits))]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=limits.seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise InputTooLarge(f"Reading the parquet took longer than {limits.seconds:g} s; send fewer images.") from error
    if done.returncode == parquet.REFUSED:
        raise refusal(*json.loads(done.stdout))
    if done.returncode != 0:
        _log.warning("the parquet reader ended with %d: %s", done.returncode, done.stderr.decode(errors="replace"))
        raise CorruptInput("The parquet cannot be read: it is damaged.")
    for index, (image, label) in enumerate(zip(*unpack_samples(done.stdout), strict=True)):
        yield Item(f"row {index}", label, image)

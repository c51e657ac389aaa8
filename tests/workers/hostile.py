"""Uploads made to hurt whoever reads them. `python -m tests.workers.hostile` reads all in one process, within limits.

It prints one line for each: its name, what it was refused with (or `read`), seconds, and the process's peak memory.
"""

import io
import os
import pickle
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.workers import uploads
from workers.inputs import read_dataset, read_samples
from workers.limits import InputError, Limits

CANARY = "LOOMWEIGHT_HOSTILE_CANARY"
LIMITS = Limits(seconds=20)
PNG = uploads.encoded(uploads.pixels())


class Pwned:
    """Unpickling it sets an environment variable."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, str]]:
        return os.putenv, (CANARY, "1")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(kind: bytes, body: bytes) -> bytes:
    """The image with a chunk more, after its header."""
    return PNG[:33] + chunk(kind, body) + PNG[33:]


def flat_png(width: int, height: int) -> bytes:
    """A true image of one colour: few bytes, many pixels."""
    deflate = zlib.compressobj(1)
    row = b"\0" * (1 + width)
    rows = b"".join([*(deflate.compress(row) for _ in range(height)), deflate.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animated_png(frames: int) -> bytes:
    buffer = io.BytesIO()
    images = [Image.new("RGB", (64, 64), (n % 256, 0, 0)) for n in range(frames)]
    images[0].save(buffer, "PNG", save_all=True, append_images=images[1:])
    return buffer.getvalue()


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    for n in range(16):
        info.add_text(f"k{n}", "\0" * 2**20, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def symlinked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, target in (("cat/0.png", "/etc/passwd"), ("dog/0.png", "../../../../etc/shadow")):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
    return buffer.getvalue()


def overlapping(copies: int, size: int) -> bytes:
    """Many directory entries that share one compressed stream: what each unpacks is small, all together is not."""
    base = io.BytesIO()
    with zipfile.ZipFile(base, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0000.png", b"\0" * size)
    data = base.getvalue()
    at = data.index(b"PK\x01\x02")
    entry, end = data[at : data.index(b"PK\x05\x06")], data[data.index(b"PK\x05\x06") :]
    directory = b"".join(entry.replace(b"cat/0000", f"c{n % 9:02}/{n:04}".encode()) for n in range(copies))
    tail = end[:8] + struct.pack("<HHII", copies, copies, len(directory), at) + end[20:]
    return data[:at] + directory + tail


def many_entries(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(count):
            archive.writestr(f"c{n % 2}/{n}.png", b"")
    return buffer.getvalue()


def entries_lie() -> bytes:
    data = bytearray(uploads.zipped(uploads.folder()))
    end = data.rindex(b"PK\x05\x06")
    data[end + 8 : end + 12] = b"\xff\xff\xff\xff"
    return bytes(data)


def size_lies(declared: int) -> bytes:
    data = bytearray(uploads.zipped(uploads.folder()))
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 24 : at + 28] = struct.pack("<I", declared)
    return bytes(data)


def object_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Pwned(), Pwned()], dtype=object), y=np.array([0, 1]))
    return buffer.getvalue()


def pickled_npy() -> bytes:
    """A header that says uint8 before a pickle: whoever falls back to `np.load` runs it."""
    raw = pickle.dumps(Pwned())
    head = uploads.npy_header((2, len(raw) // 2, 1))
    return uploads.zipped({"x.npy": head + raw, "y.npy": uploads.npy_header((2,)) + b"\0\1"})


def npy_text(header: str) -> bytes:
    text = header.encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    return uploads.zipped({"x.npy": npy, "y.npy": uploads.npy_header((2,)) + b"\0\1"})


def repeated_parquet() -> bytes:
    return uploads.parquet([b"\0" * 2**20] * 100, [0, 1] * 50, compression="zstd")


def nested(depth: int) -> bytes:
    data = b"\0" * 2**20
    for _ in range(depth):
        data = uploads.zipped({f"c{n}/x.png": data for n in range(8)})
    return data


DATASETS: dict[str, Callable[[], bytes]] = {
    "zip of symlinks": symlinked,
    "zips in zips": lambda: nested(4),
    "zip whose entries overlap": lambda: overlapping(2_000, 2**20),
    "zip of 20,000 entries": lambda: many_entries(20_000),
    "zip whose end record lies": entries_lie,
    "zip that declares 4 GiB an image": lambda: size_lies(0xFFFFFFFE),
    "zip that declares nothing": lambda: size_lies(0),
    "zip bomb of one image": lambda: uploads.zipped({"a/0.png": b"\0" * 100 * 2**20, "b/0.png": PNG}),
    "zip of large flat images": lambda: uploads.zipped({f"c{n % 2}/{n}.png": flat_png(3_000, 3_000) for n in range(4)}),
    "zip slip": lambda: uploads.zipped({"../../tmp/x.png": PNG, "cat/0.png": PNG}),
    "npz of pickles": object_npz,
    "npz whose numbers are a pickle": pickled_npy,
    "npy header that is a program": lambda: npy_text("__import__('os').putenv('" + CANARY + "','1')"),
    "npy header nested deeply": lambda: npy_text("(" * 5_000),
    "npy of a structured type": lambda: npy_text("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}"),
    "npy of more than there is": lambda: npy_text(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 99999999999, 99999999999)}"
    ),
    "npz bomb": lambda: uploads.npz(x=np.zeros((350, 512, 512), np.uint8), y=np.arange(350) % 2),
    "parquet that repeats one value": repeated_parquet,
    "parquet cut in its footer": lambda: uploads.parquet([PNG] * 4, [0, 1, 0, 1])[:-20],
    "parquet without a middle": lambda: b"PAR1" + struct.pack("<I", 0xFFFFFFF0) + b"PAR1",
}
IMAGES: dict[str, Callable[[], bytes]] = {
    "png of 2^31 pixels a side": lambda: uploads.declared_png(2**31 - 1, 2**31 - 1),
    "png that declares 39 megapixels and holds none": lambda: uploads.declared_png(6_200, 6_300),
    "png of 39 flat megapixels": lambda: flat_png(6_200, 6_300),
    "png with 16 MiB of text": text_bomb,
    "png with a colour profile that unpacks": lambda: png_with(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 2**26)),
    "png with an endless chunk": lambda: PNG[:33] + b"\xff\xff\xff\xfftEXt" + b"x" * 1_000,
    "png of 500 frames": lambda: animated_png(500),
    "jpeg of 65,535 pixels a side": lambda: b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + b"\x01\x11\x00" * 3,
    "webp of nothing": lambda: b"RIFF\xff\xff\xff\xffWEBPVP8L" + b"\0" * 20,
}


def read(data: bytes, *, image: bool) -> str:
    """What becomes of it: `read`, or the refusal's name. Anything else is raised."""
    try:
        if image:
            read_samples([data, PNG], ["a", "b"], LIMITS)
        else:
            read_dataset(data, LIMITS)
    except InputError as error:
        return type(error).__name__
    return "read"


def peak_mib() -> int:
    """Most memory that this process has had; `ru_maxrss` would begin at that of the process that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def main() -> None:
    """Read everything in this one process."""
    assert asdict(LIMITS)["unpacked_bytes"] == 512 * 2**20
    for corpus, image in ((IMAGES, True), (DATASETS, False)):
        for name, make in corpus.items():
            data = make()
            assert len(data) < 20_000_000, name
            began = time.monotonic()
            outcome = read(data, image=image)
            print(f"{outcome}\t{time.monotonic() - began:.2f}\t{peak_mib()}\t{name}", flush=True)
    assert CANARY not in os.environ
    assert os.popen(f"echo ${CANARY}").read().strip() == ""  # what a pickle's `putenv` would have set


if __name__ == "__main__":
    sys.exit(main())

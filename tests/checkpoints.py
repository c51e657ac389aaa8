"""Files that claim to be checkpoints: hostile, damaged, or merely of another format."""

import json
import pickle

import torch
from safetensors.torch import save

GOOD = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(start: int, end: int, kind: str = "F32", **changes: object) -> dict[str, object]:
    return {"dtype": kind, "shape": [(end - start) // 4], "data_offsets": [start, end], **changes}


HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "invalid-checkpoint", "too few"),
    "short": (b"\x02\0\0\0\0\0\0\0", "invalid-checkpoint", "too few"),
    "pickle": (pickle.dumps({"a": 1}), "unsupported-media-type", "pickled"),
    "torch zip": (b"PK\x03\x04" + bytes(100), "unsupported-media-type", "pickled"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "unsupported-media-type", "no safetensors file"),
    "list": (file([1, 2, 3]), "unsupported-media-type", "no safetensors file"),
    "length of 2 GiB": ((2**31).to_bytes(8, "little") + b"{}", "too-large", "2,147,483,648 bytes"),
    "length beyond words": (b"\xff" * 8 + b"{}", "too-large", "at most 4,194,304"),
    "cut in the header": (save(GOOD)[:30], "invalid-checkpoint", "inside its header"),
    "cut in the values": (save(GOOD)[:-1], "invalid-checkpoint", "cut off"),
    "more behind": (save(GOOD) + b"more", "invalid-checkpoint", "4 bytes that belong"),
    "nonsense": (file(b"{nonsense"), "invalid-checkpoint", "no valid JSON"),
    "no text": (file(b'{"\xff": 1}'), "invalid-checkpoint", "no valid JSON"),
    "deep": (file(b'{"a":' * 100_000), "invalid-checkpoint", "no valid JSON"),
    "twice": (file(b'{"a": 1, "a": 2}'), "invalid-checkpoint", "twice"),
    "metadata": (file({"__metadata__": {"a": 1}}), "invalid-checkpoint", "texts to texts"),
    "overlap": (file({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "invalid-checkpoint", "overlaps"),
    "gap": (file({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)), "invalid-checkpoint", "gap"),
    "unknown dtype": (file({"a": entry(0, 8, "F99")}, bytes(8)), "invalid-checkpoint", "dtype"),
    "wrong shape": (file({"a": entry(0, 8, shape=[3])}, bytes(8)), "invalid-checkpoint", "does not fit"),
    "negative": (file({"a": entry(0, 8, shape=[-1, -2])}, bytes(8)), "invalid-checkpoint", "no sense"),
    "fraction": (file({"a": entry(0, 8, shape=[2.0])}, bytes(8)), "invalid-checkpoint", "no sense"),
    "truth": (file({"a": entry(0, 4, shape=[True])}, bytes(4)), "invalid-checkpoint", "no sense"),
    "huge length": (file({"a": entry(0, 0, shape=[0, 2**62, 2**62])}), "too-large", "shape beyond"),
    "dimensions": (file({"a": entry(0, 4, shape=[1] * 99)}, bytes(4)), "too-large", "shape beyond"),
    "lone surrogate": (file(b'{"\\ud800": {}}'), "invalid-checkpoint", "printable"),
    "nameless": (file({"": entry(0, 4)}, bytes(4)), "invalid-checkpoint", "printable"),
    "long name": (file({"a" * 300: entry(0, 4)}, bytes(4)), "too-large", "characters"),
    "extra field": (file({"a": entry(0, 4, more=1)}, bytes(4)), "invalid-checkpoint", "nothing else"),
    "100,000 tensors": (file({f"{i}": entry(0, 0) for i in range(100_000)}), "too-large", "at most 4,194,304"),
    "10,001 tensors": (file({f"{i}": entry(0, 0) for i in range(10_001)}), "too-large", "10,001 tensors"),
}
"""By name: the file, the end of its problem's type, and what the problem says."""

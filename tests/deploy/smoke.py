"""Asks a running service for a network, as a client would: `python3 tests/deploy/smoke.py [URL]`; needs no package.

The API key is taken from LOOMWEIGHT_TOKEN.
Passes if a job succeeds, its weights arrive over whatever address the gateway names, and their hash is the card's.
"""

import hashlib
import json
import os
import struct
import sys
import time
import urllib.request
import zlib
from base64 import b64encode
from typing import Any

COLOURS = {"red": (220, 40, 30), "green": (30, 180, 60), "blue": (40, 60, 210)}


def png(colour: tuple[int, int, int], seed: int, size: int = 32) -> bytes:
    """A square of one colour with a little noise of its own."""
    rows = b"".join(
        b"\0" + bytes((c + (x * y * (seed + 3)) % 29) % 256 for x in range(size) for c in colour) for y in range(size)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def ask(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """Return the body of an answer; raises for any status but success."""
    request = urllib.request.Request(url, data, headers or {})
    if token := os.environ.get("LOOMWEIGHT_TOKEN"):
        request.add_unredirected_header(
            "Authorization", f"Bearer {token}"
        )  # a presigned address of the store takes none
    with urllib.request.urlopen(request, timeout=90) as answer:
        return bytes(answer.read())


def submit(url: str, wait_s: int = 0, **options: Any) -> bytes:
    """Send a job of fifteen pictures; returns the job as JSON."""
    samples = [
        {"label": label, "image": b64encode(png(colour, seed)).decode()}
        for label, colour in COLOURS.items()
        for seed in range(5)
    ]
    body = json.dumps({"samples": samples, **options}).encode()
    held = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    return ask(f"{url}/generate", body, {"Content-Type": "application/json", **held})


def generate(url: str, **options: Any) -> dict[str, Any]:
    """Run one job to its end."""
    job = json.loads(submit(url, wait_s=60, **options))
    while job["status"] in ("queued", "running"):
        time.sleep(0.5)
        job = json.loads(ask(f"{url}/jobs/{job['id']}"))
    if job["status"] != "succeeded":
        raise SystemExit(f"The job {job['status']}: {job['error']}")
    return dict(job)


def download(url: str, model: str) -> bytes:
    """Fetch the weights of a model, held against its card."""
    card = json.loads(ask(f"{url}/models/{model}"))
    weights = ask(f"{url}/models/{model}/weights")
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise SystemExit("The weights are not those of the card.")
    return weights


def main(url: str) -> None:
    """Do it once, and say what came of it."""
    start = time.perf_counter()
    job = generate(url)
    [model] = job["result"]["models"]
    weights = download(url, model["id"])
    seconds = time.perf_counter() - start
    print(f"{model['id']}: {len(weights):,} bytes in {seconds:.1f} s, held-out accuracy {model['holdout_accuracy']}")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://localhost:8000")

"""One file of a model over HTTP: conditional, by range, or by a URL of the store's own (RFC 9110)."""

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import NamedTuple

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from model_store.models import ModelRepository, Part
from model_store.records import ModelCard
from model_store.store import ChunkStream
from service.errors import NotFound, RangeNotSatisfiable

_FOREVER = "private, max-age=31536000, immutable"
_SUFFIXES = {"weights": "safetensors", "onnx": "onnx"}
_ONE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)


class Span(NamedTuple):
    """Bytes [start, end) of a file."""

    start: int
    end: int


def answer(request: Request, models: ModelRepository, card: ModelCard, part: Part, url_expires_s: int) -> Response:
    """Serve the weights or the ONNX model."""
    sha256, size = _described(card, part)
    etag = f'"{sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": _FOREVER}
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)

    # A signature is for GET alone, so HEAD is always answered here.
    if request.method == "GET" and (url := models.url(card, part, expires=url_expires_s)):
        redirect = {"Location": url, "Cache-Control": "no-store"}
        return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers=redirect)

    headers["Content-Disposition"] = f'attachment; filename="{card.id}.{_SUFFIXES[part]}"'
    span = parse_range(request.headers.get("range", ""), size) if request.method == "GET" else None
    if span and request.headers.get("if-range", etag) != etag:
        span = None
    status = HTTPStatus.OK
    if span:
        status = HTTPStatus.PARTIAL_CONTENT
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
    start, end = span or Span(0, size)
    headers["Content-Length"] = str(end - start)
    media_type = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    stream = models.open(card, part, start=start, end=end) if span else models.open(card, part)
    return StreamingResponse(_pieces(stream), status, headers, media_type)


def parse_range(header: str, size: int) -> Span | None:
    """Return the span that a `Range` header asks for; None to send all: no range, several, or not understood.

    Raises `RangeNotSatisfiable`.
    """
    match = _ONE_RANGE.fullmatch(header.strip())
    if not match or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {size:,} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return Span(start, end)


def _described(card: ModelCard, part: Part) -> tuple[str, int]:
    if part == "weights":
        return card.sha256, card.size
    if card.onnx is None:
        raise NotFound(f"The model {card.id} was stored without a runnable ONNX file.")
    return card.onnx.sha256, card.onnx.size


def _matches(header: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or tags == ["*"]


def _pieces(stream: ChunkStream) -> Iterator[bytes]:
    with stream:
        yield from stream

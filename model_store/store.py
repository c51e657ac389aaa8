"""The store: named bytes with a hash, and the errors every backend speaks.

    StoreError
    ├── NotFound               no object has this key
    ├── AlreadyExists          `if_absent` lost: the object was there first
    ├── RangeNotSatisfiable    the range holds no byte of the object
    ├── StoreUnavailable       the store cannot answer now; trying later may help
    ├── Corrupt                the bytes are not those that were stored
    └── InvalidKey             not a key, cursor or id that any object can have (a ValueError too)

Backends translate what they know at their boundary; anything else passes through unchanged.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol, Self, TypedDict, Unpack
from urllib.parse import unquote, urlsplit

Body = bytes | Path | BinaryIO
CHUNK = 1 << 20
KEY_BYTES = 800  # S3 allows 1024, a prefix included
SEGMENT_BYTES = 200  # file systems allow 255, and the local store decorates names
METADATA_BYTES = 1500  # S3 allows 2 kB, the hash and its name included


class StoreError(Exception):
    """Anything the store reports about itself or its objects."""


class NotFound(StoreError):
    """No object has this key."""


class AlreadyExists(StoreError):
    """A write with `if_absent` found the object there."""


class RangeNotSatisfiable(StoreError):
    """The range holds no byte of the object."""


class StoreUnavailable(StoreError):
    """The store cannot answer now: unreachable, overloaded, full, or not set up."""


class Corrupt(StoreError):
    """What was read is not what was stored."""


class InvalidKey(StoreError, ValueError):
    """A string that can name no object, whoever made it."""


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """What a listing knows: `size` in bytes, `modified` with its time zone."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class ObjectInfo(ObjectEntry):
    """What the store knows of one object; `sha256` is None for an object this package did not write."""

    sha256: str | None
    content_type: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class _Readable(Protocol):
    def read(self, amount: int, /) -> bytes: ...
    def close(self) -> None: ...


class ChunkStream(Iterator[bytes]):
    """An opened object, read piece by piece; `info` describes the whole object, `length` what will be read, in bytes.

    A whole object is held against its hash before the last piece is given out, so that a reader who got
    everything got the right bytes. Iterating raises `Corrupt` or `StoreUnavailable`.
    """

    def __init__(
        self,
        info: ObjectInfo,
        body: _Readable,
        length: int,
        chunk: int,
        translated: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.info = info
        self.length = length
        self._body = body
        self._left = length
        self._chunk = chunk
        self._translated = translated
        self._digest = hashlib.sha256() if info.sha256 and length == info.size else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            self.close()
            raise StopIteration
        with self._translated(self.info.key):
            piece = self._body.read(min(self._chunk, self._left))
        if not piece:
            self.close()
            raise StoreUnavailable(f"{self.info.key}: ended {self._left} bytes early")
        self._left -= len(piece)
        if self._digest:
            self._digest.update(piece)
            if not self._left and self._digest.hexdigest() != self.info.sha256:
                self.close()
                raise Corrupt(f"{self.info.key}: the bytes do not match their sha256")
        return piece

    def close(self) -> None:
        """Let go of the file or connection; harmless when repeated."""
        self._left = 0
        self._body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A web server that loses its client drops the iterator without closing it.
        self.close()


class ObjectStore(Protocol):
    """Objects under `/`-separated keys. Every method raises `StoreUnavailable`, and `InvalidKey` where it takes a key.

    Implementations may be shared between threads, and one place between processes: a reader sees an old object
    or a new one, never a mixture, and of several writers with `if_absent` exactly one succeeds.
    """

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Store `body` whole or not at all; a file is read from where it stands and left open.

        Raises `AlreadyExists` (only with `if_absent`) and ValueError for metadata that HTTP headers cannot carry:
        names are lower-case, values printable ASCII, 1,500 bytes in all.
        """

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Return bytes [start, end) of the object, an `end` beyond it meaning its end; a whole one is verified.

        Raises `NotFound`, `RangeNotSatisfiable` and, for a whole object, `Corrupt`.
        """

    def stream(self, key: str, *, start: int | None = None, end: int | None = None, chunk: int = CHUNK) -> ChunkStream:
        """Open what `get` would return, to be read in pieces of at most `chunk` bytes.

        Raises `NotFound` and `RangeNotSatisfiable` here, before the first piece.
        """

    def head(self, key: str) -> ObjectInfo:
        """Describe the object. Raises `NotFound`."""

    def delete(self, key: str) -> None:
        """Remove the object, or do nothing when there is none."""

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000) -> list[ObjectEntry]:
        """Return up to `limit` objects whose key starts with `prefix` and follows the key `after`, in key order.

        No object needs to have the key `after`, but it must not be a folder: servers differ on what follows that.
        """

    def presign(self, key: str, *, expires: int, filename: str | None = None) -> str | None:
        """Return a URL that anyone may GET for `expires` seconds, saved as `filename`; None if the store has none."""

    def check(self) -> None:
        """Return if the store is ready to read and write; raises `StoreUnavailable` otherwise."""

    def vacuum(self, older_than: timedelta) -> int:
        """Remove what writers that died halfway left behind, invisible to every reader; returns how many pieces."""

    def close(self) -> None:
        """Let go of connections."""


class S3Settings(TypedDict, total=False):
    """How to reach S3; whatever is left out comes from botocore's own chain. Times in seconds."""

    endpoint_url: str | None
    public_endpoint_url: str | None
    region: str | None
    access_key: str | None
    secret_key: str | None
    connect_timeout: float
    read_timeout: float
    max_attempts: int


def open_store(url: str, **settings: Unpack[S3Settings]) -> ObjectStore:
    """Open `file:///directory` or a plain path (made if missing), or `s3://bucket/prefix`, to which `settings` apply.

    Raises ValueError for any other URL, `StoreUnavailable` if the directory cannot be made. S3 is not contacted.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc and not parts.query and not parts.fragment:
        from model_store.s3 import S3Store  # boto3 takes a while to import, and only this branch needs it

        return S3Store(parts.netloc, prefix=parts.path.strip("/"), **settings)
    from model_store.local import LocalStore

    if parts.scheme == "file" and not parts.netloc and parts.path:
        return LocalStore(Path(unquote(parts.path)))
    if url and "://" not in url:
        return LocalStore(Path(url))
    raise ValueError(f"not a store: {url!r}; give a path, file:///directory or s3://bucket/prefix")


def validate_key(key: str) -> str:
    """Return `key` if every backend can hold it safely; raises `InvalidKey`.

    Segments that start with a dot are out: they climb (`..`), or hide the local store's own files.
    """
    segments = key.split("/")
    if not (
        key.isprintable()
        and "\\" not in key
        and len(key.encode()) <= KEY_BYTES
        and all(s and not s.startswith(".") and len(s.encode()) <= SEGMENT_BYTES for s in segments)
    ):
        raise InvalidKey(f"not a key: {key[:100]!r}")
    return key


def validate_prefix(prefix: str) -> str:
    """Return `prefix` if keys can start with it; raises `InvalidKey`."""
    if prefix:
        validate_key(prefix.removesuffix("/"))
    return prefix


def validate_range(start: int | None, end: int | None) -> tuple[int, int | None] | None:
    """Return the range as [start, end), None for the whole object; raises `RangeNotSatisfiable` if it is empty."""
    if start is None and end is None:
        return None
    first = start or 0
    if first < 0 or (end is not None and end <= first):
        raise RangeNotSatisfiable(f"[{start}, {end}) holds no byte")
    return first, end


def validate_headers(content_type: str, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of `metadata`; raises ValueError if it or `content_type` does not fit HTTP headers."""
    kept = dict(metadata or {})
    for name, value in {**kept, "content-type": content_type}.items():
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
            raise ValueError(f"not a header: {name!r}: {value[:100]!r}")
    if sum(len(name) + len(value) for name, value in kept.items()) > METADATA_BYTES:
        raise ValueError(f"metadata takes more than {METADATA_BYTES} bytes")
    return kept


@contextmanager
def opened(body: Body) -> Iterator[BinaryIO]:
    """The body as a file; only what was opened here is closed again."""
    if isinstance(body, bytes):
        yield BytesIO(body)
    elif isinstance(body, Path):
        with body.open("rb") as file:
            yield file
    else:
        yield body

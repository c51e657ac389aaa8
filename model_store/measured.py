"""A store that says how long each of its calls took and how it ended, to whoever keeps the figures."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from model_store.store import CHUNK, Body, ChunkStream, ObjectEntry, ObjectInfo, ObjectStore, StoreUnavailable

Observe = Callable[[str, str, float], None]
"""Takes the operation, `ok` or `unavailable`, and the seconds."""


class MeasuredStore:
    """Passes every call on; only what the store could not do counts as `unavailable`, a missing object is an answer.

    A stream's time is that until its first byte can be read: how fast the rest goes depends on the reader.
    """

    def __init__(self, store: ObjectStore, observe: Observe) -> None:
        self._store = store
        self._observe = observe

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        start, outcome = time.perf_counter(), "ok"
        try:
            yield
        except StoreUnavailable:
            outcome = "unavailable"
            raise
        finally:
            self._observe(operation, outcome, time.perf_counter() - start)

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Store `body`; see `ObjectStore.put`."""
        with self._timed("put"):
            return self._store.put(key, body, content_type=content_type, metadata=metadata, if_absent=if_absent)

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes; see `ObjectStore.get`."""
        with self._timed("get"):
            return self._store.get(key, start=start, end=end)

    def stream(self, key: str, *, start: int | None = None, end: int | None = None, chunk: int = CHUNK) -> ChunkStream:
        """Open the object; see `ObjectStore.stream`."""
        with self._timed("stream"):
            return self._store.stream(key, start=start, end=end, chunk=chunk)

    def head(self, key: str) -> ObjectInfo:
        """Describe the object; see `ObjectStore.head`."""
        with self._timed("head"):
            return self._store.head(key)

    def delete(self, key: str) -> None:
        """Remove the object; see `ObjectStore.delete`."""
        with self._timed("delete"):
            self._store.delete(key)

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000) -> list[ObjectEntry]:
        """Return the next entries; see `ObjectStore.list`."""
        with self._timed("list"):
            return self._store.list(prefix, after=after, limit=limit)

    def presign(self, key: str, *, expires: int, filename: str | None = None) -> str | None:
        """Return a URL; see `ObjectStore.presign`. Nothing is contacted, so nothing is measured."""
        return self._store.presign(key, expires=expires, filename=filename)

    def check(self) -> None:
        """Return if the store is ready; see `ObjectStore.check`."""
        with self._timed("check"):
            self._store.check()

    def vacuum(self, older_than: timedelta) -> int:
        """Remove leftovers; see `ObjectStore.vacuum`."""
        with self._timed("vacuum"):
            return self._store.vacuum(older_than)

    def close(self) -> None:
        """Let go of connections."""
        self._store.close()

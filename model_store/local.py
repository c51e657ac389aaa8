"""A directory as a store: every object is a plain file, its description a hidden one beside it.

`models/m-1/card.json` is described by `models/m-1/.card.json.<generation>.meta`, the generation being the file's
modification time in nanoseconds, which the writer makes unique. A description is complete before its file appears
under the key, and each version has its own, so readers and writers in any number of processes need no locks.
A file without description (put there by hand, or by a backup that rounds times) is hashed as it is read.
"""

import errno
import hashlib
import json
import mimetypes
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypedDict

from model_store.store import (
    CHUNK,
    AlreadyExists,
    Body,
    ChunkStream,
    Corrupt,
    InvalidKey,
    NotFound,
    ObjectEntry,
    ObjectInfo,
    RangeNotSatisfiable,
    StoreUnavailable,
    opened,
    validate_headers,
    validate_key,
    validate_prefix,
    validate_range,
)

_FAILING_DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOSPC),  # may not, or cannot hold more
    *(errno.EIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE),  # out of order
}
# Ours alone: file systems and people keep other dotfiles.
_HIDDEN = re.compile(r"\.(?:(?P<of>.+)\.(?P<generation>\d+)\.meta|[0-9a-f]{16}\.draft)")


class _Description(TypedDict):
    sha256: str
    content_type: str
    metadata: dict[str, str]


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise AlreadyExists(key) from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound(key) from error
    except OSError as error:
        if error.errno in _FAILING_DISK:
            raise StoreUnavailable(f"{key}: {error.strerror}") from error
        raise


class LocalStore:
    """An `ObjectStore` under the directory `root`, which is made if missing (or `StoreUnavailable` raised).

    Unlike S3, no key may be another key's folder: `put` of `a/b` beside `a` raises `InvalidKey`.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{root} cannot be made: {error.strerror}") from error
        self.root = root.resolve()

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
        path = self._path(key)
        headers = validate_headers(content_type, metadata)
        if path.is_dir():
            raise InvalidKey(f"{key} is a folder of other keys")
        with opened(body) as source, _translated(key), self._draft(path) as (draft, file):
            digest = hashlib.sha256()
            while piece := source.read(CHUNK):
                digest.update(piece)
                file.write(piece)
            file.flush()
            # Whole milliseconds are the clock's, the rest is drawn: two writers never share a generation.
            stamp = time.time_ns() // 10**6 * 10**6 + secrets.randbelow(10**6)
            os.utime(file.fileno(), ns=(stamp, stamp))
            os.fsync(file.fileno())
            generation = os.fstat(file.fileno()).st_mtime_ns  # as the file system keeps it
            described = _Description(sha256=digest.hexdigest(), content_type=content_type, metadata=headers)
            self._publish(path, draft, generation, json.dumps(described), if_absent)
            return _info(key, os.fstat(file.fileno()), described)

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes; see `ObjectStore.get`."""
        with self.stream(key, start=start, end=end) as pieces:
            return b"".join(pieces)

    def stream(self, key: str, *, start: int | None = None, end: int | None = None, chunk: int = CHUNK) -> ChunkStream:
        """Open the object; see `ObjectStore.stream`."""
        wanted = validate_range(start, end)
        file, info = self._open(key)
        first, stop = wanted or (0, None)
        if wanted and first >= info.size:
            file.close()
            raise RangeNotSatisfiable(f"{key} has {info.size} bytes")
        file.seek(first)
        length = min(info.size, info.size if stop is None else stop) - first
        return ChunkStream(info, file, length, chunk, _translated)

    def head(self, key: str) -> ObjectInfo:
        """Describe the object; see `ObjectStore.head`."""
        file, info = self._open(key)
        file.close()
        return info

    def delete(self, key: str) -> None:
        """Remove the object and the folders this leaves empty; see `ObjectStore.delete`."""
        path = self._path(key)
        with suppress(NotFound), _translated(key):
            generation = path.stat().st_mtime_ns
            path.unlink()
            _sidecar(path, generation).unlink(missing_ok=True)
            for folder in self._folders(path):
                try:
                    folder.rmdir()
                except OSError:
                    break

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000) -> list[ObjectEntry]:
        """Return the next entries; see `ObjectStore.list`."""
        validate_prefix(prefix)
        with _translated(prefix):
            return [*islice(self._entries("", prefix, validate_prefix(after or "")), limit)]

    def presign(self, key: str, *, expires: int, filename: str | None = None) -> str | None:
        """Return None: a directory has no URLs."""
        return None

    def check(self) -> None:
        """Return if a file can be written; see `ObjectStore.check`."""
        with _translated(str(self.root)), self._draft(self.root / "check"):
            pass

    def vacuum(self, older_than: timedelta) -> int:
        """Remove drafts and descriptions without their file; see `ObjectStore.vacuum`."""
        oldest, removed = time.time_ns() - older_than // timedelta(microseconds=1) * 1000, 0
        for folder, _, names in os.walk(self.root):
            for name in filter(_HIDDEN.fullmatch, names):
                path = Path(folder, name)
                with suppress(NotFound), _translated(name):
                    if path.stat().st_mtime_ns < oldest and not _describes(path):
                        path.unlink()
                        removed += 1
        return removed

    def close(self) -> None:
        """Do nothing: no connection is held."""

    def _path(self, key: str) -> Path:
        path = self.root / validate_key(key)
        # No link is followed, so none can lead out.
        if os.path.realpath(path) != str(path):
            raise InvalidKey(f"{key} goes through a symbolic link")
        return path

    def _folders(self, path: Path) -> Iterator[Path]:
        """The folders between a file and the root, innermost first."""
        folder = path.parent
        while folder != self.root:
            yield folder
            folder = folder.parent

    @contextmanager
    def _draft(self, path: Path) -> Iterator[tuple[Path, BinaryIO]]:
        """A hidden file beside `path`, gone afterwards under that name."""
        draft = path.with_name(f".{secrets.token_hex(8)}.draft")
        while True:
            if not self.root.is_dir():  # an unmounted volume must not be replaced by a fresh directory
                raise StoreUnavailable(f"{self.root} is not there")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = draft.open("xb")
            except FileNotFoundError:
                continue  # a delete took the empty folder away in between
            except (FileExistsError, NotADirectoryError) as error:
                raise InvalidKey(f"{path.relative_to(self.root)} lies in a folder that is an object") from error
            break
        try:
            with file:
                yield draft, file
        finally:
            draft.unlink(missing_ok=True)

    def _publish(self, path: Path, draft: Path, generation: int, described: str, if_absent: bool) -> None:
        sidecar = _sidecar(path, generation)
        try:
            with sidecar.open("w", encoding="utf-8") as file:
                file.write(described)
                file.flush()
                os.fsync(file.fileno())
            replaced = None
            if if_absent:
                path.hardlink_to(draft)
            else:
                with suppress(FileNotFoundError):
                    replaced = path.stat().st_mtime_ns
                draft.replace(path)
        except BaseException:
            sidecar.unlink(missing_ok=True)
            raise
        for folder in (*self._folders(path), self.root):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if replaced is not None:
            _sidecar(path, replaced).unlink(missing_ok=True)

    def _open(self, key: str) -> tuple[BinaryIO, ObjectInfo]:
        path = self._path(key)
        with _translated(key):
            while True:
                file = path.open("rb")
                try:
                    status = os.fstat(file.fileno())
                    try:
                        return file, _info(key, status, json.loads(_sidecar(path, status.st_mtime_ns).read_bytes()))
                    except FileNotFoundError:
                        # Either the object changed since it was opened, or this file never had a description.
                        if path.stat().st_mtime_ns == status.st_mtime_ns:
                            return file, _info(key, status, _adopted(file, key))
                    except ValueError as error:
                        raise Corrupt(f"{key}: its description cannot be read") from error
                    file.close()
                except BaseException:
                    file.close()
                    raise

    def _entries(self, folder: str, prefix: str, after: str) -> Iterator[ObjectEntry]:
        """Walk in key order: a folder sorts as its name with the slash that its keys have there."""
        try:
            with os.scandir(self.root / folder) as scan:
                found = {
                    f"{folder}{item.name}{'/' * item.is_dir(follow_symlinks=False)}": item
                    for item in scan
                    if not item.name.startswith(".") and not item.is_symlink()
                }
        except FileNotFoundError:
            return  # deleted since its parent was read
        for key in sorted(found):
            if key.endswith("/"):
                if (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
                    yield from self._entries(key, prefix, after)
            elif key.startswith(prefix) and key > after and key.isprintable():
                with suppress(FileNotFoundError):
                    status = found[key].stat(follow_symlinks=False)
                    yield ObjectEntry(key, status.st_size, _moment(status))


def _sidecar(path: Path, generation: int) -> Path:
    return path.with_name(f".{path.name}.{generation}.meta")


def _describes(path: Path) -> bool:
    """Whether a hidden file is the description of a file as it is now."""
    match = _HIDDEN.fullmatch(path.name)
    if not match or not match["of"]:
        return False
    try:
        return path.with_name(match["of"]).stat().st_mtime_ns == int(match["generation"])
    except FileNotFoundError:
        return False


def _adopted(file: BinaryIO, key: str) -> _Description:
    digest = hashlib.sha256()
    while piece := file.read(CHUNK):
        digest.update(piece)
    kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
    return _Description(sha256=digest.hexdigest(), content_type=kind, metadata={})


def _moment(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC)


def _info(key: str, status: os.stat_result, described: _Description) -> ObjectInfo:
    return ObjectInfo(key=key, size=status.st_size, modified=_moment(status), **described)

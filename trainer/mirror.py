"""A run folder and its copy in a store: what lets pods that share no disk build one run, and lose nothing with a pod.

Stages write a file under another name and rename it, and the description (`.json`) of a product after the product
itself. Copies keep that order, so that what a store describes is there.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.store import ObjectStore, StoreError

_log = logging.getLogger(__name__)
_EVERY_S = 20.0
_GROWING = "tensorboard"  # written to as long as a stage runs


def zoo_shard(shard: int, shards: int) -> Callable[[str], bool]:
    """Which files of a run a shard of the zoo needs: everything but the other shards' models."""

    def wanted(name: str) -> bool:
        folder, _, file = name.rpartition("/")
        index = file.partition(".")[0]
        return not (folder.startswith("zoo/") and index.isdigit() and int(index) % shards != shard)

    return wanted


class Mirror:
    """Copies between a run folder and a store; a name is the path below the run folder and the key in the store."""

    def __init__(self, store: ObjectStore, run: Path) -> None:
        self._store, self._run = store, run
        self._same: dict[str, tuple[int, int]] = {}  # modification time and size of what the store has too
        self._lock = threading.Lock()

    def pull(self, wanted: Callable[[str], bool] = lambda name: True) -> int:
        """Fetch what is not here yet; returns how many files."""
        count = 0
        for name in _descriptions_last(self._names()):
            path = self._run / name
            if wanted(name) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                arriving = path.with_name(f".{path.name}.arriving")
                with arriving.open("wb") as file, self._store.stream(name) as pieces:
                    file.writelines(pieces)
                arriving.replace(path)
                count += 1
            if path.exists():
                self._same[name] = _state(path)
        return count

    def push(self, *, growing: bool = True) -> int:
        """Send what is new or has changed; returns how many files. Without `growing`, leave out what is written to."""
        count = 0
        with self._lock:
            for name in _descriptions_last(self._finished()):
                path = self._run / name
                state = _state(path)
                if self._same.get(name) == state or (not growing and _GROWING in path.parts):
                    continue
                self._store.put(name, path, content_type="application/octet-stream")
                self._same[name] = state
                count += 1
        return count

    @contextmanager
    def following(self) -> Iterator[None]:
        """Push every now and then while the block runs, and all the rest at its end, however it ends."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(_EVERY_S):
                try:
                    self.push(growing=False)
                except (StoreError, OSError) as error:
                    _log.warning("the store will have to wait: %s", error)

        thread = threading.Thread(target=follow, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.push()

    def _names(self) -> Iterator[str]:
        last = None
        while page := self._store.list("", after=last):
            yield from (entry.key for entry in page)
            last = page[-1].key

    def _finished(self) -> Iterator[str]:
        for path in self._run.rglob("*"):
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".tmp":
                yield path.relative_to(self._run).as_posix()


def _descriptions_last(names: Iterator[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.endswith(".json"), name))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size

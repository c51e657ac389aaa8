"""Models in a store: tensors first, card last, so that what can be seen is complete.

Ids are deterministic (a job that runs twice writes the same models) and therefore hold no time. Order, newest
first, comes from empty objects whose names count down from the end of time; an entry counts only if the card it
leads to, by its `created_at` and `target`, leads back to it, so leftovers of interrupted writes stay unseen.
"""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import BinaryIO, Literal

from pydantic import ValidationError

from model_store import keys
from model_store.records import ModelCard, ModelPage
from model_store.store import CHUNK, AlreadyExists, ChunkStream, Corrupt, InvalidKey, NotFound, ObjectEntry, ObjectStore

Part = Literal["weights", "onnx"]
_KEYS = {"weights": keys.weights, "onnx": keys.onnx}
_SUFFIXES = {"weights": "safetensors", "onnx": "onnx"}
_AT_ONCE = 8  # requests of one call; each waits for the network
_log = logging.getLogger(__name__)


def new_model_id(job_id: str, rank: int) -> str:
    """The id of the candidate that a job kept at place `rank`: always the same."""
    return "m-" + hashlib.sha256(f"{rank}/{job_id}".encode()).hexdigest()[:24]


def new_upload_id(sha256: str, owner: str) -> str:
    """The id of a checkpoint uploaded by `owner`: the same for the same file, and nobody else's."""
    return "u-" + hashlib.sha256(f"{sha256}/{owner}".encode()).hexdigest()[:24]


class ModelRepository:
    """Models kept in `store`. Every method raises `StoreUnavailable` when the store does."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def save(self, card: ModelCard, weights: bytes | BinaryIO, onnx: bytes | None = None) -> ModelCard:
        """Store a model; returns its card as stored, which is the first one if these weights were saved before.

        Weights that are a file are read from its start. Raises ValueError if the card does not describe the bytes,
        `AlreadyExists` if the id has other weights.
        """
        _hold_against(card, weights, onnx)
        stored = self._find(card.id)
        if stored is None:
            stored = self._write(card, weights, onnx)
        if stored.sha256 != card.sha256:
            raise AlreadyExists(f"model {card.id} has other weights")
        return stored

    def card(self, model_id: str) -> ModelCard:
        """Return the card. Raises `NotFound`, also for what cannot be an id, and `Corrupt`."""
        try:
            body = self.store.get(keys.card(model_id))
        except (InvalidKey, NotFound):
            raise NotFound(f"there is no model {model_id[:100]!r}") from None
        try:
            return ModelCard.model_validate_json(body)
        except ValidationError as error:
            raise Corrupt(f"the card of {model_id} cannot be read: {error}") from error

    def exists(self, model_id: str) -> bool:
        """Whether there is such a model, that is, its card."""
        try:
            self.store.head(keys.card(model_id))
        except (InvalidKey, NotFound):
            return False
        return True

    def list(
        self, *, after: str | None = None, limit: int = 50, target: str | None = None, owner: str | None = None
    ) -> ModelPage:
        """Return up to `limit` (1 to 500) models after the cursor `after`, newest first: all, or one owner's.

        Raises ValueError for another limit, `InvalidKey` for what no `next_cursor` was.
        """
        if not 1 <= limit <= 500:
            raise ValueError(f"limit must lie between 1 and 500, not {limit}")
        if after is not None:
            keys.cursor(after)
        if target is not None and not keys.is_id(target):
            return ModelPage(models=(), next_cursor=None)
        folder = keys.recent(target, owner)
        last = None if after is None else folder + after
        found: list[tuple[str, ModelCard]] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # One more than asked for tells whether there is another page.
            while len(found) <= limit and (batch := self.store.list(folder, after=last, limit=limit + 1 - len(found))):
                cards = pool.map(self._readable, batch)
                found += [(entry.key, card) for entry, card in zip(batch, cards, strict=True) if card]
                last = batch[-1].key
        cursor = found[limit - 1][0].removeprefix(folder) if len(found) > limit else None
        return ModelPage(models=tuple(card for _, card in found[:limit]), next_cursor=cursor)

    def open(self, card: ModelCard, part: Part, *, start: int | None = None, end: int | None = None) -> ChunkStream:
        """Open bytes [start, end) of the weights or the ONNX model, to be read in pieces.

        Raises `NotFound` and `RangeNotSatisfiable`; iterating also raises `Corrupt`.
        """
        return self.store.stream(_key(card, part), start=start, end=end)

    def read(self, card: ModelCard, part: Part) -> bytes:
        """Return the weights or the ONNX model, the very bytes that the card describes.

        Raises `NotFound` if the model has no such part, `Corrupt` if the bytes are others.
        """
        body = self.store.get(_key(card, part))
        if hashlib.sha256(body).hexdigest() != _sha256(card, part):
            raise Corrupt(f"the {part} of {card.id} are not those of its card")
        return body

    def url(self, card: ModelCard, part: Part, *, expires: int) -> str | None:
        """Return a URL of the weights or the ONNX model for `expires` seconds, None if the store has none.

        Raises `NotFound` if the model has no such part.
        """
        return self.store.presign(_key(card, part), expires=expires, filename=f"{card.id}.{_SUFFIXES[part]}")

    def delete(self, model_id: str) -> None:
        """Remove a model, its card first, or what an interrupted removal left; an unknown id is left alone."""
        entries: tuple[str, ...] = ()
        with suppress(Corrupt):
            card = self._find(model_id)
            entries = _entries(card) if card else ()
        with suppress(InvalidKey):
            for key in (keys.card(model_id), keys.weights(model_id), keys.onnx(model_id), *entries):
                self.store.delete(key)
            for entry in self.store.list(keys.embeddings(model_id)):
                self.store.delete(entry.key)

    def expire(self, older_than: timedelta) -> int:
        """Remove models stored longer ago than this; returns how many."""
        folder = keys.recent()
        last, removed = folder + keys.recent_entry(datetime.now(UTC) - older_than, "z"), 0
        while batch := self.store.list(folder, after=last):
            for entry in batch:
                with suppress(Corrupt):
                    if self._listed(entry):
                        self.delete(keys.model_of(entry.key))
                        removed += 1
            last = batch[-1].key
        return removed

    def sweep(self, older_than: timedelta) -> tuple[str, ...]:
        """Remove tensors and list entries without a card that nobody touched for `older_than`; returns their keys.

        `older_than` must exceed the longest save: the tensors of a save in progress have no card either.
        """
        oldest = datetime.now(UTC) - older_than
        self.store.vacuum(older_than)
        removed = (*self._orphaned_tensors(oldest), *self._orphaned_entries(oldest))
        if removed:
            _log.info("swept %d orphans", len(removed))
        return removed

    def _find(self, model_id: str) -> ModelCard | None:
        try:
            return self.card(model_id)
        except NotFound:
            return None

    def _listed(self, entry: ObjectEntry) -> ModelCard | None:
        """The card that an entry leads to, if that leads back."""
        card = self._find(keys.model_of(entry.key))
        return card if card and entry.key in _entries(card) else None

    def _readable(self, entry: ObjectEntry) -> ModelCard | None:
        try:
            return self._listed(entry)
        except Corrupt as error:
            _log.warning("left out of a listing: %s", error)  # one bad card must not hide all others
            return None

    def _write(self, card: ModelCard, weights: bytes | BinaryIO, onnx: bytes | None) -> ModelCard:
        """Write a model that had no card; returns the card that is there in the end."""
        bodies: dict[str, bytes | BinaryIO] = {keys.weights(card.id): weights, **dict.fromkeys(_entries(card), b"")}
        if onnx is not None:
            bodies[keys.onnx(card.id)] = onnx
        put = partial(self.store.put, content_type="application/octet-stream")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(put, bodies, bodies.values()):  # raises what a put raised
                pass
        text = card.model_dump_json().encode()
        try:
            self.store.put(keys.card(card.id), text, content_type="application/json", if_absent=True)
        except AlreadyExists:
            first = self.card(card.id)
            for entry in set(_entries(card)) - set(_entries(first)):
                self.store.delete(entry)
            return first
        return card

    def _all(self, prefix: str) -> Iterator[ObjectEntry]:
        last = None
        while page := self.store.list(prefix, after=last):
            yield from page
            last = page[-1].key

    def _orphaned_tensors(self, oldest: datetime) -> Iterator[str]:
        for model_id, group in groupby(self._all(keys.MODELS), key=lambda entry: keys.model_of(entry.key)):
            files = {entry.key: entry.modified for entry in group}
            if not keys.is_id(model_id) or keys.card(model_id) in files or max(files.values()) >= oldest:
                continue
            embedded = [key for key in files if key.startswith(keys.embeddings(model_id))]
            for key in (keys.weights(model_id), keys.onnx(model_id), *embedded):
                # Looked at again: a save may have come back to this model since the listing.
                with suppress(NotFound):
                    if self.store.head(key).modified < oldest and not self.exists(model_id):
                        self.store.delete(key)
                        yield key

    def _orphaned_entries(self, oldest: datetime) -> Iterator[str]:
        for entry in self._all(keys.RECENT):
            with suppress(Corrupt):
                if entry.modified < oldest and self._listed(entry) is None:
                    self.store.delete(entry.key)
                    yield entry.key


def _entries(card: ModelCard) -> tuple[str, ...]:
    """Where a model is listed: among all, those of its target, and both of these for its owner."""
    name = keys.recent_entry(card.created_at, card.id)
    folders = {keys.recent(target, owner) for target in (None, card.target) for owner in (None, card.owner)}
    return tuple(sorted(folder + name for folder in folders))


def _sha256(card: ModelCard, part: Part) -> str:
    if part == "weights":
        return card.sha256
    if card.onnx is None:
        raise NotFound(f"model {card.id} has no {part}")
    return card.onnx.sha256


def _key(card: ModelCard, part: Part) -> str:
    _sha256(card, part)
    return _KEYS[part](card.id)


def _hold_against(card: ModelCard, weights: bytes | BinaryIO, onnx: bytes | None) -> None:
    described = [(card.sha256, card.size)] + ([(card.onnx.sha256, card.onnx.size)] if card.onnx else [])
    given = [_measured(body) for body in (weights, onnx) if body is not None]
    if described != given:
        raise ValueError(f"the card of {card.id} does not describe these files")


def _measured(body: bytes | BinaryIO) -> tuple[str, int]:
    """SHA-256 and size; a file is rewound afterwards."""
    if isinstance(body, bytes):
        return hashlib.sha256(body).hexdigest(), len(body)
    digest, size = hashlib.sha256(), 0
    body.seek(0)
    while piece := body.read(CHUNK):
        digest.update(piece)
        size += len(piece)
    body.seek(0)
    return digest.hexdigest(), size

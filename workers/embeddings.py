"""Embeddings of stored models: made once, kept beside the model, keyed by the similarity part that made them."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from io import BytesIO

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from loomweight.errors import InvalidCheckpoint
from loomweight.similarity import Similarity, Sketch
from loomweight.similarity.index import pack, unpack
from model_store import keys
from model_store.checkpoint import CheckpointError, read_header
from model_store.models import ModelRepository
from model_store.records import ModelCard
from model_store.store import NotFound, StoreError, StoreUnavailable
from workers import metrics
from workers.lease import with_patience

_log = logging.getLogger(__name__)
_IN_MEMORY = 4_096  # some 33 KB each


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file from anybody; raises InvalidCheckpoint."""
    try:
        read_header(BytesIO(data), len(data))
        return dict(load(data))
    except CheckpointError as error:
        raise InvalidCheckpoint(str(error)) from error
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InvalidCheckpoint(f"the safetensors file cannot be read: {error}") from error


class Embeddings:
    """Sketches of stored models, in memory and in the store. Methods raise `StoreUnavailable` after `patience` s."""

    def __init__(self, models: ModelRepository, part: Similarity, patience: float) -> None:
        self._models, self._part, self._patience = models, part, patience
        self._known: OrderedDict[str, Sketch | InvalidCheckpoint] = OrderedDict()

    def known(self, card: ModelCard) -> Sketch | None:
        """Return what was made before, None if it is still to be made. Raises InvalidCheckpoint where that failed."""
        found = self._known.get(_key(card))
        if isinstance(found, InvalidCheckpoint):
            raise found
        if found is not None:
            metrics.EMBEDDINGS.labels("memory").inc()
            self._known.move_to_end(_key(card))
            return found
        try:
            sketch = unpack(self._patiently(partial(self._models.store.get, keys.embedding(card.id, self._part.id))))
        except NotFound:
            return None
        except (StoreError, ValueError) as error:
            if isinstance(error, StoreUnavailable):
                raise
            _log.warning("the embedding of %s is made again: %s", card.id, error)
            return None
        metrics.EMBEDDINGS.labels("store").inc()
        self._remember(card, sketch)
        return sketch

    def make(self, card: ModelCard) -> Sketch:
        """Embed a model and keep the embedding. Raises InvalidCheckpoint, and `NotFound` if the model is gone."""
        metrics.EMBEDDINGS.labels("made").inc()
        try:
            sketch = self._part.embed(tensors_of(self.read(card))).sketch
        except InvalidCheckpoint as error:
            self._remember(card, error)
            raise
        self._remember(card, sketch)
        key = keys.embedding(card.id, self._part.id)
        put = partial(self._models.store.put, key, pack(sketch), content_type="application/octet-stream")
        with_patience(put, self._patience, StoreUnavailable)
        return sketch

    def of(self, card: ModelCard) -> Sketch:
        """Return the embedding, made now if it is not known."""
        return self.known(card) or self.make(card)

    def read(self, card: ModelCard) -> bytes:
        """Return the weights of a model."""
        return self._patiently(lambda: self._models.read(card, "weights"))

    def _patiently(self, call: Callable[[], bytes]) -> bytes:
        return with_patience(call, self._patience, StoreUnavailable)

    def _remember(self, card: ModelCard, found: Sketch | InvalidCheckpoint) -> None:
        self._known[_key(card)] = found
        while len(self._known) > _IN_MEMORY:
            self._known.popitem(last=False)


def _key(card: ModelCard) -> str:
    return f"{card.id}/{card.sha256}"

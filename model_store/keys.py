"""The names of everything in the store; no key is put together anywhere else.

    models/{model_id}/weights.safetensors   the tensors
    models/{model_id}/model.onnx            the runnable model, if it has one
    models/{model_id}/embedding.{part}      what a similarity part makes of the tensors; may be made again at any time
    models/{model_id}/card.json             written last: a model exists once its card does
    recent/…/{age}.{model_id}               empty objects that put models in order, newest first: all, those of a
                                            target, those of an owner, those of an owner and target
    inputs/{job_id}/{name}                  what a client uploaded for a job
    jobs/{job_id}.json                      the record of an ended job
    access/{key_id}.json                    what is kept of an API key

Every function raises `InvalidKey` for an id that does not match `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
"""

import re
from datetime import datetime, timedelta

from model_store.store import InvalidKey

MODELS = "models/"
RECENT = "recent/"
INPUTS = "inputs/"
JOBS = "jobs/"
ACCESS = "access/"

ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ID = re.compile(ID_PATTERN)
_CURSOR = re.compile(rf"[0-9]{{15}}\.{ID_PATTERN}")
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_END_OF_TIME = 999_999_999_999_999  # milliseconds


def is_id(value: str) -> bool:
    """Whether a model, a job or a target may be called so."""
    return _ID.fullmatch(value) is not None


def _id(value: str) -> str:
    if not is_id(value):
        raise InvalidKey(f"not an id: {value[:100]!r}")
    return value


def weights(model_id: str) -> str:
    """The safetensors of a model."""
    return f"{MODELS}{_id(model_id)}/weights.safetensors"


def onnx(model_id: str) -> str:
    """The runnable model."""
    return f"{MODELS}{_id(model_id)}/model.onnx"


def embeddings(model_id: str) -> str:
    """What the keys of a model's embeddings begin with."""
    return f"{MODELS}{_id(model_id)}/embedding."


def embedding(model_id: str, part: str) -> str:
    """The embedding of a model that a similarity part made."""
    return embeddings(model_id) + _id(part)


def card(model_id: str) -> str:
    """The card of a model."""
    return f"{MODELS}{_id(model_id)}/card.json"


def model_of(key: str) -> str:
    """The id of the model that a key below `MODELS` or `RECENT` belongs to, as far as the key tells."""
    if key.startswith(MODELS):
        return key.removeprefix(MODELS).partition("/")[0]
    return key.rpartition("/")[2].partition(".")[2]


def recent(target: str | None = None, owner: str | None = None) -> str:
    """The folder that lists all models, or those of one target, one owner, or both, newest first."""
    top = RECENT if owner is None else f"{RECENT}owner/{_id(owner)}/"
    return f"{top}all/" if target is None else f"{top}target/{_id(target)}/"


def recent_entry(created_at: datetime, model_id: str) -> str:
    """The name of a model in such a folder: the younger the model, the smaller the number it starts with."""
    return f"{_END_OF_TIME - (created_at - _EPOCH) // timedelta(milliseconds=1):015d}.{_id(model_id)}"


def cursor(value: str) -> str:
    """Return `value` if it is a name made by `recent_entry`."""
    if not _CURSOR.fullmatch(value):
        raise InvalidKey(f"not a cursor: {value[:100]!r}")
    return value


def job_inputs(job_id: str) -> str:
    """The folder of a job's inputs."""
    return f"{INPUTS}{_id(job_id)}/"


def job_input(job_id: str, name: str) -> str:
    """One input of a job; `name` is ours, never a client's file name."""
    return job_inputs(job_id) + _id(name)


def job_record(job_id: str) -> str:
    """The record of an ended job."""
    return f"{JOBS}{_id(job_id)}.json"


def access_key(key_id: str) -> str:
    """What is kept of an API key."""
    return f"{ACCESS}{_id(key_id)}.json"

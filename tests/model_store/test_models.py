"""Models over both backends: complete when visible, never twice, newest first."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from model_store import (
    AlreadyExists,
    Artifact,
    Corrupt,
    InvalidKey,
    Lineage,
    Measured,
    ModelCard,
    ModelPage,
    ModelRepository,
    NotFound,
    ObjectStore,
    StoreUnavailable,
    TensorInfo,
    keys,
    new_model_id,
    records,
)

WEIGHTS, ONNX = b"weights of a model", b"the same, runnable"
START = datetime(2026, 1, 1, tzinfo=UTC)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def card(model_id: str = "m-1", weights: bytes = WEIGHTS, onnx: bytes | None = ONNX, **changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "id": model_id,
        "target": "mlp-head",
        "classes": ("cat", "dog"),
        "origin": "diffusion",
        "seed": 7,
        "bundle": "starter-0123456789ab",
        "sha256": sha256(weights),
        "size": len(weights),
        "tensors": (TensorInfo(name="head.weight", dtype="F32", shape=(2, 64)),),
        "measured": Measured(holdout_accuracy=0.9, ranked_on="holdout", n_holdout=10, baselines={"retrieve": 0.8}),
        "lineage": Lineage(job_id="j-1", condition_sha256=sha256(b"images"), rank=0),
        "licence": "CC0-1.0",
        "created_at": START,
        "onnx": onnx and Artifact(sha256=sha256(onnx), size=len(onnx)),
    }
    return ModelCard(**{**fields, **changes})


@pytest.fixture
def models(store: ObjectStore) -> ModelRepository:
    return ModelRepository(store)


class Dying:
    """A store whose process dies at a chosen write: what a real one does, but at a moment that cannot be timed."""

    def __init__(self, store: ObjectStore, at: str) -> None:
        self._store, self._at = store, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: bytes, **options: Any) -> Any:
        if key == self._at:
            raise KeyboardInterrupt
        return self._store.put(key, body, **options)


def interrupted_save(store: ObjectStore, saved: ModelCard) -> None:
    with pytest.raises(KeyboardInterrupt):
        ModelRepository(Dying(store, keys.card(saved.id))).save(saved, WEIGHTS, ONNX)  # type: ignore[arg-type]


def test_a_saved_model_comes_back(models: ModelRepository) -> None:
    saved = models.save(card(), WEIGHTS, ONNX)

    assert models.card("m-1") == saved == card()
    assert models.exists("m-1")
    assert models.read(saved, "weights") == WEIGHTS
    assert models.read(saved, "onnx") == ONNX
    with models.open(saved, "weights", start=8, end=10) as pieces:
        assert b"".join(pieces) == b"of"
    assert models.list().models == (saved,)
    assert models.store.head(keys.weights("m-1")).sha256 == saved.sha256


def test_a_model_may_have_no_onnx(models: ModelRepository) -> None:
    saved = models.save(card(onnx=None), WEIGHTS)

    for ask in (models.read, models.open):
        with pytest.raises(NotFound):
            ask(saved, "onnx")
    with pytest.raises(NotFound):
        models.url(saved, "onnx", expires=60)


def test_urls_carry_a_file_name(models: ModelRepository) -> None:
    saved = models.save(card(), WEIGHTS, ONNX)
    url = models.url(saved, "weights", expires=60)

    assert (url is None) == (models.store.presign("a", expires=1) is None)
    if url is not None:
        assert "m-1.safetensors" in url


@pytest.mark.parametrize("model_id", ["m-2", "", "..", "../m-1", "m-1/card.json", "\0", "x" * 1000])
def test_unknown_and_impossible_ids_are_alike(models: ModelRepository, model_id: str) -> None:
    models.save(card(), WEIGHTS, ONNX)

    with pytest.raises(NotFound):
        models.card(model_id)
    assert not models.exists(model_id)
    models.delete(model_id)
    assert models.exists("m-1")


def test_the_card_must_describe_the_files(models: ModelRepository) -> None:
    for weights, onnx in ((b"other", ONNX), (WEIGHTS, b"other"), (WEIGHTS, None)):
        with pytest.raises(ValueError, match="does not describe"):
            models.save(card(), weights, onnx)
    with pytest.raises(ValueError, match="does not describe"):
        models.save(card(onnx=None), WEIGHTS, ONNX)
    assert models.store.list("") == []


def test_saving_again_changes_nothing(models: ModelRepository) -> None:
    first = models.save(card(), WEIGHTS, ONNX)
    objects = models.store.list("")

    again = models.save(card(created_at=START + timedelta(hours=1)), WEIGHTS, ONNX)

    assert again == first
    assert models.store.list("") == objects
    assert models.list().models == (first,)


def test_an_id_keeps_its_weights(models: ModelRepository) -> None:
    first = models.save(card(), WEIGHTS, ONNX)

    with pytest.raises(AlreadyExists):
        models.save(card(weights=b"other"), b"other", ONNX)

    assert models.read(models.card("m-1"), "weights") == WEIGHTS
    assert models.list().models == (first,)


def test_many_savers_make_one_model(models: ModelRepository) -> None:
    cards = [card(created_at=START + timedelta(seconds=number)) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda each: models.save(each, WEIGHTS, ONNX), cards))

    assert all(each == saved[0] for each in saved)
    assert models.list().models == (saved[0],)
    assert len(models.store.list("recent/")) == 2
    assert models.sweep(timedelta(0)) == ()


def test_a_crash_before_the_card_leaves_nothing_to_see(models: ModelRepository) -> None:
    interrupted_save(models.store, card())

    assert models.store.head(keys.weights("m-1")).size == len(WEIGHTS)
    assert not models.exists("m-1")
    assert models.list() == models.list(target="mlp-head") == ModelPage(models=(), next_cursor=None)

    # And the job's second run, later, mends it
    later = models.save(card(created_at=START + timedelta(minutes=5)), WEIGHTS, ONNX)
    assert models.list().models == (later,)
    assert models.list(target="mlp-head").models == (later,)
    assert len(models.sweep(timedelta(0))) == 2  # the first run's list entries
    assert models.list().models == (later,)


def test_newest_first_in_pages(models: ModelRepository) -> None:
    for number in range(5):
        body = str(number).encode()
        target = "cnn-s" if number % 2 else "mlp-head"
        made = card(new_model_id("j", number), body, None, target=target, created_at=START + timedelta(days=number))
        models.save(made, body)
    models.save(card("u-1", onnx=None, target=None, created_at=START + timedelta(days=9)), WEIGHTS)

    seen, cursor = [], None
    for expected in (2, 2, 2):
        page = models.list(after=cursor, limit=2)
        assert len(page.models) == expected
        seen += [model.created_at.day for model in page.models]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == [10, 5, 4, 3, 2, 1]
    assert [model.created_at.day for model in models.list(target="cnn-s").models] == [4, 2]
    page = models.list(target="mlp-head", limit=1)
    assert [model.created_at.day for model in page.models] == [5]
    page = models.list(target="mlp-head", limit=1, after=page.next_cursor)
    assert [model.created_at.day for model in page.models] == [3]
    assert models.list(target="no-such").models == models.list(target="../all").models == ()
    assert len(models.list(limit=6).models) == 6
    assert models.list(limit=6).next_cursor is None


def test_a_cursor_outlives_its_model(models: ModelRepository) -> None:
    for number in range(3):
        models.save(card(f"m-{number}", created_at=START - timedelta(days=number)), WEIGHTS, ONNX)
    cursor = models.list(limit=1).next_cursor

    models.delete("m-0")

    assert [model.id for model in models.list(after=cursor).models] == ["m-1", "m-2"]


@pytest.mark.parametrize("cursor", ["", "x", "../..", "\0", "9" * 15 + ".a/b"])
def test_made_up_cursors_are_refused(models: ModelRepository, cursor: str) -> None:
    with pytest.raises(InvalidKey):
        models.list(after=cursor)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_pages_have_limits(models: ModelRepository, limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        models.list(limit=limit)


def test_delete_takes_everything_and_may_be_repeated(models: ModelRepository) -> None:
    models.save(card(), WEIGHTS, ONNX)
    models.save(card("m-2"), WEIGHTS, ONNX)

    models.delete("m-1")
    models.delete("m-1")

    assert not models.exists("m-1")
    assert [model.id for model in models.list().models] == ["m-2"]
    models.delete("m-2")
    assert models.store.list("") == []


def test_delete_finishes_what_a_crash_began(models: ModelRepository) -> None:
    models.save(card(), WEIGHTS, ONNX)
    models.store.delete(keys.card("m-1"))  # a deletion stopped after its first step
    assert models.list().models == ()

    models.delete("m-1")

    assert models.store.list("models/") == []
    assert len(models.sweep(timedelta(0))) == 2
    assert models.store.list("") == []


def test_sweep_removes_old_orphans_only(models: ModelRepository) -> None:
    kept = models.save(card("m-kept"), WEIGHTS, ONNX)
    interrupted_save(models.store, card("m-orphan"))
    foreign = ["models/not an id/x", "models/stray", "models/m-orphan/notes.txt", "inputs/j-1/0"]
    for key in foreign:
        models.store.put(key, b"x", content_type="text/plain")

    assert models.sweep(timedelta(hours=1)) == ()
    removed = models.sweep(timedelta(0))

    assert sorted(key for key in removed if key.startswith("models/")) == [
        "models/m-orphan/model.onnx",
        "models/m-orphan/weights.safetensors",
    ]
    assert len(removed) == 4
    assert models.read(kept, "weights") == WEIGHTS
    assert models.list().models == (kept,)
    assert {entry.key for entry in models.store.list("")} > set(foreign)
    assert models.sweep(timedelta(0)) == ()


def test_one_unreadable_card_hides_no_other(models: ModelRepository, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("m-1", "m-2"):
        models.save(card(name), WEIGHTS, ONNX)
    models.store.put(keys.card("m-1"), b'{"id": "m-1"}', content_type="application/json")

    assert [model.id for model in models.list().models] == ["m-2"]
    assert "m-1" in caplog.text
    with pytest.raises(Corrupt):
        models.card("m-1")
    assert models.sweep(timedelta(0)) == ()
    models.delete("m-1")
    assert not models.exists("m-1")


def test_weights_of_another_card_are_not_given_out(models: ModelRepository) -> None:
    saved = models.save(card(), WEIGHTS, ONNX)
    models.store.put(keys.weights("m-1"), b"others", content_type="application/octet-stream")

    with pytest.raises(Corrupt):
        models.read(saved, "weights")


def test_a_store_that_fails_while_saving_says_so(models: ModelRepository) -> None:
    class Failing(Dying):
        def put(self, key: str, body: bytes, **options: Any) -> Any:
            if key == self._at:
                raise StoreUnavailable("full")
            return self._store.put(key, body, **options)

    failing = ModelRepository(Failing(models.store, keys.onnx("m-1")))  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        failing.save(card(), WEIGHTS, ONNX)
    assert not models.exists("m-1")


def test_cards_survive_json_and_are_strict() -> None:
    whole = card()

    assert ModelCard.model_validate_json(whole.model_dump_json()) == whole
    with pytest.raises(ValidationError):
        ModelCard.model_validate({**whole.model_dump(), "surprise": 1})
    with pytest.raises(ValidationError):
        whole.seed = 8
    for wrong in (
        {"id": "../x"},
        {"id": "m-1\n"},
        {"sha256": "A" * 64},
        {"size": -1},
        {"created_at": datetime(2026, 1, 1)},
        {"measured": {"holdout_accuracy": 1.1, "ranked_on": "holdout", "n_holdout": 1}},
    ):
        with pytest.raises(ValidationError):
            card(**wrong)


@pytest.mark.parametrize("ranked_on", ["holdout", "cross-validation", "conditioning"])
def test_cards_say_what_ranked_them(ranked_on: str) -> None:
    measured = {"holdout_accuracy": 0.9, "ranked_on": ranked_on, "n_holdout": 10}
    whole = card(measured=measured)
    assert whole.measured is not None
    assert whole.measured.ranked_on == ranked_on
    assert ModelCard.model_validate_json(whole.model_dump_json()) == whole
    with pytest.raises(ValidationError):
        card(measured={**measured, "ranked_on": "a hunch"})


def test_every_field_is_described() -> None:
    found = [each for each in vars(records).values() if isinstance(each, type) and issubclass(each, records.Record)]

    assert len(found) == 7
    for model in found:
        assert issubclass(model, BaseModel)
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_the_package_stays_light(tmp_path: Path) -> None:
    code = (
        "import sys, model_store; model_store.open_store(sys.argv[1]); "
        "print([name for name in ('torch', 'numpy', 'boto3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

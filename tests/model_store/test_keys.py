from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import InvalidKey, keys, new_model_id, new_upload_id
from model_store.store import validate_key

ids = st.from_regex(keys.ID_PATTERN, fullmatch=True)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))


def test_the_names() -> None:
    assert keys.weights("m-1") == "models/m-1/weights.safetensors"
    assert keys.onnx("m-1") == "models/m-1/model.onnx"
    assert keys.card("m-1") == "models/m-1/card.json"
    assert keys.job_input("j-1", "dataset.zip") == "inputs/j-1/dataset.zip"
    assert keys.job_input("j-1", "0").startswith(keys.job_inputs("j-1"))
    assert keys.job_record("j-1") == "jobs/j-1.json"


@given(st.text())
def test_whatever_an_id_is_the_key_is_valid_or_refused(value: str) -> None:
    for name in (keys.weights, keys.onnx, keys.card, keys.recent, keys.job_inputs, keys.job_record):
        try:
            key = name(value)
        except InvalidKey:
            assert not keys.is_id(value)
        else:
            assert keys.is_id(value)
            assert validate_key(key.removesuffix("/"))


@pytest.mark.parametrize("value", ["", ".", "..", "a/b", "../a", "-a", "a\n", "a b", "ä", "x" * 65, "a\0"])
def test_these_are_no_ids(value: str) -> None:
    with pytest.raises(InvalidKey):
        keys.weights(value)
    with pytest.raises(InvalidKey):
        keys.job_input("j", value)


@given(ids)
def test_keys_tell_their_model(model_id: str) -> None:
    entry = keys.recent_entry(datetime.now(UTC), model_id)

    assert {keys.model_of(name(model_id)) for name in (keys.weights, keys.onnx, keys.card)} == {model_id}
    assert keys.model_of(keys.recent() + entry) == keys.model_of(keys.recent("mlp.v2") + entry) == model_id
    assert keys.cursor(entry) == entry


@given(moments, moments, ids, ids)
def test_the_younger_comes_first(one: datetime, two: datetime, a: str, b: str) -> None:
    if abs(one - two) >= timedelta(milliseconds=1):
        assert (one > two) == (keys.recent_entry(one, a) < keys.recent_entry(two, b))


def test_time_zones_do_not_matter() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    elsewhere = moment.astimezone(timezone(timedelta(hours=5)))

    assert keys.recent_entry(moment, "m") == keys.recent_entry(elsewhere, "m")


@pytest.mark.parametrize("value", ["", "x", "1.m", "999999999999999.", "999999999999999./", "٩" * 15 + ".m", "1" * 16])
def test_these_are_no_cursors(value: str) -> None:
    with pytest.raises(InvalidKey):
        keys.cursor(value)


@given(st.text(), st.integers(0, 1000), st.text(), st.integers(0, 1000))
def test_made_ids_are_ids_and_tell_jobs_apart(job: str, rank: int, other: str, other_rank: int) -> None:
    made = new_model_id(job, rank)

    assert keys.is_id(made)
    assert made == new_model_id(job, rank)
    assert (made == new_model_id(other, other_rank)) == ((job, rank) == (other, other_rank))


def test_uploads_belong_to_their_owner() -> None:
    sha256 = "0" * 64

    assert new_upload_id(sha256, "ann") == new_upload_id(sha256, "ann")
    assert len({new_upload_id(sha256, "ann"), new_upload_id(sha256, "bob"), new_upload_id("1" * 64, "ann")}) == 3
    assert keys.is_id(new_upload_id(sha256, "an owner / of any name"))

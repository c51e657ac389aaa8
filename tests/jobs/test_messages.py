from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loomweight import generator
from loomweight.generator import METHODS, GenerateOptions
from model_store import records
from workers.messages import GenerateRequest, pack_samples, unpack_samples


@given(st.lists(st.tuples(st.binary(max_size=200), st.text(max_size=20))))
def test_samples_come_back_as_they_were(samples: list[tuple[bytes, str]]) -> None:
    images, labels = [image for image, _ in samples], [label for _, label in samples]
    assert unpack_samples(pack_samples(images, labels)) == (images, labels)


def test_a_container_that_ends_early_is_refused() -> None:
    packed = pack_samples([b"abc"], ["a"])
    with pytest.raises(ValueError, match="the object has"):
        unpack_samples(packed[:-1])


def test_each_image_needs_a_label() -> None:
    with pytest.raises(ValueError):
        pack_samples([b"a", b"b"], ["a"])


@pytest.mark.parametrize(
    "options",
    [
        {"candidates": 0},
        {"candidates": 65},
        {"candidates": 2, "keep": 3},
        {"holdout": 0.95},
        {"guidance": float("nan")},
        {"seed": -1},
        {"seed": 2**53},
        {"method": "magic"},
        {"unheard_of": 1},
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GenerateRequest.model_validate(options)


def test_options_are_those_of_the_generator() -> None:
    assert get_args(GenerateRequest.model_fields["method"].annotation) == METHODS
    assert get_args(records.RankedOn) == get_args(generator.RankedOn)
    # What nobody says is the same on both sides
    request = GenerateRequest().model_dump(exclude={"target", "seed", "callback_url"})
    options = GenerateOptions("cnn-s", seed=1)
    assert request == {name: getattr(options, name) for name in request}
    assert (request["method"], request["holdout"]) == ("conditional-mean", None)


def test_a_share_that_is_named_is_held_out() -> None:
    assert GenerateRequest.model_validate({"holdout": 0}).holdout == 0
    assert GenerateRequest.model_validate({"holdout": 0.2}).holdout == 0.2
    assert GenerateRequest.model_validate({"holdout": None}).holdout is None

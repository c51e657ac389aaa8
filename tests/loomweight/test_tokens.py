import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loomweight.architectures import CNN_L, CNN_S, ArchitectureSpec
from loomweight.errors import InvalidCheckpoint
from loomweight.tokens import from_tokens, to_tokens
from tests.loomweight.made import HEAD, SPECS, weights


@settings(max_examples=40, deadline=None)
@given(spec=st.sampled_from(SPECS), classes=st.integers(2, 20), size=st.integers(1, 320), seed=st.integers(0, 2**16))
def test_tokens_are_an_exact_inverse(spec: ArchitectureSpec, classes: int, size: int, seed: int) -> None:
    given_weights = weights(spec, classes, seed)
    sequence = to_tokens(spec, given_weights, size)
    back = from_tokens(spec, sequence.tokens, classes)
    assert list(back) == list(spec.shapes(classes))
    assert all(torch.equal(back[name], given_weights[name]) for name in given_weights)


@settings(max_examples=40, deadline=None)
@given(spec=st.sampled_from(SPECS), classes=st.integers(2, 20), size=st.integers(1, 320))
def test_mask_marks_every_value_once_and_the_rest_is_zero(spec: ArchitectureSpec, classes: int, size: int) -> None:
    sequence = to_tokens(spec, weights(spec, classes), size)
    assert sequence.tokens.shape == sequence.mask.shape == (len(sequence.positions), size)
    assert int(sequence.mask.sum()) == spec.parameters(classes)
    assert not sequence.tokens[~sequence.mask].any()
    # Real values come first in a row's pieces: no gap within a token.
    assert torch.equal(sequence.mask.int(), sequence.mask.int().sort(1, descending=True).values)


@settings(max_examples=20, deadline=None)
@given(spec=st.sampled_from(SPECS), classes=st.integers(2, 20), size=st.sampled_from([16, 201, 289]))
def test_positions_count_tokens_layers_and_rows(spec: ArchitectureSpec, classes: int, size: int) -> None:
    sequence = to_tokens(spec, weights(spec, classes), size)
    expected = [
        (index, row)
        for index, layer in enumerate(spec.layers(classes))
        for row in range(layer.outputs)
        for _ in range(-(-(layer.fan_in + 1) // size))
    ]
    assert sequence.positions[:, 0].tolist() == list(range(len(expected)))
    assert [tuple(p) for p in sequence.positions[:, 1:].tolist()] == expected


@pytest.mark.parametrize(("spec", "size", "count"), [(CNN_S, 201, 48), (CNN_L, 289, 93)])
def test_token_counts_are_the_published_ones(spec: ArchitectureSpec, size: int, count: int) -> None:
    assert len(to_tokens(spec, weights(spec, 10), size).tokens) == count


def test_tokens_of_another_class_count_are_refused() -> None:
    tokens = to_tokens(HEAD, weights(HEAD, 5), 289).tokens
    with pytest.raises(InvalidCheckpoint, match="head with 6 classes has 6 tokens of 289, not 5"):
        from_tokens(HEAD, tokens, 6)


def test_a_checkpoint_that_does_not_fit_is_not_cut() -> None:
    with pytest.raises(InvalidCheckpoint):
        to_tokens(CNN_S, weights(CNN_L, 10), 289)

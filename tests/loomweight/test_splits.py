import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loomweight.bundle import TargetInfo
from loomweight.splits import MAX_CONDITIONING, split_samples

INFO = TargetInfo("cnn-s", "", 0, (3, 32, 32), (), 2, 20, {}, "")


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=80).filter(lambda x: len(set(x)) > 1),
    holdout=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_a_split_never_judges_by_what_it_conditions_on(labels: list[str], holdout: float, seed: int) -> None:
    split = split_samples(labels, holdout, seed, INFO)
    assert split.classes == tuple(sorted(set(labels)))
    for name, conditioning, held in zip(split.classes, split.conditioning, split.holdout, strict=True):
        assert len(conditioning) >= 1
        assert not set(conditioning) & set(held)
        assert {labels[i] for i in (*conditioning, *held)} == {name}
        assert len(conditioning) + len(held) == labels.count(name)
    again = split_samples(labels, holdout, seed, INFO)
    assert all(np.array_equal(a, b) for a, b in zip(split.holdout, again.holdout, strict=True))


def test_what_is_too_much_to_condition_on_ranks() -> None:
    split = split_samples(["a", "b"] * 1000, 0.1, 5, INFO)
    assert [len(c) for c in split.conditioning] == [MAX_CONDITIONING // 2] * 2
    assert [len(h) for h in split.holdout] == [1000 - MAX_CONDITIONING // 2] * 2
    # with nothing to be held out it is left aside
    assert not any(len(h) for h in split_samples(["a", "b"] * 1000, 0.0, 5, INFO).holdout)


def test_names_that_differ_only_in_odd_characters_are_two_classes() -> None:
    split = split_samples(["a", "a\0", "a", "a "], 0.0, 5, INFO)
    assert split.classes == ("a", "a\0", "a ")
    assert [len(c) for c in split.conditioning] == [2, 1, 1]

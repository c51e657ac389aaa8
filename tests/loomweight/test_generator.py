from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loomweight import architectures
from loomweight.bundle import TargetInfo
from loomweight.candidates import SCALES, Candidate
from loomweight.checkpoints import to_safetensors
from loomweight.errors import Canceled, InvalidRequest
from loomweight.generator import MAX_CONDITIONING, GenerateOptions, GenerationResult, Generator, split_samples
from tests.loomweight.pictures import Images, counted, letters

TARGETS = ["cnn-s", "head"]
CNN = GenerateOptions("cnn-s", seed=5, candidates=3)


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator.load(tiny_bundle, backend="torch", threads=1)


def written(result: GenerationResult) -> list[bytes]:
    return [to_safetensors(m.tensors, {"origin": m.origin, "classes": list(m.classes)}) for m in result.models]


def by_origin(networks: list[Candidate], origin: str) -> list[Candidate]:
    return [n for n in networks if n.origin == origin]


@pytest.mark.parametrize("target", TARGETS)
def test_a_request_is_answered(generator: Generator, target: str) -> None:
    told: list[str] = []
    options = GenerateOptions(target, seed=5, candidates=3, keep=2)
    result = generator.generate(*letters("CAB", 10), options, progress=lambda stage, *_: told.append(stage))
    assert result.classes == ("A", "B", "C")
    assert (result.seed, result.method, result.bundle) == (5, "diffusion", generator.bundle.id)
    assert result.ranked_on == "holdout"
    assert set(result.baselines) == {"closed_form", "nearest_class_mean"}
    assert set(result.timings_ms) == {"encode", "sample", "decode_weights", "rank"}
    assert 0 <= float(result.novelty["score"] or 0) <= 1
    assert [m.rank for m in result.models] == [0, 1]
    assert list(dict.fromkeys(told)) == ["encode", "sample", "decode_weights", "rank"]
    spec = architectures.get(target, encoder_dim=64)
    for model in result.models:
        tensors = {k: torch.from_numpy(v) for k, v in model.tensors.items()}
        assert spec.classes(tensors) == 3
        assert all(np.isfinite(v).all() for v in model.tensors.values())


def test_the_reported_accuracy_is_that_of_the_tensors_on_the_held_out_images(generator: Generator) -> None:
    images, labels = letters("ABC", 15)
    result = generator.generate(images, labels, CNN)
    model = result.models[0]
    held = np.concatenate(split_samples(labels, CNN, generator.targets()[0]).holdout)
    assert len(held) == 9
    spec = architectures.CNN_S
    tensors = {k: torch.from_numpy(v) for k, v in model.tensors.items()}
    logits = spec.forward(tensors, spec.adapt(torch.from_numpy(images[held])))
    correct = [model.classes[i] == labels[j] for i, j in zip(logits.argmax(-1).tolist(), held, strict=True)]
    assert model.holdout_accuracy == pytest.approx(np.mean(correct))


@pytest.mark.parametrize(
    ("target", "method"),
    [("cnn-s", "diffusion"), ("cnn-s", "kde"), ("cnn-s", "retrieve"), ("head", "diffusion"), ("head", "retrieve")],
)
def test_same_seed_same_bytes_and_another_seed_others(generator: Generator, target: str, method: str) -> None:
    sent = letters("ABC", 8)

    def answer(seed: int) -> list[bytes]:
        options = GenerateOptions(target, seed=seed, method=method, candidates=3, keep=8, holdout=0.0)
        return written(generator.generate(*sent, options))

    assert answer(1) == answer(1)
    if method == "retrieve":
        assert answer(1) == answer(2)  # nothing is drawn where nothing is held out
    else:
        assert answer(1) != answer(2)


@pytest.mark.parametrize("method", ["diffusion", "kde"])
def test_more_candidates_keep_the_first_ones(generator: Generator, method: str) -> None:
    sent, options = letters("ABC", 8), replace(CNN, method=method)
    few = by_origin(generator.weave(*sent, replace(options, candidates=2)).networks, method)
    many = by_origin(generator.weave(*sent, replace(options, candidates=5)).networks, method)
    assert (len(few), len(many)) == (2, 5)
    for a, b in zip(few, many, strict=False):
        torch.testing.assert_close(a.trunk, b.trunk, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.rows, b.rows, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(many[0].trunk, many[1].trunk)


def test_the_closed_form_is_always_among_the_candidates(generator: Generator) -> None:
    woven = generator.weave(*letters("ABC", 8), CNN)
    assert [n.origin for n in woven.networks] == [
        *(s.origin for s in SCALES),
        *(["diffusion"] * 3),
    ]
    closed = woven.networks[len(SCALES) - 1]
    assert closed.origin == "closed-form"
    assert torch.equal(closed.trunk, woven.loom.vae.shared)


def test_kept_models_are_ranked_by_held_out_likelihood(generator: Generator) -> None:
    # Given a method whose candidates only the held-out samples judge
    images, labels = letters("ABC", 12)
    options = replace(CNN, method="kde", candidates=5, keep=99)
    result = generator.generate(images, labels, options)
    assert [m.rank for m in result.models] == list(range(5))  # all there are
    held = split_samples(labels, options, generator.targets()[0]).holdout
    truth = torch.arange(3).repeat_interleave(len(held[0]))
    spec, losses = architectures.CNN_S, []
    x = spec.adapt(torch.from_numpy(images[np.concatenate(held)]))
    for model in result.models:
        logits = spec.forward({k: torch.from_numpy(v) for k, v in model.tensors.items()}, x)
        losses.append(torch.nn.functional.cross_entropy(logits, truth).item())
    assert losses == pytest.approx(sorted(losses), abs=1e-5)
    assert losses[0] < losses[-1]


def test_without_held_out_samples_nothing_is_claimed(generator: Generator) -> None:
    result = generator.generate(*letters("ABC", 1), replace(CNN, keep=9))
    assert result.ranked_on == "conditioning"
    assert result.baselines == {}
    assert {m.holdout_accuracy for m in result.models} == {None}
    assert result.models[0].origin == "mean"


@pytest.mark.parametrize("steps", [1, 4])
def test_cancel_stops_between_two_steps(generator: Generator, steps: int) -> None:
    told: list[tuple[str, int]] = []
    options = replace(CNN, steps=8)
    with pytest.raises(Canceled):
        generator.generate(
            *letters("AB", 4),
            options,
            progress=lambda stage, step, _: told.append((stage, step)),
            canceled=lambda: ("sample", steps) in told,
        )
    assert told[-1] == ("sample", steps)  # the step that ran is the last one
    # and the generator still works
    assert generator.generate(*letters("AB", 4), options).models


@pytest.mark.parametrize(
    ("characters", "options", "message"),
    [
        ("AB", replace(CNN, target="resnet"), r"unknown target 'resnet'; this bundle has \['cnn-s', 'head'\]"),
        ("AB", replace(CNN, method="gan"), r"unknown method 'gan'; there are \['diffusion', 'kde', 'retrieve'\]"),
        ("AB", replace(CNN, target="head", method="kde"), "kde samples hidden layers and head has none"),
        ("A", CNN, "cnn-s takes 2 to 6 classes; these samples have 1"),
        ("ABCDEFG", CNN, "cnn-s takes 2 to 6 classes; these samples have 7"),
        ("ABCDEF", replace(CNN, method="retrieve"), "no stored cnn-s has 6 classes; use diffusion"),
    ],
)
def test_what_the_caller_can_mend_is_said(
    generator: Generator, characters: str, options: GenerateOptions, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        generator.generate(*letters(characters, 3), options)


@pytest.mark.parametrize("target", TARGETS)
def test_unbalanced_classes_are_served(generator: Generator, target: str) -> None:
    sent = counted({"A": 1, "B": 3, "C": 15})
    result = generator.generate(*sent, GenerateOptions(target, seed=1, candidates=2))
    assert result.classes == ("A", "B", "C")
    assert result.ranked_on == "holdout"  # of C alone
    assert all(np.isfinite(v).all() for v in result.models[0].tensors.values())


def loss_on(generator: Generator, sent: tuple[Images, list[str]], options: GenerateOptions, origin: str) -> float:
    result = generator.generate(*sent, replace(options, keep=99, holdout=0.0))
    model = next(m for m in result.models if m.origin == origin)
    spec = architectures.CNN_S
    logits = spec.forward(
        {k: torch.from_numpy(v) for k, v in model.tensors.items()}, spec.adapt(torch.from_numpy(sent[0]))
    )
    truth = torch.tensor([result.classes.index(label) for label in sent[1]])
    return torch.nn.functional.cross_entropy(logits, truth).item()


def test_refinement_fits_the_samples_better(generator: Generator) -> None:
    sent = letters("ABC", 6)
    before = loss_on(generator, sent, CNN, "mean")
    assert loss_on(generator, sent, replace(CNN, refine_steps=10), "mean-refined") < before


def test_refinement_can_be_canceled_and_repeats(generator: Generator) -> None:
    sent, options = letters("AB", 5), replace(CNN, refine_steps=3)
    assert written(generator.generate(*sent, options)) == written(generator.generate(*sent, options))
    told: list[str] = []
    with pytest.raises(Canceled):
        generator.generate(
            *sent, options, progress=lambda stage, *_: told.append(stage), canceled=lambda: "refine" in told
        )


def test_a_refined_head_is_a_head(generator: Generator) -> None:
    result = generator.generate(*letters("AB", 5), GenerateOptions("head", seed=1, candidates=2, refine_steps=2))
    assert {k: v.shape for k, v in result.models[0].tensors.items()} == {"head.weight": (2, 64), "head.bias": (2,)}


@pytest.mark.parametrize("target", TARGETS)
def test_order_of_samples_does_not_matter(generator: Generator, target: str) -> None:
    # Given the same samples in another order, with nothing held out
    images, labels = letters("ABC", 6)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = images[order], [labels[i] for i in order]
    options = GenerateOptions(target, seed=5, candidates=2, holdout=0.0)
    one, other = generator.weave(images, labels, options), generator.weave(*shuffled, options)
    # Then classes stand in the same order and the networks are the same but for rounding
    assert one.split.classes == other.split.classes == ("A", "B", "C")
    for a, b in zip(one.networks, other.networks, strict=True):
        torch.testing.assert_close(a.trunk, b.trunk, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(a.rows, b.rows, atol=1e-2, rtol=1e-2)


def test_rows_follow_the_names(generator: Generator) -> None:
    # Given the same samples under names that sort the other way round
    images, labels = letters("ABC", 6)
    renamed = [{"A": "z", "B": "y", "C": "x"}[label] for label in labels]
    options = replace(CNN, holdout=0.0)
    woven = [generator.weave(images, names, options).networks for names in (labels, renamed)]
    # Then the closed form's rows stand the other way round too
    one, other = (next(n for n in networks if n.origin == "closed-form") for networks in woven)
    torch.testing.assert_close(other.rows, one.rows.flip(0), atol=1e-3, rtol=1e-3)


INFO = TargetInfo("cnn-s", "", 0, (3, 32, 32), (), 2, 20, {}, "")


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=80).filter(lambda x: len(set(x)) > 1),
    holdout=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_a_split_never_judges_by_what_it_conditions_on(labels: list[str], holdout: float, seed: int) -> None:
    options = GenerateOptions("cnn-s", seed=seed, holdout=holdout)
    split = split_samples(labels, options, INFO)
    assert split.classes == tuple(sorted(set(labels)))
    for name, conditioning, held in zip(split.classes, split.conditioning, split.holdout, strict=True):
        assert len(conditioning) >= 1
        assert not set(conditioning) & set(held)
        assert {labels[i] for i in (*conditioning, *held)} == {name}
        assert len(conditioning) + len(held) == labels.count(name)
    again = split_samples(labels, options, INFO)
    assert all(np.array_equal(a, b) for a, b in zip(split.holdout, again.holdout, strict=True))


def test_what_is_too_much_to_condition_on_ranks() -> None:
    split = split_samples(["a", "b"] * 1000, replace(CNN, holdout=0.1), INFO)
    assert [len(c) for c in split.conditioning] == [MAX_CONDITIONING // 2] * 2
    assert [len(h) for h in split.holdout] == [1000 - MAX_CONDITIONING // 2] * 2
    # with nothing to be held out it is left aside
    assert not any(len(h) for h in split_samples(["a", "b"] * 1000, replace(CNN, holdout=0.0), INFO).holdout)


def test_names_that_differ_only_in_odd_characters_are_two_classes() -> None:
    split = split_samples(["a", "a\0", "a", "a "], replace(CNN, holdout=0.0), INFO)
    assert split.classes == ("a", "a\0", "a ")
    assert [len(c) for c in split.conditioning] == [2, 1, 1]

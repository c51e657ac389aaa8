from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loomweight import architectures, candidates
from loomweight.candidates import BLEND, MEAN, SCALES, Candidate, kinds
from loomweight.checkpoints import to_safetensors
from loomweight.denoiser import Condition
from loomweight.errors import Canceled, InvalidRequest
from loomweight.generator import HOLDOUT, GeneratedModel, GenerateOptions, GenerationResult, Generator
from loomweight.loom import LOOKED_AT
from loomweight.ranking import calibrated_loss
from loomweight.splits import MAX_CONDITIONING, split_samples
from loomweight.weight_vae import join
from tests.loomweight.pictures import Images, counted, letters

TARGETS = ["cnn-s", "head"]
CNN = GenerateOptions("cnn-s", seed=5, candidates=3)
SAMPLED = replace(CNN, method="diffusion")


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator.load(tiny_bundle, backend="torch", threads=1)


def written(result: GenerationResult) -> list[bytes]:
    return [to_safetensors(m.tensors, {"origin": m.origin, "classes": list(m.classes)}) for m in result.models]


def by_origin(networks: list[Candidate], origin: str) -> list[Candidate]:
    return [n for n in networks if n.origin == origin]


def answers(model: GeneratedModel, images: Images) -> torch.Tensor:
    """Logits of a `cnn-s` on images as users send them."""
    spec = architectures.CNN_S
    tensors = {k: torch.from_numpy(v) for k, v in model.tensors.items()}
    return spec.forward(tensors, spec.adapt(torch.from_numpy(images)))


@contextmanager
def watched(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """What the encoder is given."""
    given: list[torch.Tensor] = []
    encode = generator.runtime.encode
    with monkeypatch.context() as patch:

        def watching(images: torch.Tensor) -> torch.Tensor:
            given.append(images)
            return encode(images)

        patch.setattr(generator.runtime, "encode", watching)
        yield given


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", [MEAN, "diffusion"])
def test_a_request_is_answered(generator: Generator, target: str, method: str) -> None:
    told: list[str] = []
    options = GenerateOptions(target, seed=5, method=method, candidates=3, keep=2)
    result = generator.generate(*letters("CAB", 10), options, progress=lambda stage, *_: told.append(stage))
    assert result.classes == ("A", "B", "C")
    assert (result.seed, result.method, result.bundle) == (5, method, generator.bundle.id)
    assert (result.ranked_on, result.n_holdout) == ("cross-validation", 30)
    assert set(result.baselines) == {"closed_form", "nearest_class_mean"}
    assert set(result.timings_ms) == {"encode", "sample", "decode_weights", "rank"}
    assert 0 <= float(result.novelty["score"] or 0) <= 1
    assert [m.rank for m in result.models] == [0, 1]
    assert list(dict.fromkeys(told)) == ["encode", "sample", "rank", "decode_weights"]
    spec = architectures.get(target, encoder_dim=64)
    for model in result.models:
        assert 0 <= (model.holdout_accuracy or 0) <= 1
        tensors = {k: torch.from_numpy(v) for k, v in model.tensors.items()}
        assert spec.classes(tensors) == 3
        assert all(np.isfinite(v).all() for v in model.tensors.values())


def test_the_conditional_mean_is_the_default() -> None:
    assert GenerateOptions("cnn-s", seed=1).method == MEAN
    assert GenerateOptions("cnn-s", seed=1).holdout is None


@pytest.mark.parametrize("target", TARGETS)
def test_networks_are_made_from_all_samples(generator: Generator, target: str) -> None:
    # Given a request whose ranking is by cross-validation
    sent, options = letters("ABC", 12), GenerateOptions(target, seed=5, candidates=3, keep=9)
    result = generator.generate(*sent, options)
    assert result.ranked_on == "cross-validation"
    # When its kinds are woven alone, from all that was sent, with no fold beside them
    w = generator.weave(*sent, replace(options, holdout=0.0))
    assert int(w.support.mask.sum()) == 36
    assert not any(len(h) for h in w.split.holdout)

    def denoise(z: torch.Tensor, t: torch.Tensor, c: Condition, keep: torch.Tensor) -> torch.Tensor:
        return generator.runtime.denoise(target, z, t, c.classwise, c.overall, keep)

    found = kinds(w.loom, MEAN, 3, "mean")
    sampling = candidates.Sampling(1, generator.bundle.manifest["defaults"]["guidance"], 1.0, 3, 5)
    with torch.inference_mode():
        latents = candidates.weave(w.loom, denoise, w.loom.condition(w.support), found, sampling, lambda i, n: None)[0]
        pending = [candidates.pending(z, k) for z, k in zip(latents, found, strict=True)]
        expected = {c.origin: candidates.decode(w.loom, c, w.support) for c in pending}
        expected[BLEND] = candidates.decode(w.loom, w.candidates[0], w.support)
    # Then those are the networks that were returned, and what is blended of them
    assert {m.origin for m in result.models} == set(expected)
    for weight, member in w.candidates[0].members:
        assert weight > 0
        torch.testing.assert_close(member.latents, latents[[k.origin for k in found].index(member.origin)])
    for model in result.models:
        whole = join(w.loom.spec, expected[model.origin].trunk, expected[model.origin].rows)
        for name, array in model.tensors.items():
            torch.testing.assert_close(torch.from_numpy(array), whole[name], atol=1e-4, rtol=1e-4)


def test_the_reported_accuracy_is_the_cross_validated_one(generator: Generator) -> None:
    sent = letters("ABC", 9)
    options = replace(SAMPLED, keep=99)
    w = generator.weave(*sent, options)
    evidence = w.cross_validated
    assert evidence is not None
    result = generator.generate(*sent, options)
    order = generator.rank(w).order
    assert [m.origin for m in result.models] == [w.candidates[i].origin for i in order]
    assert [m.holdout_accuracy for m in result.models] == [evidence.accuracy[i] for i in order]
    assert (result.n_holdout, result.baselines) == (27, evidence.baselines)


def test_ranking_by_cross_validation_makes_no_networks_but_those_asked_for(generator: Generator) -> None:
    w = generator.weave(*letters("ABC", 6), SAMPLED)
    generator.rank(w)
    assert not any(c.rows.numel() for c in w.candidates)
    assert w.network(2) is w.network(2)
    assert [c.rows.numel() > 0 for c in w.candidates].count(True) == 1


@pytest.mark.parametrize("method", [MEAN, "diffusion", "kde", "retrieve"])
def test_the_reported_accuracy_is_that_of_the_tensors_on_the_held_out_images(generator: Generator, method: str) -> None:
    images, labels = letters("ABC", 15)
    result = generator.generate(images, labels, replace(CNN, method=method, holdout=0.2))
    model = result.models[0]
    held = np.concatenate(split_samples(labels, 0.2, CNN.seed, generator.targets()[0]).holdout)
    assert (result.ranked_on, result.n_holdout, len(held)) == ("holdout", 9, 9)
    logits = answers(model, images[held])
    correct = [model.classes[i] == labels[j] for i, j in zip(logits.argmax(-1).tolist(), held, strict=True)]
    assert model.holdout_accuracy == pytest.approx(np.mean(correct))


@pytest.mark.parametrize(
    "options", [replace(CNN, method="kde"), replace(CNN, method="retrieve"), replace(CNN, refine_steps=2)]
)
def test_what_cannot_be_cross_validated_holds_out_a_share(generator: Generator, options: GenerateOptions) -> None:
    result = generator.generate(*letters("ABC", 10), options)
    assert (result.ranked_on, result.n_holdout) == ("holdout", 3 * int(10 * HOLDOUT))
    assert set(result.baselines) == {"closed_form", "nearest_class_mean"}


def test_the_encoder_looks_at_few_images_of_a_class(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given more images of a class than it looks at, and fewer of another
    images, labels = counted({"A": 20, "B": 11, "C": 3})
    with watched(generator, monkeypatch) as given:
        w = generator.weave(images, labels, CNN)
    # Then it is given the first of each class, in the split's order, and no others
    looked_at = np.concatenate([c[:LOOKED_AT] for c in w.split.conditioning])
    assert [len(x) for x in given] == [LOOKED_AT + LOOKED_AT + 3]
    assert torch.equal(given[0], torch.from_numpy(images[looked_at]))
    assert sorted(w.features.any(1).nonzero().squeeze(1).tolist()) == sorted(looked_at)
    # and the trunk reads all
    assert w.support.mask.sum(-1).tolist() == [[20, 11, 3]]
    # What is held out is looked at too, since a baseline answers it
    with watched(generator, monkeypatch) as given:
        generator.weave(images, labels, replace(CNN, holdout=0.5))
    assert [len(x) for x in given] == [LOOKED_AT + LOOKED_AT + 2 + 10 + 5 + 1]


def test_a_head_is_made_of_every_image_that_conditions(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = letters("AB", 20)
    with watched(generator, monkeypatch) as given:
        generator.weave(images, labels, GenerateOptions("head", seed=1))
        # and of those alone: what is too much to condition on is not looked at for nothing
        many = np.tile(images, (11, 1, 1, 1)), labels * 11
        generator.weave(*many, GenerateOptions("head", seed=1))
    assert [len(x) for x in given] == [40, MAX_CONDITIONING]


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("cnn-s", MEAN),
        ("cnn-s", "diffusion"),
        ("cnn-s", "kde"),
        ("cnn-s", "retrieve"),
        ("head", MEAN),
        ("head", "diffusion"),
        ("head", "retrieve"),
    ],
)
def test_same_seed_same_bytes_and_another_seed_others(generator: Generator, target: str, method: str) -> None:
    sent = letters("ABC", 8)

    def answer(seed: int) -> list[bytes]:
        options = GenerateOptions(target, seed=seed, method=method, candidates=3, keep=8, holdout=0.0)
        return written(generator.generate(*sent, options))

    assert answer(1) == answer(1)
    if method in ("diffusion", "kde"):  # the others draw nothing but the order of the samples
        assert answer(1) != answer(2)


def test_the_conditional_mean_hardly_knows_the_seed(generator: Generator) -> None:
    sent = letters("ABC", LOOKED_AT)
    one, other = (generator.weave(*sent, replace(CNN, seed=seed)).networks() for seed in (1, 2))
    assert one[0].origin == BLEND  # its shares follow the folds, and those the seed
    for a, b in zip(one[1:], other[1:], strict=True):
        torch.testing.assert_close(a.trunk, b.trunk, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(a.rows, b.rows, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("method", ["diffusion", "kde"])
def test_more_candidates_keep_the_first_ones(generator: Generator, method: str) -> None:
    sent, options = letters("ABC", 8), replace(CNN, method=method)
    few = by_origin(generator.weave(*sent, replace(options, candidates=2)).networks(), method)
    many = by_origin(generator.weave(*sent, replace(options, candidates=5)).networks(), method)
    assert (len(few), len(many)) == (2, 5)
    for a, b in zip(few, many, strict=False):  # the first ones of many
        torch.testing.assert_close(a.trunk, b.trunk, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.rows, b.rows, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(many[0].trunk, many[1].trunk)


@pytest.mark.parametrize(("candidates", "keep", "models"), [(1, 1, 1), (1, 9, 3), (3, 2, 2), (8, 8, 1 + len(SCALES))])
def test_as_many_models_are_kept_as_there_are(generator: Generator, candidates: int, keep: int, models: int) -> None:
    result = generator.generate(*letters("AB", 4), replace(CNN, candidates=candidates, keep=keep))
    assert [m.rank for m in result.models] == list(range(models))
    assert len({m.origin for m in result.models}) == models


def test_the_closed_form_is_always_among_the_candidates(generator: Generator) -> None:
    networks = generator.weave(*letters("ABC", 8), SAMPLED).networks()
    assert [n.origin for n in networks] == [BLEND, *(s.origin for s in SCALES), *(["diffusion"] * 3)]
    closed = networks[len(SCALES)]
    assert closed.origin == "closed-form"
    assert torch.equal(closed.trunk, generator.looms["cnn-s"].vae.shared)


def test_kept_models_are_ranked_by_held_out_likelihood(generator: Generator) -> None:
    # Given a method whose candidates only the held-out samples judge
    images, labels = letters("ABC", 12)
    options = replace(CNN, method="kde", candidates=5, keep=99)
    result = generator.generate(images, labels, options)
    assert [m.rank for m in result.models] == list(range(5))  # all there are
    held = split_samples(labels, HOLDOUT, options.seed, generator.targets()[0]).holdout
    truth = torch.arange(3).repeat_interleave(len(held[0]))
    losses = [calibrated_loss(answers(m, images[np.concatenate(held)]), truth) for m in result.models]
    assert losses == pytest.approx(sorted(losses), abs=1e-5)
    assert losses[0] < losses[-1]


def test_both_kinds_of_evidence_rank_where_a_share_is_held_out(generator: Generator) -> None:
    w = generator.weave(*letters("ABC", 10), replace(SAMPLED, holdout=0.2))
    ranking = generator.rank(w)
    held_out, folds = ranking.evidence, w.cross_validated
    assert held_out is not None
    assert folds is not None
    assert (held_out.images, folds.images) == (6, 24)
    both = [6 * a + 24 * b for a, b in zip(held_out.loss, folds.loss, strict=True)]
    assert ranking.order[1:] == sorted(ranking.order[1:], key=lambda i: both[i])
    assert ranking.order[0] == 0 or both[ranking.order[0]] == min(both)  # the blend leads but for proof
    assert ranking.accuracy(0) == held_out.accuracy[0]


@pytest.mark.parametrize("method", [MEAN, "diffusion"])
@pytest.mark.parametrize("prior", ["mean", "mean-half", "closed-form"])
def test_one_image_a_class_leaves_the_bundle_s_prior_first_and_claims_nothing(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, method: str, prior: str
) -> None:
    defaults = generator.bundle.manifest["defaults"]
    for target in TARGETS:
        monkeypatch.setitem(defaults, "prior", dict.fromkeys(TARGETS, prior))
        options = GenerateOptions(target, seed=1, method=method, candidates=2, keep=9)
        result = generator.generate(*letters("ABC", 1), options)
        assert (result.ranked_on, result.n_holdout, result.baselines) == ("conditioning", 0, {})
        assert {m.holdout_accuracy for m in result.models} == {None}
        assert result.models[0].origin == prior


@pytest.mark.parametrize("method", ["kde", "retrieve"])
def test_zoo_models_are_ranked_on_what_conditions_where_nothing_is_held_out(generator: Generator, method: str) -> None:
    images, labels = letters("ABC", 6)
    result = generator.generate(images, labels, replace(CNN, method=method, keep=3, holdout=0.0))
    assert (result.ranked_on, result.n_holdout, result.baselines) == ("conditioning", 0, {})
    assert {m.holdout_accuracy for m in result.models} == {None}
    truth = torch.tensor([result.classes.index(label) for label in labels])
    losses = [calibrated_loss(answers(m, images), truth) for m in result.models]
    assert losses == pytest.approx(sorted(losses), abs=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_cancel_stops_between_two_steps(generator: Generator, steps: int) -> None:
    told: list[tuple[str, int]] = []
    options = replace(SAMPLED, steps=8)
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


@pytest.mark.parametrize("stage", ["encode", "sample", "rank"])
@pytest.mark.parametrize("method", [MEAN, "kde"])
def test_cancel_stops_between_two_stages_where_nothing_is_sampled(
    generator: Generator, method: str, stage: str
) -> None:
    told: list[str] = []
    with pytest.raises(Canceled):
        generator.generate(
            *letters("AB", 6),
            replace(CNN, method=method),
            progress=lambda stage, *_: told.append(stage),
            canceled=lambda: stage in told,
        )
    assert told[-1] == stage


@pytest.mark.parametrize(
    ("characters", "options", "message"),
    [
        ("AB", replace(CNN, target="resnet"), r"unknown target 'resnet'; this bundle has \['cnn-s', 'head'\]"),
        (
            "AB",
            replace(CNN, method="gan"),
            r"unknown method 'gan'; there are \['conditional-mean', 'diffusion'",
        ),
        ("AB", replace(CNN, target="head", method="kde"), "kde samples hidden layers and head has none"),
        ("A", CNN, "cnn-s takes 2 to 6 classes; these samples have 1"),
        ("ABCDEFG", CNN, "cnn-s takes 2 to 6 classes; these samples have 7"),
        ("ABCDEF", replace(CNN, method="retrieve"), "no stored cnn-s has 6 classes; use conditional-mean or diffusion"),
    ],
)
def test_what_the_caller_can_mend_is_said(
    generator: Generator, characters: str, options: GenerateOptions, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        generator.generate(*letters(characters, 3), options)


@pytest.mark.parametrize("target", TARGETS)
def test_unbalanced_classes_are_served(generator: Generator, target: str) -> None:
    sent = counted({"A": 1, "B": 3, "C": 9})
    result = generator.generate(*sent, GenerateOptions(target, seed=1, candidates=2))
    assert result.classes == ("A", "B", "C")
    assert (result.ranked_on, result.n_holdout) == ("cross-validation", 12)  # of B and C
    assert all(np.isfinite(v).all() for v in result.models[0].tensors.values())


def loss_on(generator: Generator, sent: tuple[Images, list[str]], options: GenerateOptions, origin: str) -> float:
    result = generator.generate(*sent, replace(options, keep=99, holdout=0.0))
    model = next(m for m in result.models if m.origin == origin)
    truth = torch.tensor([result.classes.index(label) for label in sent[1]])
    return torch.nn.functional.cross_entropy(answers(model, sent[0]), truth).item()


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
    # Given the same samples in another order, with nothing held out, and no more of them than the encoder looks at
    images, labels = letters("ABC", LOOKED_AT)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = images[order], [labels[i] for i in order]
    options = GenerateOptions(target, seed=5, method="diffusion", candidates=2)
    one, other = generator.weave(images, labels, options), generator.weave(*shuffled, options)
    # Then classes stand in the same order and the networks are the same but for rounding
    assert one.split.classes == other.split.classes == ("A", "B", "C")
    for a, b in zip(one.networks()[1:], other.networks()[1:], strict=True):  # folds, and so the blend, follow the order
        torch.testing.assert_close(a.trunk, b.trunk, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(a.rows, b.rows, atol=1e-2, rtol=1e-2)


def test_rows_follow_the_names(generator: Generator) -> None:
    # Given the same samples under names that sort the other way round
    images, labels = letters("ABC", 6)
    renamed = [{"A": "z", "B": "y", "C": "x"}[label] for label in labels]
    woven = [generator.weave(images, names, CNN).networks() for names in (labels, renamed)]
    # Then the closed form's rows stand the other way round too
    one, other = (next(n for n in networks if n.origin == "closed-form") for networks in woven)
    torch.testing.assert_close(other.rows, one.rows.flip(0), atol=1e-3, rtol=1e-3)

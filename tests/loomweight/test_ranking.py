import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loomweight import ranking
from loomweight.architectures import CNN_S, ArchitectureSpec
from loomweight.bundle import Zoo
from loomweight.candidates import Candidate, Sampling, scales
from loomweight.denoiser import Condition
from loomweight.loom import Support
from loomweight.ranking import Evidence, Score, cross_validate
from tests.loomweight.made import HEAD, loom, padded, seeded, support

SAMPLING = Sampling(steps=2, guidance=1.0, temperature=1.0, candidates=3, seed=1)
EMPTY = torch.zeros(0)


def constant(z: Tensor, t: Tensor, condition: Condition, keep: Tensor) -> Tensor:
    return torch.ones_like(z)


@pytest.mark.parametrize("spec", [CNN_S, HEAD])
def test_cross_validation_judges_by_what_did_not_condition(spec: ArchitectureSpec) -> None:
    # Given a task of three classes with four images each
    of = loom(spec)
    task = support(of, 3, 4)
    # When its scales are cross-validated in two folds
    evidence = cross_validate(of, constant, task, SAMPLING, folds=2)
    assert evidence.images == 12
    assert set(evidence.loss) == {*(s.origin for s in scales(of)), "diffusion"}
    # Then the closed form's loss is that of two ridge heads, each asked about the images of the other
    truth = torch.arange(3).repeat_interleave(2)
    answers = []
    for fold in range(2):
        tested = torch.arange(4) % 2 == fold
        rows = of.ridge(task.trunk_features[:, :, ~tested], task.mask[:, :, ~tested])[0]
        asked = task.trunk_features[0][:, tested].flatten(0, 1)
        answers.append(F.linear(asked, rows[:, :-1], rows[:, -1]))
    expected = ranking.calibrated_loss(torch.cat(answers), truth.repeat(2))
    assert evidence.loss["closed-form"] == pytest.approx(expected, rel=1e-3)
    # and the full difference's that of networks with the difference in them
    first = of.config.vae.latents
    latents = of.unscale(torch.ones(of.latent_shape(1, 3)))
    trunks = of.trunks(latents)
    answers = []
    for fold in range(2):
        tested = torch.arange(4) % 2 == fold
        part = Support(
            *(x[:, :, ~tested] for x in (task.images, task.features, task.trunk_features, task.mask)),
        )
        rows, base = of.rows(latents, trunks, part)
        torch.testing.assert_close(rows - base, of.vae.decode_row(latents[:, first:]))
        answers.append(of.logits(trunks[0], rows[0], task.images[0][:, tested].flatten(0, 1)))
    expected = ranking.calibrated_loss(torch.cat(answers), truth.repeat(2))
    assert evidence.loss["mean"] == pytest.approx(expected, rel=1e-3)


def test_cross_validation_does_not_see_padding() -> None:
    of = loom(CNN_S)
    task = support(of, 3, 5)
    plain, longer = (cross_validate(of, constant, t, SAMPLING) for t in (task, padded(task, 3, junk=2.0)))
    assert plain.images == longer.images == 15
    assert longer.loss == pytest.approx(plain.loss, rel=1e-3)


def test_a_single_image_of_a_class_leaves_nothing_to_validate() -> None:
    of = loom(CNN_S)
    task = support(of, 3, 4)
    task.mask[0, 1, 1:] = False
    assert cross_validate(of, constant, task, SAMPLING) == Evidence({}, 0)


def test_two_images_of_the_smallest_class_make_two_folds() -> None:
    of = loom(CNN_S)
    task = support(of, 3, 6)
    task.mask[0, 1, 2:] = False
    evidence = cross_validate(of, constant, task, SAMPLING, folds=3)
    assert evidence.images == 14  # every image is asked about once
    assert all(torch.tensor(value).isfinite() for value in evidence.loss.values())


def networks(*origins: str) -> list[Candidate]:
    return [Candidate(None, origin, EMPTY, EMPTY) for origin in origins]


def scores(*losses: float) -> list[Score]:
    return [Score(loss, 0.0) for loss in losses]


def test_held_out_likelihood_ranks_and_ties_keep_their_order() -> None:
    order = ranking.rank(networks("a", "b", "c"), scores(0.5, 0.2, 0.5), Evidence({}, 0), 10)
    assert order == [1, 0, 2]


def test_without_any_evidence_the_order_given_stays() -> None:
    assert ranking.rank(networks("a", "b", "c"), scores(3, 2, 1), Evidence({}, 0), 0) == [0, 1, 2]


@pytest.mark.parametrize(("held_out", "order"), [(0, [1, 0]), (5, [1, 0]), (50, [0, 1])])
def test_both_kinds_of_evidence_count_by_their_images(held_out: int, order: list[int]) -> None:
    # Cross-validation over 10 images is for the closed form by 1.0, the held-out images for the mean by 0.5
    evidence = Evidence({"mean": 1.5, "closed-form": 0.5}, 10)
    assert ranking.rank(networks("mean", "closed-form"), scores(0.5, 1.0), evidence, held_out) == order


def test_samples_of_one_kind_share_their_evidence_and_keep_their_order() -> None:
    evidence = Evidence({"mean": 2.0, "closed-form": 1.0, "diffusion": 1.5}, 10)
    found = ranking.rank(networks("mean", "diffusion", "diffusion", "closed-form"), scores(0, 0, 0, 0), evidence, 0)
    assert found == [3, 1, 2, 0]


def test_score_is_loss_and_accuracy() -> None:
    # Given a head that looks at the first two features
    of = loom(HEAD)
    rows = torch.zeros(2, 25)
    rows[0, 0] = rows[1, 1] = 5.0
    x = torch.eye(24)[[0, 1, 1, 0]]
    found = ranking.score(of, Candidate(None, "x", EMPTY, rows), x, torch.tensor([0, 1, 1, 1]))
    assert found.accuracy == 0.75
    # and the loss is that at the best temperature of the grid, whatever the head's own
    logits, truth = 5 * torch.eye(2)[[0, 1, 1, 0]], torch.tensor([0, 1, 1, 1])
    losses = [F.cross_entropy(logits * t, truth).item() for t in ranking.TEMPERATURES]
    assert found.loss == pytest.approx(min(losses))
    assert min(losses) < F.cross_entropy(logits, truth).item()


def test_confidence_does_not_decide() -> None:
    # Given a head that is right three times in four, and the same head twice as sure of itself
    of = loom(HEAD)
    rows = torch.zeros(2, 25)
    rows[0, 0] = rows[1, 1] = 2.5
    x, truth = torch.eye(24)[[0, 1, 1, 0]], torch.tensor([0, 1, 1, 1])
    sure, plain = (ranking.score(of, Candidate(None, "x", EMPTY, c * rows), x, truth) for c in (2.0, 1.0))
    assert sure.loss == pytest.approx(plain.loss)


def test_baselines_are_those_of_a_user_without_a_generator() -> None:
    # Given two classes far apart and a mask that hides an image of the other class
    of = loom(HEAD)
    features = torch.randn(1, 2, 4, 24, generator=seeded()) * 0.1
    features[0, 0, :, 0] += 3
    features[0, 1, :, 0] -= 3
    task = Support(features, features, features, torch.ones(1, 2, 4, dtype=torch.bool))
    task.features[0, 0, 3] = -100
    task.mask[0, 0, 3] = False
    x = torch.cat((features[0, 0, :3], features[0, 1]))
    found = ranking.baselines(of, task, x, x, torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert found == {"closed_form": 1.0, "nearest_class_mean": 1.0}


def test_novelty_knows_the_familiar_from_the_strange() -> None:
    # Given a task, a zoo with that very task among its neighbours, and a zoo of the opposite
    of = loom(CNN_S)
    task = support(of, 3, 6)
    _, code = of.set_encoder(task.features, task.mask)
    near = code + 0.05 * torch.randn(20, 16, generator=seeded())
    assert ranking.novelty(of, task, Zoo({"set_codes": torch.cat((near, code))})) == {"score": 0.0, "warning": None}
    strange = ranking.novelty(of, task, Zoo({"set_codes": -near}))
    assert strange["score"] == 1.0
    assert "unlike every task" in str(strange["warning"])

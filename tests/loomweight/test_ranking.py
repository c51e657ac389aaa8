from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loomweight import ranking
from loomweight.architectures import CNN_S, ArchitectureSpec
from loomweight.candidates import BLEND, MEAN, Candidate, Kind, Sampling, decode, kinds, pending, weave
from loomweight.denoiser import Condition
from loomweight.loom import LOOKED_AT, Loom, Support
from loomweight.ranking import Answers, Evidence
from tests.loomweight.made import HEAD, loom, padded, seeded, support

SAMPLING = Sampling(steps=2, guidance=1.0, temperature=1.0, candidates=3, seed=1)
EMPTY = torch.zeros(0)


def woven(of: Loom, tasks: Support, found: list[Kind]) -> Tensor:
    """Latents (tasks, kinds, ...) by the loom's own denoiser."""

    def denoise(z: Tensor, t: Tensor, condition: Condition, keep: Tensor) -> Tensor:
        return of.denoise(z, t, condition, keep)

    return weave(of, denoise, of.condition(tasks), found, SAMPLING, lambda step, steps: None)


def folded(of: Loom, task: Support, method: str, folds: int) -> tuple[Evidence, Tensor, list[Kind]]:
    """Evidence of a request's kinds, their latents (1 + folds, kinds, ...) and the kinds themselves."""
    found = kinds(of, method, SAMPLING.candidates, "mean")
    together, tested = ranking.with_folds(task, folds)
    latents = woven(of, together, found)
    asked = ranking.cross_validate(of, together.part(slice(1, None)), tested, latents[1:], found)
    return ranking.evidence(*asked), latents, found


def without(task: Support, places: Tensor) -> Support:
    """The task without some places of every class."""
    return Support(*(x[:, :, ~places] for x in (task.images, task.features, task.trunk_features, task.mask)))


@pytest.mark.parametrize("spec", [CNN_S, HEAD])
@pytest.mark.parametrize("method", [MEAN, "diffusion"])
def test_cross_validation_is_two_requests_each_asked_about_the_images_of_the_other(
    spec: ArchitectureSpec, method: str
) -> None:
    # Given a task of three classes with four images each, cross-validated in two folds
    of = loom(spec)
    task = support(of, 3, 4)
    evidence, _, found = folded(of, task, method, 2)
    assert evidence.images == 12
    # When the same is done by hand: for each half a request of its own, with nothing else in the batch
    truth = torch.arange(3).repeat_interleave(2).repeat(2)
    answers: list[list[Tensor]] = [[] for _ in found]
    nearest = []
    for fold in range(2):
        asked = torch.arange(4) % 2 == fold
        part = without(task, asked)
        latents = woven(of, part, found)[0]
        means = part.features[0].mean(1)
        nearest.append(-torch.cdist(task.features[0][:, asked].flatten(0, 1), means))
        for i, z in enumerate(latents):
            trunk = of.trunks(z[None])
            rows, _ = of.rows(z[None], trunk, part, ridge_share=found[i].ridge)
            answers[i].append(of.logits(trunk[0], rows[0], task.images[0][:, asked].flatten(0, 1)))
    # Then loss and accuracy are those of the answers to both halves together, for every kind and every sample
    for i, parts in enumerate(answers):
        logits = torch.cat(parts)
        assert evidence.loss[i] == pytest.approx(ranking.calibrated_loss(logits, truth), rel=1e-3)
        assert evidence.accuracy[i] == pytest.approx(float((logits.argmax(1) == truth).float().mean()))
    assert len(set(evidence.loss)) == len(found)  # samples are judged one by one
    closed = [k.origin for k in found].index("closed-form")
    assert evidence.baselines == {
        "closed_form": evidence.accuracy[closed],
        "nearest_class_mean": pytest.approx(float((torch.cat(nearest).argmax(1) == truth).float().mean())),
    }


@pytest.mark.parametrize("spec", [CNN_S, HEAD])
def test_what_is_woven_from_all_samples_does_not_notice_the_folds_beside_it(spec: ArchitectureSpec) -> None:
    of = loom(spec)
    task = support(of, 3, 6)
    _, latents, found = folded(of, task, "diffusion", 3)
    alone = woven(of, task, found)
    torch.testing.assert_close(latents[:1], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(latents[1], alone[0], atol=1e-3)


def test_cross_validation_does_not_see_padding() -> None:
    of = loom(CNN_S)
    task = support(of, 3, 5)
    plain, longer = (folded(of, t, "diffusion", 3)[0] for t in (task, padded(task, 3, junk=2.0)))
    assert plain.images == longer.images == 15
    assert longer.loss == pytest.approx(plain.loss, rel=1e-3)
    assert longer.accuracy == pytest.approx(plain.accuracy)
    assert longer.baselines == pytest.approx(plain.baselines)


def with_counts(*counts: int) -> Support:
    """A task with so many images of its classes."""
    task = support(loom(CNN_S), len(counts), max(counts))
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return replace(task, mask=mask[None])


@pytest.mark.parametrize(
    ("counts", "folds"),
    [
        ((1, 1, 1), 0),
        ((1, 9), 0),  # what is known of one class of two does not speak for both
        ((1, 1, 5, 5), 0),
        ((1, 3, 9), 3),  # two of three do
        ((2, 2), 2),
        ((2, 9), 2),
        ((3, 3), 3),
        ((10, 10), 3),
        ((3, 11), 3),
    ],
)
def test_folds_follow_the_numbers_of_images(counts: tuple[int, ...], folds: int) -> None:
    assert ranking.folds_of(with_counts(*counts)) == folds


@pytest.mark.parametrize("counts", [(2, 2), (3, 3, 3), (1, 3, 10), (2, 9), (5, 4, 3)])
def test_folds_ask_about_every_image_once_and_leave_every_class_one_that_is_looked_at(counts: tuple[int, ...]) -> None:
    task = with_counts(*counts)
    folds = ranking.folds_of(task)
    together, tested = ranking.with_folds(task, folds)
    assert torch.equal(together.mask[0], task.mask[0])
    assert (tested.int().sum(0) == (task.mask[0] & (task.mask[0].sum(-1, keepdim=True) > 1)).int()).all()
    held = together.mask[1:]
    assert torch.equal(held | tested, task.mask.expand_as(held))
    assert not (held & tested).any()
    assert held[..., :LOOKED_AT].any(-1).all()
    assert tested.any(-1).any(-1).all()


def test_where_images_are_many_one_fold_is_asked_about() -> None:
    task = with_counts(12, 3)
    together, tested = ranking.with_folds(task, ranking.folds_of(task))
    assert tested.shape[0] == 1
    assert tested.sum(-1).tolist() == [[4, 1]]
    assert together.mask.sum(-1).tolist() == [[12, 3], [8, 2]]


def test_unbalanced_classes_are_cross_validated() -> None:
    of = loom(CNN_S)
    evidence, _, _ = folded(of, with_counts(1, 2, 6), "diffusion", 2)
    assert evidence.images == 8  # all but the only one of its class
    assert all(torch.tensor(value).isfinite() for value in evidence.loss)


def test_only_the_images_that_the_encoder_looks_at_are_compared_with_their_means() -> None:
    # Given a task whose later images carry nonsense in the encoder's place
    of = loom(CNN_S)
    task = support(of, 2, LOOKED_AT + 6)
    task.features[:] = 0.1 * torch.randn(task.features.shape, generator=seeded())
    task.features[0, 0, :, 0] += 5
    task.features[:, :, LOOKED_AT:] = torch.nan
    # Then neither baseline nor losses see it
    evidence, latents, _ = folded(of, task, MEAN, 2)
    assert evidence.baselines["nearest_class_mean"] == 1.0
    assert latents.isfinite().all()


def evidence(images: int, *losses: float) -> Evidence:
    return Evidence(torch.tensor(losses)[:, None].expand(-1, images), (0.0,) * len(losses), {})


def test_likelihood_ranks_and_ties_keep_their_order() -> None:
    assert ranking.rank(3, [evidence(10, 0.5, 0.2, 0.5)]) == [1, 0, 2]


def test_without_any_evidence_the_order_given_stays() -> None:
    assert ranking.rank(3, []) == [0, 1, 2]


@pytest.mark.parametrize(("held_out", "order"), [(5, [1, 0]), (50, [0, 1])])
def test_both_kinds_of_evidence_count_by_their_images(held_out: int, order: list[int]) -> None:
    # Cross-validation over 10 images is for the second by 1.0, the held-out images for the first by 0.5
    assert ranking.rank(2, [evidence(10, 1.5, 0.5), evidence(held_out, 0.5, 1.0)]) == order


def told(ahead: list[float]) -> Evidence:
    """Two candidates, the second ahead by so much on each image."""
    return Evidence(torch.tensor([[1.0] * len(ahead), [1 - a for a in ahead]]), (0.0, 0.0), {})


@pytest.mark.parametrize(
    ("ahead", "order"),
    [
        ([0.5, -0.4, 0.5, -0.4], [0, 1]),  # ahead on average, and as often behind
        ([0.5, 0.4, 0.5, 0.4], [1, 0]),
        ([-0.5, -0.4, -0.5, -0.4], [0, 1]),
        ([0.5], [0, 1]),  # one image is no proof
        ([0.0, 0.0], [0, 1]),
    ],
)
def test_who_leads_by_default_gives_way_beyond_doubt_alone(ahead: list[float], order: list[int]) -> None:
    assert ranking.rank(2, [told(ahead)], leader=0) == order
    assert ranking.rank(2, [told(ahead[:2]), told(ahead[2:])] if ahead[2:] else [told(ahead)], leader=0) == order


@pytest.mark.parametrize("spec", [CNN_S, HEAD])
def test_a_blend_is_one_network_that_says_what_its_members_say_on_average(spec: ArchitectureSpec) -> None:
    # Given candidates of one trunk and what they would answer about images that did not condition them
    of = loom(spec)
    task = support(of, 3, 4)
    found = [Kind("a"), Kind("b", rows=0.5), Kind("c", rows=0.25, ridge=0)]
    networks = [pending(z, k) for z, k in zip(woven(of, task, found)[0], found, strict=True)]
    truth = torch.arange(3).repeat(8)
    sure = 4 * F.one_hot(torch.where(torch.arange(24) < 6, 0, truth), 3).float()  # four are wrong
    answers = Answers(torch.stack([sure, torch.randn(24, 3, generator=seeded()), 2 * sure]), truth)
    blend, said = ranking.blend(networks, answers, [0, 1, 2])
    shares = torch.tensor([w for w, _ in blend.members])
    # Then it answers with their sum, shared out
    torch.testing.assert_close(said, (answers.logits * shares[:, None, None]).sum(0) / _factor(blend, said, truth))
    asked = task.images[0].flatten(0, 1)
    alone = [decode(of, n, task) for n in networks]
    one = decode(of, blend, task)
    logits = sum(w * of.logits(n.trunk, n.rows, asked) for w, n in zip(shares.tolist(), alone, strict=True))
    torch.testing.assert_close(of.logits(one.trunk, one.rows, asked), logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(one.trunk, alone[0].trunk)
    # and the one that knows nothing has the smallest share, whatever the others' confidence
    calibrated = shares / ranking.calibrated(answers.logits, truth)[0]
    assert calibrated[1] < calibrated[0] == pytest.approx(float(calibrated[2]))


def _factor(blend: Candidate, said: Tensor, truth: Tensor) -> Tensor:
    """What a blend is brought to its best temperature with."""
    assert blend.origin == BLEND
    return ranking.calibrated(said, truth)[0]


def test_a_blend_of_one_is_that_one() -> None:
    of = loom(CNN_S)
    task = support(of, 3, 4)
    network = pending(woven(of, task, [Kind("a")])[0, 0], Kind("a"))
    truth = torch.arange(3).repeat(4)
    blend, _ = ranking.blend([network], Answers(F.one_hot(truth, 3)[None].float(), truth), [0])
    a, b = decode(of, blend, task), decode(of, network, task)
    assert torch.equal(a.trunk, b.trunk)
    ratio = a.rows / b.rows  # up to how sure it is
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_score_is_loss_and_accuracy() -> None:
    # Given a head that looks at the first two features
    of = loom(HEAD)
    rows = torch.zeros(2, 25)
    rows[0, 0] = rows[1, 1] = 5.0
    x = torch.eye(24)[[0, 1, 1, 0]]
    loss, accuracy = ranking.score(of, Candidate(None, "x", EMPTY, rows), x, torch.tensor([0, 1, 1, 1]))
    assert accuracy == 0.75
    # and the loss is that at the best temperature of the grid, whatever the head's own
    logits, truth = 5 * torch.eye(2)[[0, 1, 1, 0]], torch.tensor([0, 1, 1, 1])
    losses = [F.cross_entropy(logits * t, truth).item() for t in ranking.TEMPERATURES]
    assert loss == pytest.approx(min(losses))
    assert min(losses) < F.cross_entropy(logits, truth).item()


def test_confidence_does_not_decide() -> None:
    # Given a head that is right three times in four, and the same head twice as sure of itself
    of = loom(HEAD)
    rows = torch.zeros(2, 25)
    rows[0, 0] = rows[1, 1] = 2.5
    x, truth = torch.eye(24)[[0, 1, 1, 0]], torch.tensor([0, 1, 1, 1])
    sure, plain = (ranking.score(of, Candidate(None, "x", EMPTY, c * rows), x, truth) for c in (2.0, 1.0))
    assert sure == pytest.approx(plain)


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
    zero = Candidate(None, "x", EMPTY, torch.zeros(2, 25))
    found = ranking.judge(of, [zero], task, x, x, torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert found.baselines == {"closed_form": 1.0, "nearest_class_mean": 1.0}
    # beside them stands the network that was asked: one that always says the same
    assert (found.images, found.accuracy) == (7, (pytest.approx(3 / 7),))
    assert found.loss == (pytest.approx(0.6931, abs=1e-3),)

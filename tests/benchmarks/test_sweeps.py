"""Sweeps try what they say: the product's value is among the others and is what the product does."""

import pytest
import torch

from benchmarks import loom_tasks, sweeps
from benchmarks.loom_tasks import Task
from benchmarks.sweeps import SWEEPS
from loomweight import ranking
from loomweight.architectures import CNN_S
from loomweight.candidates import SCALES, Kind
from loomweight.loom import LOOKED_AT, Loom
from tests.loomweight.made import loom, seeded, support

NAMES = sorted(SWEEPS)


@pytest.fixture(scope="module")
def made() -> Loom:
    return loom(CNN_S)


def task(made: Loom, images: int) -> Task:
    query = CNN_S.adapt(torch.rand(30, 3, 32, 32, generator=seeded(4)))
    return Task(support(made, classes=3, images=images), query, torch.arange(3).repeat_interleave(10), 5)


@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_every_way_is_tried_and_compared_with_one_that_is(name: str, images: int, made: Loom) -> None:
    found = SWEEPS[name].make(made)(task(made, images))
    assert found
    for way, accuracy in found.items():
        assert 0 <= accuracy <= 1
        assert sweeps.reference(name, way) in found


@torch.inference_mode()
def test_what_is_the_same_by_two_names_is_as_good(made: Loom) -> None:
    t = task(made, 5)
    by_name = {name: SWEEPS[name].make(made)(t) for name in NAMES}
    mean = by_name["guidance"]["conditional mean: 1"]
    assert by_name["shares"]["share: trunk 1, rows 1"] == mean
    assert by_name["looks"][f"looks at: {LOOKED_AT}"] == mean
    assert by_name["candidates"]["conditional mean: alone"] == mean
    assert by_name["evidence"]["ranked by: nothing"] == mean  # the first of the shares
    assert by_name["steps"]["one sample: 8"] == by_name["guidance"]["one sample: 1"]
    assert by_name["temperature"]["one sample: 1"] == by_name["guidance"]["one sample: 1"]
    assert by_name["evidence"]["ranked by: the product's folds"] == by_name["evidence"]["ranked by: 3 folds"]
    alone = by_name["evidence"]["ranked by: the product's folds, the best alone"]
    assert by_name["candidates"]["conditional mean: its best share"] == alone


@torch.inference_mode()
def test_a_share_of_nothing_is_the_closed_form(made: Loom) -> None:
    t = task(made, 5)
    zero = torch.zeros(made.latent_shape(1, 3))[0]
    assert SWEEPS["shares"].make(made)(t)["share: trunk 0, rows 0"] == loom_tasks.accuracy(made, zero, t)


@torch.inference_mode()
def test_the_best_of_more_samples_ranks_no_worse(made: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a task whose judging images are its conditioning ones, and a ranking that knows their answer
    t = task(made, 4)
    t = Task(t.support, t.support.images[0].flatten(0, 1), torch.arange(3).repeat_interleave(4), 5)

    def knows(count: int, evidence: object) -> list[int]:
        kinds = [*SCALES, *sweeps.samples(max(sweeps.CANDIDATES))]
        latents = sweeps.woven(made, t.support, kinds, sweeps.of(t, max(sweeps.CANDIDATES)))[0]
        return sorted(range(count), key=lambda i: -loom_tasks.accuracy(made, latents[i], t))

    monkeypatch.setattr(ranking, "rank", knows)
    # When the best of more and more is taken
    found = sweeps.candidates(made)(t)
    # Then it is never worse than the best of fewer, and never better than all together
    values = [found[f"best sample of: {n}"] for n in sweeps.CANDIDATES]
    assert values == sorted(values)
    for n, value in zip(sweeps.CANDIDATES, values, strict=True):
        both = found[f"best of shares and samples: {n}"]
        assert both == max(value, found["conditional mean: its best share"])


def test_held_out_images_never_condition(made: Loom) -> None:
    whole = support(made, classes=3, images=5)
    left, held = sweeps.without_last(whole, 2)
    assert left.mask[0].sum(1).tolist() == [3, 3, 3]
    assert held.sum(1).tolist() == [2, 2, 2]
    assert not (left.mask[0] & held).any()
    assert whole.mask.all()


@torch.inference_mode()
def test_the_encoder_looks_at_as_many_images_as_told(made: Loom) -> None:
    whole = support(made, classes=3, images=5)
    other = sweeps.Looking(made.spec, made.config)
    other.load_state_dict(made.state_dict())
    for first in (1, 3):
        other.first = first
        # Then what stands behind the last image looked at changes nothing in what the set encoder sees
        features, mask = other.looked_at(whole)
        assert features.shape[2] == mask.shape[2] == first


@torch.inference_mode()
def test_no_temperature_no_chance(made: Loom) -> None:
    t = task(made, 2)
    other = Task(t.support, t.query, t.truth, seed=99)
    cold = [sweeps.woven(made, t.support, sweeps.samples(1), sweeps.of(x, temperature=0.0)) for x in (t, other)]
    warm = [sweeps.woven(made, t.support, sweeps.samples(1), sweeps.of(x)) for x in (t, other)]
    assert torch.equal(*cold)
    assert not torch.equal(*warm)


def test_samples_are_numbered_as_in_a_request() -> None:
    assert sweeps.samples(2) == [Kind("diffusion", draw=0), Kind("diffusion", draw=1)]

import pytest
import torch
from torch import Tensor

from loomweight.architectures import CNN_S, head
from tests.trainer.halves import halves
from trainer import arms
from trainer.arms import Setting


@pytest.fixture
def setting() -> Setting:
    """Three classes of four images each, and features that differ in direction."""
    x, y = halves(4, seed=0)
    features = torch.eye(3, 10)[y] + 0.1 * torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    return Setting(x, y, features, 3, seed=1)


@pytest.fixture
def trunk() -> dict[str, Tensor]:
    initial = CNN_S.initial(3, torch.Generator().manual_seed(0))
    return {k: initial[k] for k in CNN_S.trunk_shapes()}


def test_probes_of_the_encoder_tell_classes_apart(setting: Setting) -> None:
    for arm in (arms.nearest_class_mean, arms.logistic_probe):
        assert (arm(setting)(setting.x, setting.features).argmax(1) == setting.y).all()


def test_a_trunk_probe_is_a_network_on_an_untouched_trunk(setting: Setting, trunk: dict[str, Tensor]) -> None:
    weights = arms.trunk_probe_weights(setting, CNN_S, trunk)
    assert CNN_S.classes(weights) == 3
    assert all(torch.equal(weights[k], trunk[k]) for k in trunk)
    predict = arms.network(CNN_S, weights)
    assert (predict(setting.x, setting.features).argmax(1) == setting.y).float().mean() > 0.8


def test_a_network_without_a_trunk_reads_the_features(setting: Setting) -> None:
    weights = {"head.weight": torch.eye(3, 10), "head.bias": torch.zeros(3)}
    assert torch.equal(arms.network(head(10), weights)(setting.x, setting.features), setting.features[:, :3])


def test_training_passes_through_what_a_shorter_one_gives(setting: Setting, trunk: dict[str, Tensor]) -> None:
    # Given a training read as it goes on
    start = arms.from_shared(setting, CNN_S, trunk)
    before = {k: v.clone() for k, v in start.items()}
    running = arms.training(setting, CNN_S, start, lr=1e-2, batch=5)
    seen = [{k: v.clone() for k, v in next(running).items()} for _ in range(3)]
    # Then a training of so many steps ends in the same weights, and neither touches its start
    short = arms.training(setting, CNN_S, start, lr=1e-2, batch=5)
    next(short)
    second = next(short)
    assert all(torch.equal(second[k], seen[1][k]) for k in second)
    assert not torch.equal(seen[1]["conv1.weight"], seen[2]["conv1.weight"])
    assert all(torch.equal(start[k], before[k]) for k in start)


def test_fine_tuning_learns_the_samples(setting: Setting, trunk: dict[str, Tensor]) -> None:
    weights = arms.trained(setting, CNN_S, arms.from_shared(setting, CNN_S, trunk), 60, lr=1e-2)
    said = arms.network(CNN_S, weights)(setting.x, setting.features).argmax(1)
    assert (said == setting.y).float().mean() > 0.8


@pytest.mark.parametrize(("shots", "nearest"), [(1, 1), (2, 1), (3, 5), (5, 5), (11, 20), (200, 20)])
def test_a_rate_is_that_of_the_nearest_number_of_images(
    shots: float, nearest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(arms.LEARNING_RATES, "made 10", {1: 0.1, 5: 0.5, 20: 2.0})
    assert arms.learning_rate("made 10", shots) == arms.LEARNING_RATES["made 10"][nearest]


def test_every_arm_starts_where_its_name_says(setting: Setting, trunk: dict[str, Tensor]) -> None:
    starts = {arm: arms.start_of(arm, setting, CNN_S, trunk) for arm in arms.LEARNING_RATES}
    for arm, start in starts.items():
        assert CNN_S.classes(start) == 3
        assert torch.equal(start["conv1.weight"], trunk["conv1.weight"]) != arm.startswith("scratch")
        assert (start["head.weight"] == 0).all() == arm.startswith("fine-tune")
    assert {arms.steps_of(arm) for arm in starts} == {10, 100, 1000}

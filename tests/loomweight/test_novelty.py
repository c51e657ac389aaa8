import pytest
import torch

from loomweight.architectures import CNN_S
from loomweight.bundle import Zoo
from loomweight.loom import Loom, Support
from loomweight.novelty import SHOTS, Novelty
from tests.loomweight.made import loom, padded, seeded, support

DIM = 24


def zoo_around(spread: float = 1.0, **more: torch.Tensor) -> Zoo:
    """Class means that vary much along the first feature and little along the others."""
    means = spread * torch.randn(200, DIM, generator=seeded())
    means[:, 0] *= 10
    return Zoo({"class_means": means, **more})


def task(of: Loom, features: torch.Tensor) -> Support:
    """A task whose encoder features are these (k, m, DIM)."""
    made = support(of, *features.shape[:2])
    return Support(made.images, features[None], made.trunk_features, made.mask)


def test_a_step_counts_by_how_much_known_classes_vary_along_it() -> None:
    # Given one known class, and steps of the same length from it along a wide and a narrow direction
    zoo = zoo_around()
    known = zoo.tensors["class_means"][:1]
    novelty = Novelty(zoo)
    assert novelty.distance(known) == pytest.approx(0, abs=1e-3)
    wide, narrow = known.clone(), known.clone()
    wide[0, 0] += 3
    narrow[0, 1] += 3
    assert novelty.distance(narrow) > 2 * novelty.distance(wide) > 0


def test_the_score_is_the_share_of_familiar_tasks_that_lie_nearer_at_as_many_images() -> None:
    # Given familiar tasks at distances 0 to 1 with one image a class, 10 to 11 with two, and so on
    of = loom(CNN_S)
    levels = torch.stack([torch.linspace(0, 1, 101) + 10 * i for i in range(len(SHOTS))])
    novelty = Novelty(zoo_around(familiar_distances=levels))
    for images, level in ((1, 0), (2, 1), (5, 2), (30, 3)):
        features = torch.randn(3, images, DIM, generator=seeded(images))
        distance = novelty.distance(features[:, :8].mean(1))
        expected = float((levels[level] < distance).float().mean())
        assert novelty.score(of, task(of, features))["score"] == pytest.approx(expected)


def test_the_strange_is_warned_of_and_the_familiar_is_not() -> None:
    of = loom(CNN_S)
    zoo = zoo_around(familiar_distances=torch.linspace(1, 2, 101).expand(len(SHOTS), -1))
    novelty = Novelty(zoo)
    known = zoo.tensors["class_means"][:3, None].expand(-1, 4, -1)
    assert novelty.score(of, task(of, known)) == {"score": 0.0, "warning": None}
    strange = novelty.score(of, task(of, known + 100))
    assert strange["score"] == 1.0
    assert "unlike every task" in str(strange["warning"])


def test_padding_is_not_strange() -> None:
    of = loom(CNN_S)
    zoo = zoo_around(familiar_distances=torch.linspace(0, 20, 101).expand(len(SHOTS), -1))
    plain = task(of, torch.randn(3, 4, DIM, generator=seeded(5)))
    assert Novelty(zoo).score(of, padded(plain, 3)) == Novelty(zoo).score(of, plain)


def test_without_familiar_tasks_nothing_is_said() -> None:
    of = loom(CNN_S)
    assert Novelty(zoo_around()).score(of, support(of, 3, 2)) == {"score": None, "warning": None}

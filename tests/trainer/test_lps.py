from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from loomweight.similarity import Similarity
from loomweight.similarity.layers import read
from trainer import lps, modelset, recipe
from trainer.lps import Collection
from trainer.modelset import SetModel
from trainer.pairs import PairTask
from trainer.recipe import LpsRecipe, ModelSetRecipe, Recipe

SETTINGS = LpsRecipe(steps=6, second_order_steps=30, tasks=3, models=2, probes=8, side=8, slots=2, protocol_tasks=3)
MODELS = ModelSetRecipe(
    domain="glyphs", tasks=6, withheld_tasks=0, seeds=3, networks=("plain-4-batch-relu",), epochs=1, per_class=40
)
SMALL: Recipe = replace(recipe.load("tiny"), modelset=MODELS, lps=SETTINGS)


def task(number: int, a: int, b: int, *, withheld: bool = False) -> PairTask:
    return PairTask(number, (a, b), (str(a), str(b)), withheld)


def toy(tasks: int = 4, models: int = 4) -> Collection:
    """Small convolutional networks that hold their task's filter and much that is their own."""
    generator = Generator().manual_seed(0)
    filters = torch.randn(tasks, 27, generator=generator)
    found, readings = [], []
    for t in range(tasks):
        for seed in range(models):
            own = torch.randn(6, 27, generator=generator)
            weight = own + 2 * filters[t] * torch.randn(6, 1, generator=generator)
            weights = {"a.weight": weight.view(6, 3, 3, 3), "b.weight": torch.randn(2, 6, generator=generator)}
            found.append(SetModel(task(t, 2 * t, 2 * t + 1), seed, "toy", "adamw", 0.9, 0.9, 1.0))
            readings.append(read(weights))
    return Collection(tuple(found), tuple(readings))


def test_training_tasks_share_no_class_with_the_others() -> None:
    tasks = [task(0, 0, 1), task(1, 2, 3), task(2, 4, 5), task(3, 3, 6), task(4, 6, 7), task(5, 8, 9, withheld=True)]
    split = lps.split_tasks(tasks, replace(SETTINGS, protocol_tasks=3))
    assert [t.number for t in split.train] == [0, 1, 2]
    assert [t.number for t in split.validation] == [4]
    assert [t.number for t in split.withheld] == [5]


def test_supervised_contrastive_loss_is_the_formula() -> None:
    x = torch.nn.functional.normalize(torch.randn(5, 3, generator=Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1])

    def anchor(i: int) -> Tensor:
        others = [j for j in range(5) if j != i]
        down = torch.stack([x[i] @ x[j] / 0.1 for j in others]).logsumexp(0)
        same = [j for j in others if labels[j] == labels[i]]
        return torch.stack([down - x[i] @ x[j] / 0.1 for j in same]).mean()

    expected = torch.stack([anchor(i) for i in range(5)]).mean()
    torch.testing.assert_close(lps.supervised_contrastive(x, labels, 0.1), expected)


@pytest.mark.parametrize("objective", lps.OBJECTIVES)
@pytest.mark.parametrize("kind", lps.NETWORKS)
def test_learning_brings_models_of_one_task_together(kind: str, objective: str, tmp_path: Path) -> None:
    examples = toy()
    same = examples.labels[:, None] == examples.labels

    def margin(network: lps.Network) -> float:
        found = lps.embed(network, examples.readings).models
        scores = found @ found.T
        return float(scores[same].mean() - scores[~same].mean())

    start = lps.make(kind, SETTINGS, Generator().manual_seed(0))
    if kind != "second-order":
        start.settle(examples.readings)  # type: ignore[union-attr]
    settings = replace(SETTINGS, steps=30, tasks=4, models=3)
    network, seconds = lps.train(tmp_path / "lps", settings, kind, objective, examples, seed=0)
    assert seconds > 0
    assert margin(network) > margin(start.eval().requires_grad_(False)) + 0.02


def test_training_that_was_stopped_goes_on_to_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = toy()
    settings = replace(SETTINGS, steps=52)
    whole, _ = lps.train(tmp_path / "whole", settings, "chain", "contrastive", examples, seed=0)
    # Given a run that dies behind its second saved state
    step, count = lps.supervised_contrastive, 0

    def dying(*arguments: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count > 51:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lps, "supervised_contrastive", dying)
    with pytest.raises(KeyboardInterrupt):
        lps.train(tmp_path / "part", settings, "chain", "contrastive", examples, seed=0)
    monkeypatch.undo()
    # When it is started again, then it ends with the same network
    part, _ = lps.train(tmp_path / "part", settings, "chain", "contrastive", examples, seed=0)
    for name, value in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], value), name


def test_unknown_networks_and_objectives_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no second-order network 'third'"):
        lps.make("third", SETTINGS, Generator())
    with pytest.raises(ValueError, match="no objective 'hinge'"):
        lps.train(tmp_path, SETTINGS, "chain", "hinge", toy(), seed=0)


def test_probability_follows_the_score() -> None:
    examples = toy()
    directions = torch.nn.functional.one_hot(examples.labels, 4).float()
    noise = 0.3 * torch.randn(directions.shape, generator=Generator().manual_seed(0))
    found = lps.calibrate(torch.nn.functional.normalize(directions + noise, dim=1), examples)
    assert found.probability(1.0, same_architecture=True) > 0.95
    assert found.probability(0.0, same_architecture=True) < 0.05
    assert found.same == found.different  # all toys are of one architecture


def test_the_stage_writes_a_part_that_services_can_open(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "data").symlink_to(tiny_run / "data")
    modelset.build(SMALL, run)
    part_id = lps.build(SMALL, run, tmp_path / "bundle")
    part = Similarity.load(tmp_path / "bundle")
    assert part.id == part_id
    assert part_id == lps.build(SMALL, run, tmp_path / "again")
    models = modelset.load(run)
    a, b = (models.tensors(m) for m in models.models[:2])
    assert part.compare(a, a).similarity == pytest.approx(1, abs=1e-5)
    assert -1 <= part.compare(a, b).similarity < 1

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from trainer.loop import fit, learning_rate
from trainer.recipe import TrainingRecipe

RECIPE = TrainingRecipe(steps=9, batch=4, lr=1e-2, weight_decay=1e-2)


class PowerCut(Exception):
    """The process that trains is gone."""


@dataclass
class Trial:
    """A small model with batch norm, noise in its batches and an average of its weights: all that has to survive."""

    stop_at: int | None = None
    steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.modules = nn.ModuleDict({"network": network, "average": nn.Linear(8, 1).requires_grad_(False)})

    def step(self, i: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        if i == self.stop_at:
            raise PowerCut
        self.steps.append(i)
        x = torch.randn(RECIPE.batch, 4, generator=generator)
        loss = (self.modules["network"](x) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def follow(self, _: int) -> None:
        for ours, theirs in zip(
            self.modules["average"].parameters(), self.modules["network"].get_submodule("3").parameters(), strict=True
        ):
            ours.lerp_(theirs, 0.3)

    def train(self, folder: Path) -> dict[str, Tensor]:
        fit(folder, self.modules, RECIPE, self.step, seed=3, after=self.follow, save_every=3)
        return self.modules.state_dict()


def test_a_resumed_run_ends_with_the_weights_of_one_left_alone(tmp_path: Path) -> None:
    # Given a run that nobody disturbs, and one that is cut off in its eighth step
    alone = Trial().train(tmp_path / "alone")
    with pytest.raises(PowerCut):
        Trial(stop_at=7).train(tmp_path / "cut")
    # When the second is started again, with fresh modules
    again = Trial()
    torch.manual_seed(12345)  # nothing may hang on the global generator
    resumed = again.train(tmp_path / "cut")
    # Then it goes on from its checkpoint and ends bit for bit the same, averages and statistics included
    assert again.steps == [6, 7, 8]
    assert all(torch.equal(resumed[name], alone[name]) for name in alone)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = Trial().train(tmp_path)
    again = Trial()
    second = again.train(tmp_path)
    assert again.steps == []
    assert all(torch.equal(second[name], first[name]) for name in first)


def test_the_seed_decides(tmp_path: Path) -> None:
    trials = [Trial(), Trial()]
    for i, trial in enumerate(trials):
        fit(tmp_path / str(i), trial.modules, RECIPE, trial.step, seed=i)
    assert not torch.equal(*(t.modules["network"].get_parameter("0.weight") for t in trials))


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    trial = Trial()

    def step(i: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        loss, figures = trial.step(i, generator)
        return loss * (float("nan") if i == 4 else 1), figures

    with pytest.raises(FloatingPointError, match="the loss is nan at step 4"):
        fit(tmp_path, trial.modules, RECIPE, step, seed=0, save_every=3)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    assert all(p.isfinite().all() for p in trial.modules.parameters())


def test_learning_rate_warms_up_and_cools_down() -> None:
    recipe = TrainingRecipe(steps=100, lr=1.0)
    rates = [learning_rate(recipe, i) for i in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=2e-3)
    assert learning_rate(TrainingRecipe(steps=1, lr=1.0), 0) == 1.0


def test_what_is_held_back_moves_a_fifth_as_far(tmp_path: Path) -> None:
    # Given two weights with the same gradient
    modules = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    start = {name: p.detach().clone() for name, p in modules.named_parameters()}

    def step(_: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        return modules["a"].weight.sum() + modules["b"].weight.sum(), {}

    # When one of them is held back
    fit(tmp_path, modules, TrainingRecipe(steps=5, weight_decay=0.0), step, seed=0, slow=[modules["b"].weight])
    moved = {name: (p.detach() - start[name]).item() for name, p in modules.named_parameters()}
    assert moved["b.weight"] == pytest.approx(0.2 * moved["a.weight"], rel=1e-3)
    assert moved["a.weight"] < 0

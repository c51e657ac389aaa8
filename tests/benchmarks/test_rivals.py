import pytest
import torch
from torch import Tensor

from benchmarks import rivals
from loomweight.architectures import CNN_S
from loomweight.bundle import Zoo
from loomweight.weight_vae import flatten
from trainer import evalsets
from trainer.evalsets import EvalSet, Problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    brightness = torch.arange(4)[:, None, None, None, None] / 5
    x = brightness + torch.rand(4, 8, 3, 32, 32, generator=generator) / 5
    features = torch.eye(4, 12)[:, None] + 0.2 * torch.randn(4, 8, 12, generator=generator)
    return evalsets.draw(EvalSet("made", x[:, :5], features[:, :5], x[:, 5:], features[:, 5:]), 3, 2, 0)


@pytest.fixture(scope="module")
def trunk() -> dict[str, Tensor]:
    initial = CNN_S.initial(3, torch.Generator().manual_seed(0))
    return {k: initial[k] for k in CNN_S.trunk_shapes()}


def test_what_reads_the_encoder_pays_for_it(problem: Problem) -> None:
    found = rivals.on_features(problem, encoded=5.0)
    assert set(found) == set(rivals.ON_FEATURES)
    assert all(accuracy == 1.0 and seconds > 5 for accuracy, seconds in found.values())


def test_training_is_left_out_above_the_limit(problem: Problem, trunk: dict[str, Tensor]) -> None:
    assert set(rivals.trained(CNN_S, trunk, problem, most_steps=10)) == {"trunk probe", "fine-tune 10"}
    found = rivals.trained(CNN_S, trunk, problem, most_steps=100)
    assert {n for n in found if "100" in n} == {"fine-tune 100", "scratch 100", "trunk probe, then fine-tune 100"}
    assert "fine-tune 1000" not in found


def test_both_rivals_from_the_zoo_pay_for_running_it(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [flatten(CNN_S, CNN_S.initial(k, torch.Generator().manual_seed(k))) for k in (3, 4, 2)]
    owners = torch.cat([torch.full((len(rows),), i) for i, (_, rows) in enumerate(models)])
    tensors = {"trunks": torch.stack([t for t, _ in models]), "rows": torch.cat([r for _, r in models])}
    clock = iter(range(0, 1000, 10))  # every look at the clock finds it ten seconds later
    monkeypatch.setattr(rivals.time, "perf_counter", lambda: next(clock))
    found = rivals.from_zoo(CNN_S, Zoo({**tensors, "row_models": owners}), problem, encoded=100.0)
    assert {n: s for n, (_, s) in found.items()} == {
        "best zoo model by the samples": 20,
        "best zoo trunk, new head": 20,
    }

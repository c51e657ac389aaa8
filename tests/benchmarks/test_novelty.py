import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks import novelty


def test_rank_correlation_is_scipys_and_undefined_for_a_constant() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 5, 40).astype(float)  # with ties
    b = a + rng.normal(size=40)
    assert novelty.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert novelty.spearman(a, -a) == pytest.approx(-1)
    assert np.isnan(novelty.spearman(a, np.ones(40)))


def test_auc_is_the_share_of_pairs_in_order() -> None:
    score = np.array([1.0, 2.0, 2.0, 3.0])
    assert novelty.auc(score, np.array([False, False, True, True])) == pytest.approx(3.5 / 4)
    assert np.isnan(novelty.auc(score, np.zeros(4, bool)))


def test_intervals_are_over_sets_not_tasks() -> None:
    values = np.repeat([0.0, 1.0], 100)  # two sets of a hundred equal tasks each: nearly nothing is known
    found = novelty.over_sets(["a"] * 100 + ["b"] * 100, lambda i: float(values[i].mean()))
    assert found is not None
    assert (found["value"], found["low"], found["high"], found["sets"]) == (0.5, 0.0, 1.0, 2)
    assert novelty.over_sets(["a"], lambda i: float("nan")) is None


def test_a_score_that_predicts_is_told_from_one_that_does_not() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for s in range(12):
        for _ in range(5):
            lead = rng.normal() / 10 + 0.1 - 0.03 * s
            rows.append({"set": str(s), "lead": lead, "accuracy": 0.5 + lead, "scores": {"good": s, "blind": 1.0}})
    good, blind = novelty.summarise(rows, ["good", "blind"])
    assert good["spearman_with_lead"]["high"] < 0
    assert good["auc_for_negative_lead"]["value"] > 0.6
    assert blind["spearman_with_lead"] is None


@pytest.mark.parametrize("how", sorted(novelty.SPOILT))
def test_spoilt_images_stay_images(how: str) -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = novelty.SPOILT[how](x)
    assert y.shape == x.shape
    assert 0 <= float(y.min()) <= float(y.max()) <= 1
    assert torch.equal(y, novelty.SPOILT[how](x))
    assert not torch.equal(y, x)

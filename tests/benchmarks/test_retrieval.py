import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks import retrieval


def test_retrieval_measures_by_hand() -> None:
    # Given two queries whose right answers stand at places 1 and 3, and at place 2
    similarity = np.array([[0.9, 0.5, 0.4, 0.1], [0.8, 0.2, 0.3, 0.9]])
    gallery = np.array([0, 1, 0, 1])
    found = retrieval.retrieve(similarity, np.array([0, 1]), gallery, ranks=(1, 2))
    # Then average precision is (1 + 2/3) / 2, and (1 + 2/4) / 2 for the second
    assert found.average_precision[0] == pytest.approx((1 + 2 / 3) / 2)
    assert found.average_precision[1] == pytest.approx((1 + 2 / 4) / 2)
    assert found.rank == {1: {0: 1.0, 1: 1.0}, 2: {0: 1.0, 1: 1.0}}
    together = [0.9, 0.4, 0.2, 0.9]
    apart = [0.5, 0.1, 0.8, 0.3]
    wins = sum((a > b) + (a == b) / 2 for a in together for b in apart)
    assert found.auc == pytest.approx(wins / 16)


def test_chance_is_near_the_share_of_right_answers() -> None:
    queries, gallery = np.repeat(np.arange(20), 2), np.repeat(np.arange(20), 8)
    assert 0.05 < retrieval.chance(queries, gallery, draws=20) < 0.12


def test_nearest_mean_by_task() -> None:
    train = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    test = np.array([[0.9, 0.1], [0.2, 0.9], [0.9, 0.2]])
    found = retrieval.nearest_mean(train, np.array([0, 0, 1]), test, np.array([0, 1, 1]))
    assert found == {0: 1.0, 1: 0.5}


def test_clusters_that_are_tasks_score_one() -> None:
    labels = np.repeat(np.arange(3), 5)
    vectors = np.eye(3)[labels] + 0.01 * np.random.default_rng(0).standard_normal((15, 3))
    assert retrieval.clusters(vectors, labels) == pytest.approx(1)


def test_spearman_over_pairs_of_tasks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 8, 8))
    a, b = a + a.T, np.round(b + b.T + a + a.T)
    found = retrieval.spearman_over_tasks(a, b, samples=200)
    upper = np.triu_indices(8, 1)
    assert found["value"] == pytest.approx(spearmanr(a[upper], b[upper]).statistic)
    assert found["low"] < found["value"] < found["high"]
    assert np.isnan(retrieval.spearman_over_tasks(a, np.ones((8, 8)), samples=5)["value"])

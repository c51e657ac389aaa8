"""Measures of retrieval by similarity, with one figure a task so that intervals and differences go over tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Retrieval:
    """Queries against a gallery: a mean per task for each measure, and pair AUC over all of them."""

    average_precision: dict[int, float]
    rank: dict[int, dict[int, float]]  # k -> task -> share of queries with a right answer among the first k
    auc: float


def retrieve(similarity: Floats, queries: Ints, gallery: Ints, ranks: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """Similarities (queries, gallery) and both sides' tasks to measures. Ties are broken by gallery order."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    right = gallery[order] == queries[:, None]
    hits = right.cumsum(1)
    precision = hits / np.arange(1, right.shape[1] + 1)
    ap = (precision * right).sum(1) / np.maximum(1, right.sum(1))
    tasks = np.unique(queries)
    together = (queries[:, None] == gallery).ravel()
    auc = float(roc_auc_score(together, similarity.ravel())) if 0 < together.sum() < together.size else float("nan")
    return Retrieval(
        {int(t): float(ap[queries == t].mean()) for t in tasks},
        {k: {int(t): float(right[queries == t, :k].any(1).mean()) for t in tasks} for k in ranks},
        auc,
    )


def chance(queries: Ints, gallery: Ints, *, draws: int = 200, seed: int = 0) -> float:
    """Mean average precision of random similarities."""
    rng = np.random.default_rng(seed)
    found = [
        np.mean(list(retrieve(rng.random((len(queries), len(gallery))), queries, gallery).average_precision.values()))
        for _ in range(draws)
    ]
    return float(np.mean(found))


def nearest_mean(train: Floats, labels: Ints, test: Floats, truth: Ints) -> dict[int, float]:
    """Top-1 by task: the class whose mean training vector has the largest cosine with a test vector."""
    classes = np.unique(labels)
    means = np.stack([train[labels == c].mean(0) for c in classes])
    means /= np.maximum(1e-12, np.linalg.norm(means, axis=1, keepdims=True))
    right = classes[(test @ means.T).argmax(1)] == truth
    return {int(t): float(right[truth == t].mean()) for t in np.unique(truth)}


def clusters(vectors: Floats, labels: Ints, *, seed: int = 0) -> float:
    """Normalised mutual information of k-means clusters (k = number of tasks) with the tasks."""
    found = KMeans(len(np.unique(labels)), n_init=5, random_state=seed).fit_predict(vectors)
    return float(normalized_mutual_info_score(labels, found))


def spearman_over_tasks(score: Floats, other: Floats, *, samples: int = 2000, seed: int = 0) -> dict[str, float]:
    """Spearman correlation of symmetric (t, t) matrices over pairs of tasks; interval by drawing tasks, not pairs."""
    upper = np.triu_indices(len(score), 1)
    rng = np.random.default_rng(seed)
    value = _spearman(score[upper], other[upper])
    if np.isnan(value):
        return {"value": value, "low": value, "high": value, "tasks": len(score)}
    draws = []
    for _ in range(samples):
        places = rng.integers(len(score), size=len(score))
        one, two = score[np.ix_(places, places)][upper], other[np.ix_(places, places)][upper]
        kept = (places[:, None] != places)[upper]
        draws.append(_spearman(one[kept], two[kept]))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "tasks": len(score)}


def _midranks(x: Floats) -> Floats:
    """Ranks in which ties share their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def _spearman(a: Floats, b: Floats) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(_midranks(a), _midranks(b))[0, 1])

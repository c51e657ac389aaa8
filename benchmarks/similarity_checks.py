"""Around the protocols: control sets, exact invariance, learning curves, calibration; see `benchmarks.similarity`."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Generator

from benchmarks import results
from benchmarks.retrieval import Ints, chance, nearest_mean
from benchmarks.similarity_bench import OURS, Bench, asks, cells, scored, vectors
from benchmarks.similarity_methods import BASELINES, rival
from benchmarks.similarity_methods import state_dicts as tensors_of
from loomweight.similarity.layers import read
from loomweight.similarity.permute import shuffled
from trainer import lps, modelset
from trainer.lps import Collection


def controls(bench: Bench, sets: dict[str, Path]) -> list[dict[str, Any]]:
    """Protocol B's retrieval by the main set's network on other sets: their tasks that share no class with training."""
    taken = {c for t in bench.split.train for c in t.classes}
    rows = []
    for name, run in sets.items():
        models = modelset.load(run)
        examples = lps.collect([models])
        unseen = examples.of_tasks([t for t in models.tasks if not taken & set(t.classes)])
        labels: Ints = unseen.labels.numpy()
        query = asks(unseen)
        luck = chance(labels[query], labels[~query])
        tensors = tensors_of([models], unseen)
        everyone = np.ones(len(labels), bool)
        methods = {n: rival(n, unseen, tensors, everyone) for n in BASELINES}
        methods[OURS] = vectors(bench.ours, unseen)
        for method, found in methods.items():
            if found is not None:
                s = scored(found, unseen)
                above = results.interval([v - luck for v in s["map"].values()])
                rows.append(
                    {"set": name, "method": method, **s, "map": cells(s["map"]), "chance": luck, "above_chance": above}
                )
    return rows


def exactness(bench: Bench) -> list[dict[str, Any]]:
    """Similarity of unseen models with copies whose hidden units are in another order."""
    examples = bench.everything.of_tasks(bench.unseen)
    tensors = tensors_of([bench.models], examples)
    generator = Generator().manual_seed(0)
    copies = Collection(examples.models, tuple(read(shuffled(t, generator)) for t in tensors))
    same = (vectors(bench.ours, examples) * vectors(bench.ours, copies)).sum(1)
    return [
        {"models": len(same), "least_similarity": float(same.min()), "largest_error": float(np.abs(1 - same).max())}
    ]


def matrix(bench: Bench, *, models: int = 4) -> list[dict[str, Any]]:
    """Scores between the first models of every unseen task, ordered by task."""
    unseen = bench.everything.of_tasks(bench.unseen)
    chosen = unseen.at([i for i, m in enumerate(unseen.models) if m.seed < models])
    found = vectors(bench.ours, chosen)
    names = [" / ".join(m.task.names) for m in chosen.models]
    return [{"tasks": names, "scores": (found @ found.T).round(3).tolist()}]


def curves(bench: Bench) -> list[dict[str, Any]]:
    """Protocol B's mAP and protocol A's top-1 by tasks and models that were learned from."""
    rows: list[dict[str, Any]] = []
    unseen = bench.everything.of_tasks(bench.unseen)
    whole = len(bench.split.train)
    most = bench.recipe.modelset.seeds
    for tasks, seeds in [(n, most) for n in (5, 10, 20, whole) if n <= whole] + [
        (whole, n) for n in (2, 4, 6) if n < most
    ]:
        chosen = bench.everything.of_tasks(bench.split.train[:tasks])
        chosen = chosen.at([i for i, m in enumerate(chosen.models) if m.seed < seeds])
        network = bench.learn("chain", "contrastive", chosen)
        found = scored(vectors(network, unseen), unseen)
        rows.append({"protocol": "B", "tasks": tasks, "models": seeds, "map": cells(found["map"]), "auc": found["auc"]})
    examples = bench.everything.of_tasks([t for t in bench.models.tasks if not t.withheld])
    test = np.array([m.seed >= bench.recipe.lps.protocol_seeds for m in examples.models])
    labels: Ints = examples.labels.numpy()
    for seeds in range(2, bench.recipe.lps.protocol_seeds + 1, 2):
        train = np.array([m.seed < seeds for m in examples.models])
        network = bench.learn("chain", "contrastive", examples.at(np.flatnonzero(train).tolist()))
        found_a = vectors(network, examples)
        top = nearest_mean(found_a[train], labels[train], found_a[test], labels[test])
        rows.append({"protocol": "A", "tasks": len(top), "models": seeds, "top1": cells(top)})
    return rows


def calibration(bench: Bench) -> list[dict[str, Any]]:
    """How far the same-task probability, fitted on validation tasks, can be believed on withheld ones."""
    if not bench.split.withheld:
        return []
    validation, withheld = (bench.everything.of_tasks(t) for t in (bench.split.validation, bench.split.withheld))
    fitted = lps.calibrate(lps.embed(bench.ours, validation.readings).models, validation)
    found = vectors(bench.ours, withheld)
    i, j = np.triu_indices(len(found), 1)
    labels = withheld.labels.numpy()
    together = labels[i] == labels[j]
    p = np.array([fitted.probability(s, same_architecture=True) for s in (found[i] * found[j]).sum(1)])
    weight = np.where(together, 0.5 / together.sum(), 0.5 / (~together).sum())  # the prior that it was fitted with
    rows = []
    for low in np.arange(0, 1, 0.1):
        inside = (p >= low) & (p < low + 0.1 + (low > 0.85))
        if inside.any():
            share = float((weight * together)[inside].sum() / weight[inside].sum())
            rows.append(
                {
                    "from": round(float(low), 1),
                    "mean": float(np.average(p[inside], weights=weight[inside])),
                    "same_task": share,
                    "pairs": int(inside.sum()),
                    "weight": float(weight[inside].sum()),
                }
            )
    return rows

"""Protocols A to D of the similarity benchmark; see `benchmarks.similarity`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks import transfer
from benchmarks.retrieval import Floats, Ints, chance, nearest_mean, retrieve, spearman_over_tasks
from benchmarks.similarity_bench import LEARNED, OURS, Bench, against, cells, scored, vectors
from benchmarks.similarity_methods import BASELINES, CONTROLS, by_running, pooled, probe_images, rival, standard
from benchmarks.similarity_methods import state_dicts as tensors_of
from trainer import data, lps, modelset, pairs
from trainer.lps import Collection


def protocol_a(bench: Bench) -> list[dict[str, Any]]:
    """Top-1 on new models of seen tasks."""
    open_tasks = [t for t in bench.models.tasks if not t.withheld]
    examples = bench.everything.of_tasks(open_tasks)
    train = np.array([m.seed < bench.recipe.lps.protocol_seeds for m in examples.models])
    labels: Ints = examples.labels.numpy()
    learned_from = examples.at(np.flatnonzero(train).tolist())
    tensors = tensors_of([bench.models], examples)
    rows: list[dict[str, Any]] = []

    def add(method: str, kind: str, found: Floats | None) -> None:
        if found is not None:
            top = nearest_mean(found[train], labels[train], found[~train], labels[~train])
            rows.append({"method": method, "kind": kind, "top1": top})

    for name in (*BASELINES, *CONTROLS):
        add(name, "baseline" if name in BASELINES else "control", rival(name, examples, tensors, train))
    stats = rival("statistics", examples, tensors, train)
    if stats is not None:
        fitted = LogisticRegression(C=10, max_iter=2000).fit(stats[train], labels[train])
        right = fitted.predict(stats[~train]) == labels[~train]
        top = {int(t): float(right[labels[~train] == t].mean()) for t in np.unique(labels)}
        rows.append({"method": "statistics, logistic regression", "kind": "baseline", "top1": top})
    for kind in ("chain", "chain-linear"):
        add(f"{kind}, untrained", "ours", vectors(bench.untrained(kind, learned_from), examples))
    for kind, objective in LEARNED:
        network = bench.learn(kind, objective, learned_from)
        add(f"{kind}, {objective}", "ours", vectors(network, examples))
    for name, found in _upper(bench, examples, tensors).items():
        add(name, "runs the models", found)
    against(rows, "top1")
    return rows


def _upper(bench: Bench, examples: Collection, tensors: list[dict[str, torch.Tensor]]) -> dict[str, Floats]:
    domain = data.load(bench.recipe, bench.run, "test", bench.recipe.modelset.domain)
    return by_running(examples.models, tensors, probe_images(domain, 128, bench.recipe.seed))


def protocol_b(bench: Bench) -> list[dict[str, Any]]:
    """Retrieval among models of unseen tasks, and among the withheld classes' alone."""
    learned_from = bench.everything.of_tasks(bench.split.train)
    both = bench.everything.of_tasks((*bench.split.train, *bench.unseen))
    train = np.array([m.task in bench.split.train for m in both.models])
    tensors = tensors_of([bench.models], both)
    unseen = both.at(np.flatnonzero(~train).tolist())
    withheld = np.array([m.task.withheld for m in unseen.models])
    rows: list[dict[str, Any]] = []

    def add(method: str, kind: str, found: Floats | None) -> None:
        if found is None:
            return
        row = {"method": method, "kind": kind, **scored(found, unseen)}
        if withheld.any():
            own = scored(found[withheld], unseen.at(np.flatnonzero(withheld).tolist()))
            row["map_withheld"] = cells(own["map"])
        rows.append(row)

    for name in (*BASELINES, *CONTROLS):
        found = rival(name, both, tensors, train)
        add(name, "baseline" if name in BASELINES else "control", None if found is None else found[~train])
    for kind in ("chain", "chain-linear"):
        add(f"{kind}, untrained", "ours", vectors(bench.untrained(kind, learned_from), unseen))
    for kind, objective in LEARNED:
        network = bench.learn(kind, objective, learned_from)
        add(f"{kind}, {objective}", "ours", vectors(network, unseen))
    mixed_up = _mixed_labels(learned_from, bench.recipe.seed)
    add(
        "chain, task labels shuffled in training",
        "control",
        vectors(bench.learn("chain", "contrastive", mixed_up), unseen),
    )
    own_tensors = [t for t, seen in zip(tensors, train, strict=True) if not seen]
    for name, found in _upper(bench, unseen, own_tensors).items():
        add(name, "runs the models", found)
    against(rows, "map")
    return rows


def _mixed_labels(examples: Collection, seed: int) -> Collection:
    """The same models with each other's tasks."""
    order = np.random.default_rng(seed).permutation(len(examples.models))
    moved = [replace(m, task=examples.models[o].task) for m, o in zip(examples.models, order, strict=True)]
    return Collection(tuple(moved), examples.readings)


def protocol_c(bench: Bench, mixed: Path) -> list[dict[str, Any]]:
    """Queries of other architectures against a gallery of the one that was learned from; unseen tasks."""
    learned_from = bench.everything.of_tasks(bench.split.train)
    gallery = bench.everything.of_tasks(bench.unseen)
    others = lps.collect([modelset.load(mixed)]).of_tasks(bench.unseen)
    known = {m.network for m in gallery.models}
    ways: dict[str, Callable[[Collection], Floats]] = {
        "statistics and singular values, pooled": _pooled_by(learned_from),
    }
    start = bench.untrained("chain", learned_from)
    ways["chain, untrained"] = lambda c: vectors(start, c)
    for kind in lps.NETWORKS:
        network = bench.learn(kind, "contrastive", learned_from)
        ways[f"{kind}, contrastive"] = lambda c, n=network: vectors(n, c)
    names = {t.names: i for i, t in enumerate(bench.unseen)}
    target: Ints = np.array([names[m.task.names] for m in gallery.models])
    rows = []
    for name in sorted({m.network for m in others.models} - known):
        queries = others.at([i for i, m in enumerate(others.models) if m.network == name])
        truth: Ints = np.array([names[m.task.names] for m in queries.models])
        accuracy = float(np.mean([m.test_accuracy for m in queries.models]))
        for method, way in ways.items():
            r = retrieve(way(queries) @ way(gallery).T, truth, target)
            row = {"network": name, "method": method, "map": cells(r.average_precision), "auc": r.auc}
            rows.append(
                {**row, "rank1": cells(r.rank[1]), "accuracy": accuracy, "chance": chance(truth, target, draws=50)}
            )
    return rows


def _pooled_by(train: Collection) -> Callable[[Collection], Floats]:
    start = torch.stack([pooled(r) for r in train.readings])

    def way(examples: Collection) -> Floats:
        rows = torch.cat((start, torch.stack([pooled(r) for r in examples.readings])))
        chosen = np.arange(len(rows)) < len(start)
        return standard(rows, chosen, scaled=True)[len(start) :]

    return way


def protocol_d(bench: Bench) -> list[dict[str, Any]]:
    """Spearman of the score between tasks with their superclass relation and with transfer gain."""
    tasks = bench.unseen
    unseen = bench.everything.of_tasks(tasks)
    gain = transfer.gains(bench.recipe, bench.run, bench.models, tasks, store=bench.run / "lps" / "transfer.npy")
    related = np.array([[pairs.relation(a, b) for b in tasks] for a in tasks])
    both = bench.everything.of_tasks((*bench.split.train, *tasks))
    train = np.array([m.task in bench.split.train for m in both.models])
    tensors = tensors_of([bench.models], both)
    learned_from = bench.everything.of_tasks(bench.split.train)
    found: dict[str, Floats | None] = {n: rival(n, both, tensors, train) for n in (*BASELINES, *CONTROLS)}
    found = {n: None if v is None else v[~train] for n, v in found.items()}
    for kind in lps.NETWORKS:
        network = bench.learn(kind, "contrastive", learned_from)
        found[f"{kind}, contrastive"] = vectors(network, unseen)
    rows = []
    for method, v in found.items():
        if v is None:
            continue
        score = _between_tasks(v, unseen)
        rows.append(
            {
                "method": method,
                "superclass": spearman_over_tasks(score, related),
                "transfer_gain": spearman_over_tasks(score, (gain + gain.T) / 2),
                "scores": score.round(4).tolist() if method == OURS else None,
            }
        )
    rows.append({"method": "measured", "gain": gain.round(4).tolist(), "tasks": [" / ".join(t.names) for t in tasks]})
    return rows


def _between_tasks(found: Floats, examples: Collection) -> Floats:
    labels = examples.labels.numpy()
    one_hot = (labels[:, None] == np.unique(labels)).astype(float)
    means = one_hot.T @ found / one_hot.sum(0)[:, None]
    score: Floats = means @ means.T
    return score

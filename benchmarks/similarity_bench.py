"""What the parts of the similarity benchmark share: the set, its networks (trained once), how methods are scored."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Generator

from benchmarks import results
from benchmarks.retrieval import Floats, Ints, clusters, retrieve
from loomweight.similarity.network import ChainNetwork
from trainer import lps, pairs
from trainer.lps import Collection, TaskSplit
from trainer.modelset import ModelSet
from trainer.recipe import Recipe

LEARNED = [(n, o) for n in lps.NETWORKS for o in lps.OBJECTIVES]
OURS = "chain, contrastive"
QUERIES = 2
"""Models of each task that ask, in protocol B; the others are the gallery."""


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    recipe: Recipe
    run: Path
    models: ModelSet

    @cached_property
    def everything(self) -> Collection:
        """Every model of the set, read."""
        return lps.collect([self.models])

    @cached_property
    def split(self) -> TaskSplit:
        """Protocol B's tasks."""
        return lps.split_tasks(self.models.tasks, self.recipe.lps)

    @property
    def unseen(self) -> tuple[pairs.PairTask, ...]:
        """Tasks that protocol B did not train on and that share no class with those it did."""
        return (*self.split.validation, *self.split.withheld)

    def learn(self, kind: str, objective: str, examples: Collection) -> lps.Network:
        """A network trained on some examples, once: it is kept in the run's folder."""
        network, _ = lps.train(self.run / "lps", self.recipe.lps, kind, objective, examples, seed=self.recipe.seed)
        return network

    @cached_property
    def ours(self) -> lps.Network:
        """The network that ships, as protocol B trains it."""
        return self.learn("chain", "contrastive", self.everything.of_tasks(self.split.train))

    def untrained(self, kind: str, examples: Collection) -> ChainNetwork:
        """Our network as it starts, its mean set to that of the examples."""
        network = lps.make(kind, self.recipe.lps, Generator().manual_seed(self.recipe.seed))
        assert isinstance(network, ChainNetwork)
        network.settle(examples.readings)
        return network.eval()


def vectors(network: lps.Network, examples: Collection) -> Floats:
    """Embeddings (n, dim) in double precision."""
    found: Floats = lps.embed(network, examples.readings).models.double().numpy()
    return found


def cells(per_task: dict[int, float]) -> dict[str, float]:
    """A mean over tasks with its interval."""
    return results.interval(list(per_task.values()))


def against(rows: list[dict[str, Any]], measure: str) -> None:
    """Add to each row its paired difference from the best baseline in a measure; per-task figures are dropped."""
    best = max((r for r in rows if r["kind"] == "baseline"), key=lambda r: np.mean(list(r[measure].values())))
    for row in rows:
        difference = [row[measure][t] - best[measure][t] for t in best[measure]]
        row["ahead_of_best_baseline"] = {**results.interval(difference), "baseline": best["method"]}
    for row in rows:
        row[measure] = cells(row[measure])


def scored(found: Floats, examples: Collection) -> dict[str, Any]:
    """Protocol B's measures of one method, average precision still by task."""
    labels: Ints = examples.labels.numpy()
    query = asks(examples)
    r = retrieve(found[query] @ found[~query].T, labels[query], labels[~query])
    return {
        "map": r.average_precision,
        **{f"rank{k}": cells(v) for k, v in r.rank.items()},
        "auc": r.auc,
        "nmi": clusters(found, labels),
    }


def asks(examples: Collection) -> NDArray[np.bool_]:
    """Which models of a collection are queries."""
    return np.array([m.seed < QUERIES for m in examples.models])

"""Stage `lps`: second-order networks, which learn from model sets what models of one task have in common.

Networks: `chain` (ours), `chain-linear` (the same without rectifiers: products of weight matrices alone) and
`second-order` (the published one, reconstructed). Objectives: `contrastive` (supervised contrastive over task labels;
Khosla et al. 2020) and `softmax` over task ids. The stage trains what ships: `chain`, contrastive, on protocol B's
training tasks, calibrated on pairs of models of tasks that it was not trained on. Tasks of withheld classes take no
part in either.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor, nn

from loomweight import bundle
from loomweight.similarity import index, scoring
from loomweight.similarity.layers import Reading, read
from loomweight.similarity.network import ChainConfig, ChainNetwork, Embeddings, unit
from loomweight.similarity.scoring import Calibration, Familiar
from loomweight.similarity.second_order import SecondOrderConfig, SecondOrderNetwork
from loomweight.similarity.spectrum import structure
from trainer import modelset, nets
from trainer.loop import fit
from trainer.modelset import ModelSet, SetModel
from trainer.pairs import PairTask
from trainer.parallel import team
from trainer.recipe import LpsRecipe, Recipe

NETWORKS = ("chain", "chain-linear", "second-order")
OBJECTIVES = ("contrastive", "softmax")
Network = ChainNetwork | SecondOrderNetwork


@dataclass(frozen=True)
class Collection:
    """Models read into memory, with what they are."""

    models: tuple[SetModel, ...]
    readings: tuple[Reading, ...]

    @property
    def labels(self) -> Tensor:
        """Task numbers (n,); models of one task in different sets share it."""
        names = {t: i for i, t in enumerate(dict.fromkeys(m.task.names for m in self.models))}
        return torch.tensor([names[m.task.names] for m in self.models])

    def of_tasks(self, tasks: Sequence[PairTask]) -> "Collection":
        """The models of some tasks."""
        wanted = {t.names for t in tasks}
        kept = [i for i, m in enumerate(self.models) if m.task.names in wanted]
        return self.at(kept)

    def at(self, places: Sequence[int]) -> "Collection":
        """The models at some places, in that order."""
        return Collection(tuple(self.models[i] for i in places), tuple(self.readings[i] for i in places))


def collect(sets: Sequence[ModelSet]) -> Collection:
    """Read every model of some sets."""
    found = [(m, read(s.tensors(m))) for s in sets for m in s.models]
    return Collection(tuple(m for m, _ in found), tuple(r for _, r in found))


@dataclass(frozen=True)
class TaskSplit:
    """Protocol B's tasks: those that train, those that choose and calibrate, those that nobody may train on.

    No class of one part is in another: tasks that share a class with the first part are left out.
    """

    train: tuple[PairTask, ...]
    validation: tuple[PairTask, ...]
    withheld: tuple[PairTask, ...]


def split_tasks(tasks: Sequence[PairTask], settings: LpsRecipe) -> TaskSplit:
    """Split a set's tasks."""
    open_tasks = [t for t in tasks if not t.withheld]
    train = tuple(open_tasks[: settings.protocol_tasks])
    taken = {c for t in train for c in t.classes}
    validation = tuple(t for t in open_tasks[settings.protocol_tasks :] if not taken & set(t.classes))
    return TaskSplit(train, validation, tuple(t for t in tasks if t.withheld))


def make(kind: str, settings: LpsRecipe, generator: Generator) -> Network:
    """A fresh network; ValueError for an unknown kind."""
    if kind == "second-order":
        return SecondOrderNetwork(SecondOrderConfig(), generator)
    if kind not in NETWORKS:
        raise ValueError(f"no second-order network {kind!r}: {', '.join(NETWORKS)}")
    shape = ChainConfig(settings.probes, settings.side, kind == "chain", settings.slots)
    return ChainNetwork(shape, generator)


def train(
    folder: Path, settings: LpsRecipe, kind: str, objective: str, examples: Collection, *, seed: int
) -> tuple[Network, float]:
    """Train one network on a collection's tasks; the network, ready to embed, and the seconds it took.

    Its state is kept in `folder`, under a name that says what it learns from and how: the same call resumes or
    reads it, another one starts afresh.
    """
    if kind == "second-order":
        settings = replace(settings, steps=settings.second_order_steps)
    network = make(kind, settings, Generator().manual_seed(seed))
    labels = examples.labels
    tasks = int(labels.max()) + 1
    members = [torch.nonzero(labels == t).flatten() for t in range(tasks)]
    if objective not in OBJECTIVES:
        raise ValueError(f"no objective {objective!r}: {', '.join(OBJECTIVES)}")
    modules, crew = nn.ModuleDict({"network": network}), team()
    rows = nn.Linear(network.dim, tasks, bias=False)
    with torch.no_grad():
        rows.weight.copy_(unit(torch.randn(rows.weight.shape, generator=Generator().manual_seed(seed))))
    if objective == "softmax":
        modules["tasks"] = rows

    def step(_: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = _batch(members, settings, generator)
        mine = crew.own(len(chosen))
        vectors = network([examples.readings[i] for i in chosen[mine].tolist()]).models
        own = labels[chosen]
        if objective == "softmax":
            # Rows of unit length: the classifier compares directions, as the score will.
            logits = vectors @ unit(rows.weight).T / settings.temperature
            loss = crew.share(len(chosen)) * F.cross_entropy(logits, own[mine])
            return loss, {"correct": float((logits.argmax(1) == own[mine]).float().mean())}
        whole = crew.together(vectors, len(chosen))
        loss = supervised_contrastive(whole, own, settings.temperature)
        loss = loss - (1 - 1 / crew.size) * loss.detach()  # value shared out; each has its part of the gradient
        return loss, {"nearest_right": _nearest_right(whole.detach(), own)}

    taught = [(m.task.names, m.network, m.seed) for m in examples.models]
    digest = hashlib.sha256(repr((settings, kind, objective, taught, seed)).encode()).hexdigest()[:8]
    network.train()
    if isinstance(network, ChainNetwork):
        network.mean_of = crew.mean
    seconds = fit(
        folder / f"{kind}-{objective}-{digest}", modules, settings, step, seed=seed, save_every=25, split=True
    )
    if isinstance(network, ChainNetwork):
        network.settle(examples.readings)
    return network.eval().requires_grad_(False), seconds


def _batch(members: list[Tensor], settings: LpsRecipe, generator: Generator) -> Tensor:
    picked = torch.randperm(len(members), generator=generator)[: settings.tasks].tolist()
    drawn = [members[t][torch.randperm(len(members[t]), generator=generator)[: settings.models]] for t in picked]
    return torch.cat(drawn)


def supervised_contrastive(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of -log p(positive), averaged over positives (Khosla et al. 2020, eq. 2); vectors are unit."""
    itself = torch.eye(len(labels), dtype=torch.bool)
    logits = (vectors @ vectors.T / temperature).masked_fill(itself, -1e9)
    positive = (labels[:, None] == labels) & ~itself
    counts = positive.sum(1)
    each = -(logits.log_softmax(1) * positive).sum(1)[counts > 0] / counts[counts > 0]
    return each.mean()


def _nearest_right(vectors: Tensor, labels: Tensor) -> float:
    near = (vectors @ vectors.T).fill_diagonal_(-2).argmax(1)
    return float((labels[near] == labels).float().mean())


@torch.no_grad()
def embed(network: Network, readings: Sequence[Reading], *, at_once: int = 64) -> Embeddings:
    """Embed many checkpoints, a few at a time."""
    parts = [network(readings[i : i + at_once]) for i in range(0, len(readings), at_once)]
    return Embeddings(torch.cat([p.models for p in parts]), [v for p in parts for v in p.layers])


def calibrate(vectors: Tensor, examples: Collection) -> Calibration:
    """Fit probability on pairs of models; kinds of pair that the collection lacks take the other kind's numbers."""
    i, j = torch.triu_indices(len(vectors), len(vectors), 1)
    scores = (vectors[i] * vectors[j]).sum(1).numpy()
    labels, prints = examples.labels, [r.fingerprint for r in examples.readings]
    together = (labels[i] == labels[j]).numpy()
    alike = np.array([prints[a] == prints[b] for a, b in zip(i.tolist(), j.tolist(), strict=True)])
    found: dict[bool, tuple[float, float]] = {}
    for kind in (True, False):
        x, y = scores[alike == kind], together[alike == kind]
        if y.any() and not y.all():
            # Balanced: half of the pairs share their task. Hardly shrunk: thousands of pairs, two numbers.
            fitted = LogisticRegression(C=1e4, class_weight="balanced").fit(x[:, None], y)
            found[kind] = (float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))
    if not found:
        raise ValueError("calibration needs pairs of one task and pairs of two")
    return Calibration(
        same=found.get(True, found.get(False, (0, 0))), different=found.get(False, found.get(True, (0, 0)))
    )


def build(recipe: Recipe, run: Path, out: Path, *, also: Sequence[Path] = ()) -> str:
    """Train what ships on the sets of `run` and of the runs `also`, and write it into the bundle `out`; its id."""
    settings = recipe.lps
    sets = [modelset.load(r) for r in (run, *also)]
    examples = collect(sets)
    split = split_tasks(sets[0].tasks, settings)
    learned, unseen = examples.of_tasks(split.train), examples.of_tasks(split.validation)
    network, seconds = train(run / "lps", settings, "chain", "contrastive", learned, seed=recipe.seed)
    assert isinstance(network, ChainNetwork)
    own, held = (embed(network, c.readings).models for c in (learned, unseen))
    labels = learned.labels
    anchors = unit(torch.stack([own[labels == t].mean(0) for t in range(int(labels.max()) + 1)]))
    familiar = Familiar(_untrained_below(learned), float((held @ anchors.T).amax(1).quantile(0.01)))
    card = _card(recipe, sets, split, seconds, learned, unseen, held)
    part_id = ""
    if team().writes:
        part_id = scoring.write(out, network, calibrate(held, unseen), familiar, anchors, card)
        if (out / bundle.MANIFEST).is_file():
            index.build(out)
    return str(team().agreed(part_id))


def _untrained_below(examples: Collection) -> float:
    """Half way between what fresh nets and what trained ones look like, by their upper and lower twentieth."""
    names = sorted({m.network for m in examples.models})
    fresh = [
        structure(read(nets.make(name, 2, Generator().manual_seed(seed)).state_dict()))
        for name in names
        for seed in range(10)
    ]
    trained = [structure(r) for r in examples.readings]
    return float((np.quantile(fresh, 0.95) + np.quantile(trained, 0.05)) / 2)


def _card(
    recipe: Recipe,
    sets: Sequence[ModelSet],
    split: TaskSplit,
    seconds: float,
    learned: Collection,
    unseen: Collection,
    held: Tensor,
) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "training_models": len(learned.models),
        "networks": sorted({m.network for m in learned.models}),
        "training_tasks": [" / ".join(t.names) for t in split.train],
        "calibration_tasks": [" / ".join(t.names) for t in split.validation],
        "nearest_right_on_calibration_tasks": round(_nearest_right(held, unseen.labels), 4),
        "seconds": round(seconds, 1),
        "sets": [json.loads((s.folder / "index.json").read_text())["settings"] for s in sets],
        "never_seen": "classes c with c % 5 == 4 of cifar100",
    }

"""Arms of the literature's tables; see literature.py, which makes the tables."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks import results
from benchmarks.seen_tasks import nearest, vector
from loomweight import candidates as weave
from loomweight.bundle import Bundle
from loomweight.candidates import SCALES, Candidate, Kind, Sampling
from loomweight.loom import Loom, Support
from loomweight.runtime import Runtime, open_runtime
from loomweight.weight_vae import join
from trainer import arms, vae, zoo, zoo_arms
from trainer.evalsets import Problem
from trainer.recipe import Recipe
from trainer.vae import Codes

RIVALS = {"nearest class mean": arms.nearest_class_mean, "logistic probe": arms.logistic_probe}
NOISE = (0.05, 0.1, 0.2)
"""Shares of each tensor's own spread."""
AVERAGED = 8
"""Zoo models in an average, and heads in a mean of samples."""
KEPT = 10
"""Samples that SANE's subsampling keeps of fifty."""


@dataclass(frozen=True)
class Made:
    """A run of one of the recipes, and the bundle that it ended in."""

    recipe: Recipe
    run: Path
    bundle: Bundle
    loom: Loom
    runtime: Runtime

    @classmethod
    def open(cls, recipe: Recipe, run: Path, folder: Path) -> "Made":
        bundle, (target,) = Bundle.open(folder), recipe.targets
        return cls(recipe, run, bundle, bundle.loom(target), open_runtime(bundle, backend="torch", threads=1))

    def sampling(self, count: int, seed: int) -> Sampling:
        defaults = self.bundle.manifest["defaults"]
        return Sampling(defaults["steps"], defaults["guidance"], defaults["temperature"], count, seed)

    def sampled(self, support: Support, count: int, seed: int) -> tuple[Candidate, list[Candidate]]:
        """The conditional mean, and so many networks sampled by diffusion."""
        kinds = [SCALES[0], *(Kind("diffusion", draw=i) for i in range(count))]
        condition = self.loom.condition(support)
        latents = weave.weave(
            self.loom, self.loom.denoise, condition, kinds, self.sampling(count, seed), lambda step, steps: None
        )[0]
        mean, *drawn = (
            weave.decode(self.loom, weave.pending(z, k), support) for z, k in zip(latents, kinds, strict=True)
        )
        return mean, drawn


def cell(values: list[float]) -> dict[str, float]:
    """Mean with its interval, and the standard deviation that the papers report."""
    return {**results.interval(values), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


@dataclass(frozen=True)
class Seen:
    """One data set of a zoo of whole data sets."""

    made: Made
    models: list[Codes]  # those that autoencoder and denoiser were trained on
    held: list[Codes]
    test: tuple[Tensor, Tensor]

    def accuracy(self, trunk: Tensor, rows: Tensor) -> float:
        """Share of the test images that a network gets right."""
        return zoo.accuracy(self.made.loom.spec, join(self.made.loom.spec, trunk, rows), *self.test)

    def given(self, shots: int, spare: int, seed: int) -> tuple[Support, Tensor, Tensor]:
        """So many images a class to condition on; `spare` others (n, 3, 32, 32) with labels (n,), to select by."""
        loom, task = self.made.loom, self.models[0].model.task
        domain = zoo.domain_of(self.made.recipe, self.made.run, task.variant.domain, "train")
        x, y = (t.unflatten(0, (len(task.classes), -1)) for t in task.images(domain, shots + spare, seed=seed))
        few = x[:, :shots].flatten(0, 1)
        parts = (loom.spec.adapt(few), self.made.runtime.encode(few))
        adapted, features, own = (
            t.unflatten(0, (len(x), shots))[None] for t in (*parts, loom.features(loom.vae.shared, parts[0]))
        )
        mask = torch.ones(1, len(x), shots, dtype=torch.bool)
        return Support(adapted, features, own, mask), x[:, shots:].flatten(0, 1), y[:, shots:].flatten()


def seen_arms(
    s: Seen, *, draws: int, samples: int, shots: int, spare: int
) -> tuple[dict[str, list[float]], list[Tensor]]:
    """Test accuracies by arm, and every sampled network as one row of weights."""
    loom, found = s.made.loom, defaultdict[str, list[float]](list)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    coder = vae.load(s.made.run, loom.spec.name)
    for name, models in (("trained on", s.models), ("held out", s.held)):
        for c in models:
            found["trained"].append(s.accuracy(c.trunk, c.rows))
            trunk_code, row_codes = coder.encode(c.trunk[None], c.rows[None])
            decoded = coder.decode(trunk_code)[0], coder.decode_row(row_codes)[0]
            found[f"reconstruction, models {name}"].append(s.accuracy(*decoded))
    for c in s.models:
        for share in NOISE:
            noisy = zoo_arms.with_noise(loom.spec, c.trunk, c.rows, share, generator)
            found[f"noise {share:.0%}"].append(zoo.accuracy(loom.spec, noisy, *s.test))
    vectors = []
    for draw in tqdm(range(draws), mininterval=5):
        support, spare_x, spare_y = s.given(shots, spare, 1000 + draw)
        mean, drawn = s.made.sampled(support, samples, draw)
        accuracy = [s.accuracy(n.trunk, n.rows) for n in drawn]
        chosen_by = [zoo.accuracy(loom.spec, join(loom.spec, n.trunk, n.rows), spare_x, spare_y) for n in drawn]
        order = np.argsort(chosen_by, kind="stable")[::-1]
        found["generated"] += accuracy
        found[f"generated, best of {samples}"].append(accuracy[order[0]])
        found[f"generated, mean of the best {KEPT} of {samples}"].append(
            float(np.mean([accuracy[i] for i in order[:KEPT]]))
        )
        found["conditional mean"].append(s.accuracy(mean.trunk, mean.rows))
        (near,) = weave.retrieve(loom, support, s.made.bundle.zoo(loom.spec.name), s.made.sampling(1, draw))
        found["retrieve"].append(s.accuracy(near.trunk, near.rows))
        picked = [s.models[i] for i in rng.permutation(len(s.models))[:AVERAGED]]
        middle = (torch.stack(part).mean(0) for part in ([c.trunk for c in picked], [c.rows for c in picked]))
        found[f"average of {AVERAGED}"].append(s.accuracy(*middle))
        vectors += [vector(n.trunk, n.rows) for n in drawn]
    return dict(found), vectors


def distances(s: Seen, sampled: list[Tensor]) -> dict[str, Any]:
    """From every sample to its nearest zoo model that the generator knows; beside it the zoo's own distances."""
    known = torch.stack([vector(c.trunk, c.rows) for c in s.models])
    among = nearest(known, known)
    lists = {"generated": nearest(torch.stack(sampled), known), "zoo": among}
    if s.held:
        lists["zoo, held out"] = nearest(torch.stack([vector(c.trunk, c.rows) for c in s.held]), known)
    medians = {name: float(d.median()) for name, d in lists.items()}
    return {
        "medians": medians,
        "ratio": medians["generated"] / medians["zoo"],
        "nearer_than_half": float((lists["generated"] < 0.5 * among.min()).float().mean()),
        **{name: d.tolist() for name, d in lists.items()},
    }


def heads(made: Made, p: Problem) -> dict[str, float]:
    """Accuracy by arm on one few-shot problem."""
    features = p.features.unflatten(0, (p.classes, -1))[None]  # (1, k, m, d)
    support = Support(features, features, features, torch.ones(features.shape[:3], dtype=torch.bool))
    mean, drawn = made.sampled(support, AVERAGED, p.seed)
    fit = [float(F.cross_entropy(F.linear(p.features, n.rows[:, :-1], n.rows[:, -1]), p.y)) for n in drawn]
    rows = {
        "generated": drawn[0].rows,
        f"generated, best of {AVERAGED}": drawn[int(np.argmin(fit))].rows,
        f"mean of {AVERAGED} generated": torch.stack([n.rows for n in drawn]).mean(0),
        "conditional mean": mean.rows,
    }
    logits = {name: F.linear(p.query_features, r[:, :-1], r[:, -1]) for name, r in rows.items()}
    setting = arms.Setting(p.x, p.y, p.features, p.classes, p.seed)
    for name, arm in RIVALS.items():
        logits[name] = arm(setting)(p.query, p.query_features)
    return {name: float((said.argmax(1) == p.query_labels).float().mean()) for name, said in logits.items()}

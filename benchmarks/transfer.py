"""How much a model of one task helps with another: measured, to hold similarity against.

Gain from task s to task t: test accuracy on t of a network that starts as a model of s (its head fresh) and is
trained on a few images of t, less that of the same network from fresh weights, same images, same steps.
"""

from pathlib import Path

import numpy as np
from torch import Generator

from benchmarks.retrieval import Floats
from trainer import data, modelset, nets
from trainer.modelset import ModelSet, SetModel
from trainer.pairs import PairTask
from trainer.recipe import ModelSetRecipe, Recipe

SHORT = ModelSetRecipe(epochs=12, batch=25, lr=2e-3, per_class=25)
"""How networks are trained on the task that receives."""


def gains(
    recipe: Recipe,
    run: Path,
    models: ModelSet,
    tasks: tuple[PairTask, ...],
    *,
    seeds: int = 2,
    store: Path | None = None,
) -> Floats:
    """Mean gain (from, to) over `seeds` source models; symmetric measures use the mean of both directions.

    Rows that `store` already holds are not measured again.
    """
    found = np.load(store) if store and store.exists() else np.full((len(tasks), len(tasks)), np.nan)
    sources = {(m.task, m.seed): m for m in models.models}
    domains = [data.load(recipe, run, split, recipe.modelset.domain) for split in ("train", "test")]
    train, test = (
        [modelset.images(s, d, t) for t in tasks] for s, d in zip((SHORT, recipe.modelset), domains, strict=True)
    )
    for j in range(len(tasks)):
        if not np.isnan(found[:, j]).any():
            continue
        scratch = np.mean(
            [_accuracy(models, sources[tasks[j], s], train[j], test[j], fresh=True) for s in range(seeds)]
        )
        for i in range(len(tasks)):
            started = [_accuracy(models, sources[tasks[i], s], train[j], test[j], fresh=False) for s in range(seeds)]
            found[i, j] = np.mean(started) - scratch
        if store:
            store.parent.mkdir(parents=True, exist_ok=True)
            np.save(store, found)
    return found


def _accuracy(
    models: ModelSet, source: SetModel, train: modelset.Images, test: modelset.Images, *, fresh: bool
) -> float:
    generator = Generator().manual_seed(1000 + source.seed)
    net = nets.make(source.network, 2, generator)
    if not fresh:
        head = {k: v for k, v in net.state_dict().items() if k.startswith("head.")}
        net.load_state_dict({**models.tensors(source), **head})
    modelset.fit(net, train, SHORT, "adamw", generator)
    return modelset.accuracy(net, test)

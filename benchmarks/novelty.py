"""Does the novelty score say when generated networks stop helping? Scores of many tasks, familiar, unfamiliar and
spoilt, beside what generating was worth on them.

    python -m benchmarks.novelty --run runs/starter --data DIR --out docs/results/novelty.json

`lead` is the accuracy of the best ranked generated network minus that of the closed form given the same images. A
useful score rises where lead and accuracy fall: its Spearman correlation with them is negative, and it ranks tasks with
a negative lead above the others (`auc`; one half says nothing). Tasks of one set resemble each other, so intervals come
from a bootstrap over sets.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Generator as Random
from torch import Tensor
from tqdm import tqdm

from benchmarks import results
from loomweight import ranking
from loomweight.bundle import Zoo
from loomweight.generator import GenerateOptions, Generator
from loomweight.loom import Loom, Support, class_means
from loomweight.novelty import Novelty
from loomweight.runtime import Runtime
from trainer import data, evalsets, views
from trainer import recipe as recipes
from trainer.evalsets import EvalSet
from trainer.recipe import Recipe

Floats = NDArray[np.float64]
Score = Callable[[Support], float]


def noisy(x: Tensor) -> Tensor:
    """Mostly noise."""
    generator = Random().manual_seed(0)
    return (0.3 * x + 0.7 * torch.rand(x.shape, generator=generator)).clamp(0, 1)


def shuffled(x: Tensor) -> Tensor:
    """Pixels in one fixed random order: the colours stay, every shape goes."""
    order = torch.randperm(x.shape[-1] * x.shape[-2], generator=Random().manual_seed(0))
    return x.flatten(-2)[..., order].view(x.shape)


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": views.invert,
    "blurred": lambda x: views.low_resolution(x, 5),
    "noisy": noisy,
    "shuffled": shuffled,
}


def _set(name: str, train: Tensor, test: Tensor, runtime: Runtime) -> EvalSet:
    features = [torch.unflatten(runtime.encode(x.flatten(0, 1)), 0, x.shape[:2]) for x in (train, test)]
    return EvalSet(name, train, features[0], test, features[1])


def spoil(s: EvalSet, how: str, runtime: Runtime) -> EvalSet:
    """The same set with all images changed, those that condition and those that judge."""
    train, test = (torch.unflatten(SPOILT[how](x.flatten(0, 1)), 0, x.shape[:2]) for x in (s.train, s.test))
    return _set(f"{s.name}, {how}", train, test, runtime)


def trained_on(
    recipe: Recipe, run: Path, name: str, runtime: Runtime, *, classes: int = 20, per_class: int = 40
) -> EvalSet:
    """Classes that generator and encoder were trained on; the test images are new to them."""
    parts = [data.load(recipe, run, split, name) for split in ("train", "test")]
    known = parts[0].classes_of("encoder", "generator")
    chosen = np.random.default_rng(0).permutation(known)[:classes]
    halves = []
    for part in parts:
        count = min(per_class, *(len(part.members[c]) for c in chosen))
        index = np.stack([part.members[c][:count] for c in chosen])
        images = np.ascontiguousarray(part.images[index.ravel()])
        halves.append(torch.unflatten(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, 0, index.shape))
    return _set(f"{name}, trained on", halves[0], halves[1], runtime)


def scores(loom: Loom, zoo: Zoo) -> dict[str, Score]:
    """The served score and its alternatives; all rise with unfamiliarity."""
    served, known = Novelty(zoo), zoo.tensors["class_means"].float()

    def means(support: Support) -> Tensor:
        return class_means(*loom.looked_at(support))[0]  # (k, D)

    def cosine(support: Support) -> float:
        _, code = loom.set_encoder(*loom.looked_at(support))
        return float(1 - F.cosine_similarity(code, zoo.set_codes).amax())

    return {
        "served: share of familiar tasks that lie nearer": lambda s: float(served.score(loom, s)["score"] or 0),
        "cosine distance of set codes": cosine,
        "Euclidean distance to class means": lambda s: float(torch.cdist(means(s), known).amin(1).mean()),
        "Mahalanobis distance to class means": lambda s: served.distance(means(s)),
    }


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation; not a number where one of them is constant."""
    ranks = [rankdata(x) - (len(x) + 1) / 2 for x in (a, b)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / size if size else float("nan")


def auc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive task scores above another one, ties at one half; not a number without both kinds."""
    n = int(positive.sum())
    pairs = n * (len(score) - n)
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / pairs) if pairs else float("nan")


def over_sets(
    sets: Sequence[str], statistic: Callable[[NDArray[np.int64]], float], *, samples: int = 1000
) -> dict[str, float] | None:
    """A statistic of tasks (by index) with a 95 % bootstrap interval over sets; None where it is undefined."""
    names = np.asarray(sets)
    members = [np.flatnonzero(names == n) for n in dict.fromkeys(sets)]
    rng = np.random.default_rng(0)
    drawn = [
        statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
        for _ in range(samples)
    ]
    drawn = [d for d in drawn if np.isfinite(d)]
    value = statistic(np.arange(len(names)))
    if not np.isfinite(value) or not drawn:
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "sets": len(members), "n": len(names)}


def summarise(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each score its correlations with lead and accuracy, and how well it finds tasks where generating harms."""
    sets = [str(r["set"]) for r in rows]
    lead: Floats = np.array([r["lead"] for r in rows])
    accuracy: Floats = np.array([r["accuracy"] for r in rows])

    def judged(score: Floats) -> dict[str, Any]:
        return {
            "spearman_with_lead": over_sets(sets, lambda i: spearman(score[i], lead[i])),
            "spearman_with_accuracy": over_sets(sets, lambda i: spearman(score[i], accuracy[i])),
            "auc_for_negative_lead": over_sets(sets, lambda i: auc(score[i], lead[i] < 0)),
        }

    return [{"score": name, **judged(np.array([r["scores"][name] for r in rows], float))} for name in names]


def task(generator: Generator, target: str, judges: dict[str, Score], p: evalsets.Problem) -> dict[str, Any]:
    """Scores, accuracy and lead of one task."""
    loom = generator.looms[target]
    options = GenerateOptions(target=target, seed=p.seed)
    w = generator.weave(p.x.numpy(), [f"{i:03d}" for i in p.y.tolist()], options)
    order = generator.rank(w).order
    asked = loom.spec.adapt(p.query) if loom.spec.trunk else p.query_features

    def accuracy(i: int) -> float:
        return ranking.score(loom, w.network(i), asked, p.query_labels)[1]

    closed = next(i for i, n in enumerate(w.candidates) if n.origin == "closed-form")
    alone = accuracy(next(i for i in order if i != closed))
    return {
        "accuracy": alone,
        "closed_form": accuracy(closed),
        "lead": alone - accuracy(closed),
        "service": accuracy(order[0]),
        "scores": {name: judge(w.support) for name, judge in judges.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--run", type=Path, default=Path("runs/starter"))
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--targets", nargs="+", default=["cnn-l", "head"])
    parser.add_argument("--tasks", type=int, default=20, help="tasks a set")
    parser.add_argument("--ways", type=int, default=5, help="one number for all sets, so that accuracies compare")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    generator = Generator.load(options.bundle)
    eyes = generator.runtime
    photographs = [n for n in data.PHOTOGRAPHS if n in recipe.data.domains]
    sets = [trained_on(recipe, options.run, n, eyes) for n in recipe.data.domains]
    sets += [evalsets.validation(recipe, options.run, n, eyes) for n in photographs]
    unseen = [evalsets.withheld(recipe, options.run, n, eyes) for n in photographs] + [evalsets.digits(eyes)]
    if options.data:
        unseen.append(evalsets.stored(options.data / "cifar10", eyes))
    sets += unseen + [spoil(s, how, eyes) for s in unseen for how in SPOILT]
    found: dict[str, list[dict[str, Any]]] = {}
    by_target = []
    with torch.inference_mode():
        for target in options.targets:
            judges = scores(generator.looms[target], generator.zoos[target])
            found[target] = []
            for s in tqdm(sets, desc=target, mininterval=5):
                if len(s.train) < options.ways:  # fewer classes would be an easier task under the same name
                    continue
                for index in range(options.tasks):
                    p = evalsets.draw(s, options.ways, options.shots, index)
                    found[target].append({"set": s.name, **task(generator, target, judges, p)})
            by_target.append({"target": target, "scores": summarise(found[target], list(judges))})
            for r in by_target[-1]["scores"]:
                print(target, r, flush=True)
    if options.out:
        how = {"tasks": options.tasks, "ways": options.ways, "shots": options.shots}
        results.write(options.out, "novelty", generator.bundle.id, by_target, **how, tasks_measured=found)


if __name__ == "__main__":
    main()

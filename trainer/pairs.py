"""The two-class tasks of a model set: which classes, in which pairing.

`alphabetical` pairs neighbours of the sorted class names, as ModelSet500 did; `random` shuffles first; `superclass`
pairs classes of one CIFAR-100 superclass (fine-grained tasks). Pairs of one round share no class; more tasks than a
round holds come from further rounds. Withheld classes (`data.role` "test") are only paired with each other, in tasks
of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from trainer.data import Domain
from trainer.recipe import ModelSetRecipe

SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
"""CIFAR-100's superclasses (Krizhevsky 2009, section 3.3)."""

SUPERCLASS_OF = {name: group for group, names in SUPERCLASSES.items() for name in names.split()}


@dataclass(frozen=True)
class PairTask:
    """Class `classes[i]` of the domain, called `names[i]`, is class i of the task."""

    number: int
    classes: tuple[int, int]
    names: tuple[str, str]
    withheld: bool


def tasks(settings: ModelSetRecipe, domain: Domain) -> list[PairTask]:
    """The recipe's tasks, those of withheld classes last.

    Raises ValueError where the classes do not make as many different pairs.
    """
    made = []
    for roles, count, withheld in (
        (("encoder", "generator", "validation"), settings.tasks, False),
        (("test",), settings.withheld_tasks, True),
    ):
        if not count:
            continue
        classes = sorted(domain.classes_of(*roles), key=lambda c: domain.classes[c])
        rng = np.random.default_rng([settings.pair_seed, int(withheld)])
        found = list(dict.fromkeys(_pairs(settings.pairing, classes, domain.classes, rng, count)))[:count]
        if len(found) < count:
            raise ValueError(f"{domain.name} makes {len(found)} {settings.pairing} pairs of {roles}, not {count}")
        made += [(pair, withheld) for pair in found]
    return [
        PairTask(number, pair, (domain.classes[pair[0]], domain.classes[pair[1]]), withheld)
        for number, (pair, withheld) in enumerate(made)
    ]


def _pairs(
    pairing: str, classes: Sequence[int], names: Sequence[str], rng: np.random.Generator, count: int
) -> Iterator[tuple[int, int]]:
    if pairing == "superclass":
        groups: dict[str, list[int]] = {}
        for c in classes:
            groups.setdefault(SUPERCLASS_OF[names[c]], []).append(c)
        # An odd one is left over, here and below.
        yield from ((a, b) for g in groups.values() for a, b in zip(g[::2], g[1::2], strict=False))
        yield from (pair for g in groups.values() for pair in combinations(g, 2))
        return
    if pairing not in ("alphabetical", "random"):
        raise ValueError(f"no pairing {pairing!r}: alphabetical, random or superclass")
    if pairing == "alphabetical":
        rounds = [list(classes), list(classes[1:])]
    else:
        rounds = [rng.permutation(classes).tolist() for _ in range(1 + 3 * count // max(1, len(classes) // 2))]
    for order in rounds:
        yield from ((min(a, b), max(a, b)) for a, b in zip(order[::2], order[1::2], strict=False))


def relation(a: PairTask, b: PairTask) -> float:
    """How related two tasks are by their superclasses: shared groups over all groups (Jaccard), 1 for the same."""
    one, two = ({SUPERCLASS_OF[n] for n in t.names} for t in (a, b))
    return len(one & two) / len(one | two)

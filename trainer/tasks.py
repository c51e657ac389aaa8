"""Tasks: which classes of which domain, seen through which view. What the zoo and the tables name is one of these."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from trainer import views
from trainer.data import Domain, Images
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Variant:
    """A domain seen through one view; the seed fixes the view's parameters."""

    domain: str
    view: str
    seed: int

    def apply(self, images: Images) -> Tensor:
        """uint8 (n, 32, 32, 3) to float (n, 3, 32, 32) in [0, 1], through the view."""
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        return views.view(self.view, x, Generator().manual_seed(self.seed))


def variants(recipe: Recipe) -> list[Variant]:
    """All variants of a recipe, plain ones included."""
    return [
        Variant(domain, view, recipe.seed * 1000 + 17 * i)
        for domain in recipe.data.domains
        for i, view in enumerate(("plain", *recipe.bank.views.get(domain, ())))
    ]


@dataclass(frozen=True)
class Task:
    """A classification task: class i of the task is class `classes[i]` of the variant's domain."""

    variant: Variant
    classes: tuple[int, ...]

    def images(self, domain: Domain, per_class: int | None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Images (n, 3, 32, 32) and labels (n,), at most `per_class` of each class, drawn by `seed`."""
        rng = np.random.default_rng(seed)
        chosen = [domain.members[c] for c in self.classes]
        if per_class is not None:
            chosen = [rng.permutation(m)[:per_class] for m in chosen]
        labels = np.repeat(np.arange(len(chosen)), [len(m) for m in chosen])
        return self.variant.apply(domain.images[np.concatenate(chosen)]), torch.from_numpy(labels)


def draw_variant(recipe: Recipe, rng: np.random.Generator) -> Variant:
    """A variant by the recipe's domain weights and its share of plain tasks."""
    names = recipe.data.domains
    weight = np.array([recipe.bank.weights.get(name, 1.0) for name in names])
    name = names[rng.choice(len(names), p=weight / weight.sum())]
    own = [v for v in variants(recipe) if v.domain == name]
    if len(own) == 1 or rng.random() < recipe.bank.plain:
        return own[0]
    return own[1 + rng.integers(len(own) - 1)]


def whole(recipe: Recipe, domains: dict[str, Domain], index: int) -> Task:
    """Zoo task number `index` where tasks are whole data sets: they come in turn, plain, all classes in their order.

    So models i and i + (number of data sets) are two seeds of one task, as in the zoos of SANE and D2NWG.
    """
    name = recipe.data.domains[index % len(recipe.data.domains)]
    plain = next(v for v in variants(recipe) if v.domain == name and v.view == "plain")
    return Task(plain, tuple(domains[name].classes_of("encoder", "generator")))


def draw(recipe: Recipe, domains: dict[str, Domain], class_counts: tuple[int, ...], index: int) -> Task:
    """Zoo task number `index`: the same one on every machine."""
    rng = np.random.default_rng([recipe.seed, 31, index])
    variant = draw_variant(recipe, rng)
    allowed = domains[variant.domain].classes_of("encoder", "generator")
    count = min(int(rng.choice(class_counts)), len(allowed))
    return Task(variant, tuple(int(c) for c in rng.choice(allowed, count, replace=False)))

"""Stage `bank`: training images through every view, with the frozen encoder's and the shared trunks' features.

Generator tasks are drawn from here, thousands of them, without running the encoder again. Only classes that may be
trained on (and the validation classes, for choosing settings) are in it.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from tqdm import tqdm

from loomweight import architectures
from loomweight.features import channels_last
from loomweight.loom import Support
from trainer import data, encoder, shared, tasks
from trainer.recipe import Recipe
from trainer.tasks import Variant


@dataclass(frozen=True)
class Shelf:
    """One variant's images: every class has the same number of them."""

    variant: Variant
    classes: Tensor  # (c,) indices of the classes in their domain
    roles: tuple[str, ...]  # (c,)
    images: Tensor  # (c, m, 3, 32, 32) uint8
    features: Tensor  # (c, m, encoder dim)
    trunk_features: dict[str, Tensor]  # by target (c, m, width)

    def rows_of(self, *roles: str) -> list[int]:
        """Places of the classes with one of the roles."""
        return [i for i, role in enumerate(self.roles) if role in roles]


def _file(run: Path, variant: Variant) -> Path:
    return run / "bank" / f"{variant.domain}-{variant.view}.safetensors"


@torch.no_grad()
def build(recipe: Recipe, run: Path) -> None:
    """Run the stage; variants that are there are kept."""
    (run / "bank").mkdir(parents=True, exist_ok=True)
    eyes = channels_last(encoder.load(run))
    trunks = {t: shared.load(run, t) for t in recipe.targets}
    for variant in tqdm(tasks.variants(recipe), desc="bank"):
        path = _file(run, variant)
        if path.exists():
            continue
        domain = data.load(recipe, run, "train", variant.domain)
        wanted = recipe.bank.per_class if variant.view == "plain" else recipe.bank.per_class_views
        classes = domain.classes_of("encoder", "generator", "validation")
        count = min(wanted, *(len(domain.members[c]) for c in classes))
        rng = np.random.default_rng(variant.seed)
        chosen = np.concatenate([rng.permutation(domain.members[c])[:count] for c in classes])
        images, features = [], []
        trunk_features: dict[str, list[Tensor]] = {t: [] for t, trunk in trunks.items() if trunk}
        for part in np.array_split(chosen, -(-len(chosen) // 500)):
            # Stored as bytes: what the encoder sees here is what the generator's networks will see later.
            kept = (variant.apply(domain.images[part]) * 255).round().to(torch.uint8)
            x = kept.float() / 255
            images.append(kept)
            features.append(eyes(x.contiguous(memory_format=torch.channels_last)))
            for target, parts in trunk_features.items():
                spec = architectures.get(target, encoder_dim=1)
                parts.append(spec.features(trunks[target], spec.adapt(x).contiguous(memory_format=torch.channels_last)))
        stack = {"images": images, "features": features, **{f"trunk.{t}": v for t, v in trunk_features.items()}}
        tensors = {k: torch.unflatten(torch.cat(v), 0, (len(classes), count)).contiguous() for k, v in stack.items()}
        temporary = path.with_suffix(".tmp")
        save_file({**tensors, "classes": torch.tensor(classes)}, temporary)
        temporary.replace(path)


def load(recipe: Recipe, run: Path) -> dict[Variant, Shelf]:
    """All variants that the stage prepared."""
    shelves = {}
    for variant in tasks.variants(recipe):
        t = load_file(_file(run, variant))
        trunks = {name[len("trunk.") :]: v for name, v in t.items() if name.startswith("trunk.")}
        roles = tuple(data.role(variant.domain, int(c)) for c in t["classes"])
        shelves[variant] = Shelf(variant, t["classes"], roles, t["images"], t["features"], trunks)
    return shelves


@lru_cache(maxsize=64)
def features(run: Path, variant: Variant) -> tuple[list[int], Tensor]:
    """Classes of a variant and their features (c, m, dim) alone."""
    with safe_open(_file(run, variant), framework="pt") as opened:
        return opened.get_tensor("classes").tolist(), opened.get_tensor("features")


@dataclass(frozen=True)
class Episode:
    """A batch of tasks from one draw: what conditions and what judges."""

    support: Support
    query_images: Tensor  # (b, k * q, c, h, w) adapted; features for a target without a trunk
    query_labels: Tensor  # (k * q,)


class Episodes:
    """Draws tasks for one target from the shelves."""

    def __init__(self, recipe: Recipe, shelves: dict[Variant, Shelf], target: str, encoder_dim: int) -> None:
        self.recipe, self.shelves, self.target = recipe, shelves, target
        self.spec = architectures.get(target, encoder_dim=encoder_dim)

    def shelf(self, generator: Generator) -> Shelf:
        """A shelf by the recipe's weights."""
        seed = int(torch.randint(2**31, (), generator=generator))
        return self.shelves[tasks.draw_variant(self.recipe, np.random.default_rng(seed))]

    def classes(self, shelf: Shelf, count: int, generator: Generator, *, validation: bool = False) -> Tensor:
        """Places of `count` classes of a shelf; some draws, if possible, are of classes new to the encoder alone."""
        roles = ("validation",) if validation else ("encoder", "generator")
        alone = torch.rand((), generator=generator) < self.recipe.bank.new_classes
        if not validation and alone and len(shelf.rows_of("generator")) >= count:
            roles = ("generator",)
        places = torch.tensor(shelf.rows_of(*roles))
        return places[torch.randperm(len(places), generator=generator)[:count]]

    def episode(
        self,
        picks: list[tuple[Shelf, Tensor]],
        shots: int,
        queries: int,
        generator: Generator,
        *,
        rich: int = 0,
        own: slice = slice(None),
    ) -> tuple[Episode, Support | None]:
        """Tasks (shelf, classes), all of one class count: `shots` images a class condition, `queries` a class judge.

        With `rich`, also a second, larger conditioning set of the same tasks, apart from the queries. All tasks are
        drawn, those of `own` are looked up.
        """
        parts = []
        for shelf, classes in picks:
            m = shelf.images.shape[1]
            order = torch.stack([torch.randperm(m, generator=generator) for _ in classes])
            parts.append((shelf, classes, order))
        fewest = min(p[0].images.shape[1] for p in parts)
        if shots >= fewest:
            raise ValueError(f"{shots} images a class to condition on leave none of {fewest} to ask about")
        parts = parts[own]
        few = self._support(parts, shots)
        count = min(queries, fewest - shots)
        images = torch.stack([self._images(s, c, o[:, -count:]).flatten(0, 1) for s, c, o in parts])
        labels = torch.arange(len(parts[0][1])).repeat_interleave(count)
        return Episode(few, images, labels), self._support(parts, min(rich, fewest - count)) if rich else None

    def _images(self, shelf: Shelf, classes: Tensor, order: Tensor) -> Tensor:
        if not self.spec.trunk:
            return shelf.features[classes[:, None], order]
        x = shelf.images[classes[:, None], order].float() / 255  # (k, m, 3, 32, 32)
        return torch.unflatten(self.spec.adapt(x.flatten(0, 1)), 0, x.shape[:2])

    def _support(self, parts: list[tuple[Shelf, Tensor, Tensor]], count: int) -> Support:
        images, features, trunk_features = [], [], []
        for shelf, classes, order in parts:
            index = classes[:, None], order[:, :count]
            own = shelf.features[index]
            images.append(self._images(shelf, classes, index[1]))
            features.append(own)
            trunk_features.append(shelf.trunk_features[self.target][index] if self.spec.trunk else own)
        k, m = features[0].shape[:2]
        mask = torch.ones(len(parts), k, m, dtype=torch.bool)
        return Support(torch.stack(images), torch.stack(features), torch.stack(trunk_features), mask)

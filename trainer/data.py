"""Stage `data`: every domain as arrays on disk, with the splits that every figure uses.

A domain is a labelled image set of one kind. Classes have one role each, by their index c in the domain (for the
photographs): c % 5 == 4 nobody trains on (the reported test classes); c % 25 == 23 choose hyper-parameters; the rest of
c % 5 == 3 train the generator alone, so that it sees what its encoder makes of unseen classes; all others train
encoder, shared initialisation and generator.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from trainer import synthetic
from trainer.recipe import Recipe

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

PHOTOGRAPHS = ("cifar100", "tiny-imagenet-32")
RENDERED = ("glyphs", "glyphs-coloured", "textures", "characters", "emblems")
ROLES = ("encoder", "generator", "validation", "test")


def role(domain: str, label: int) -> str:
    """What a class may be used for; see the module's text. Sets without withheld classes train everything.

    Invented characters and emblems are for the generator alone: a kind of image that its encoder has never seen.
    """
    if domain in ("characters", "emblems"):
        return "generator"
    if domain in PHOTOGRAPHS:
        if label % 5 == 4:
            return "test"
        if label % 25 == 23:
            return "validation"
    if domain in PHOTOGRAPHS or domain.startswith(("glyphs", "textures")):
        return "generator" if label % 5 == 3 else "encoder"
    return "encoder"


@dataclass(frozen=True)
class Domain:
    """Images (n, 32, 32, 3) uint8, memory-mapped, and labels (n,), for one split of one set."""

    name: str
    images: Images
    labels: Labels
    classes: tuple[str, ...]

    @cached_property
    def members(self) -> tuple[NDArray[np.int64], ...]:
        """For each class, the indices of its images."""
        order = np.argsort(self.labels, kind="stable")
        return tuple(np.split(order, np.searchsorted(self.labels[order], np.arange(1, len(self.classes)))))

    def classes_of(self, *roles: str) -> list[int]:
        """Class indices that have one of the roles and at least one image."""
        return [c for c in range(len(self.classes)) if role(self.name, c) in roles and len(self.members[c])]


def read_parquet(folder: Path, split: str) -> Iterator[tuple[bytes, int, tuple[str, ...]]]:
    """Rows of a Hugging Face image set: encoded image, label, the class names."""
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no {split}-*.parquet")
    for file in files:
        table = pq.ParquetFile(file)
        meta = json.loads((table.schema_arrow.metadata or {})[b"huggingface"])
        names = tuple(meta["info"]["features"]["label"]["names"])
        for batch in table.iter_batches(batch_size=4096, columns=["image", "label"]):
            yield from (
                (row["bytes"], label, names)
                for row, label in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
            )


def load_images(folder: Path, split: str, *, per_class: int | None = None) -> tuple[Images, Labels, tuple[str, ...]]:
    """A split as 32x32 RGB uint8 (antialiased bilinear), at most `per_class` images of each class, in file order."""
    images: list[Images] = []
    labels: list[int] = []
    names: tuple[str, ...] = ()
    taken: dict[int, int] = {}
    for data, label, known in tqdm(read_parquet(folder, split), desc=f"{folder.name} {split}", mininterval=5):
        names = known
        if per_class is not None and taken.get(label, 0) >= per_class:
            continue
        taken[label] = taken.get(label, 0) + 1
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        if picture.size != (32, 32):
            picture = picture.resize((32, 32), Image.Resampling.BILINEAR)
        images.append(np.asarray(picture))
        labels.append(label)
    return np.stack(images), np.asarray(labels, np.int64), names


def _save(folder: Path, images: Images, labels: Labels, classes: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    # The description is written last: a folder without it is unfinished and is made again.
    (folder / "domain.json").write_text(
        json.dumps({"classes": classes, "images": len(labels), "sha256": digest}, indent=1)
    )


def load(recipe: Recipe, run: Path, split: str, name: str) -> Domain:
    """A domain that stage `data` has prepared."""
    folder = run / "data" / name / split
    meta = json.loads((folder / "domain.json").read_text())
    return Domain(
        name, np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy"), tuple(meta["classes"])
    )


def load_all(recipe: Recipe, run: Path, split: str) -> list[Domain]:
    """Every domain of the recipe, in its order."""
    return [load(recipe, run, split, name) for name in recipe.data.domains]


def prepare(recipe: Recipe, run: Path, source: Path | None) -> None:
    """Run the stage: decode or render every domain of the recipe into `run/data`; finished ones are kept."""
    for name in recipe.data.domains:
        for split in ("train", "test"):
            folder = run / "data" / name / split
            if (folder / "domain.json").exists():
                continue
            if name in RENDERED:
                _save(folder, *_render(recipe, name, split))
                continue
            if source is None:
                raise FileNotFoundError(f"domain {name} needs --data DIR, a folder of Hugging Face image sets")
            # Tiny-ImageNet publishes no labelled test split; its validation split is the test split.
            published = "validation" if name == "tiny-imagenet-32" and split == "test" else split
            _save(folder, *load_images(source / name, published, per_class=recipe.data.per_class))


FAMILIES = {
    "textures": (synthetic.textures, synthetic.N_TEXTURES),
    "characters": (synthetic.characters, synthetic.N_CHARACTERS),
    "emblems": (synthetic.emblems, synthetic.N_EMBLEMS),
}
"""Domains whose classes are drawn, with their number of classes."""


def _render(recipe: Recipe, name: str, split: str) -> tuple[Images, Labels, tuple[str, ...]]:
    per_class = recipe.data.rendered_per_class if split == "train" else recipe.data.rendered_per_class // 4
    seed = recipe.seed + (1_000_003 if split == "test" else 0)
    if name in FAMILIES:
        # The family seed is the class's identity and shared by both splits; only the draws within it differ.
        make, classes = FAMILIES[name]
        n = recipe.data.rendered_classes or classes
        images, labels = make(per_class, recipe.seed, classes=n, draw_seed=seed)
        return images, labels, tuple(f"{name}-{i}" for i in range(n))
    alphabet = synthetic.ALPHABETS[: recipe.data.rendered_classes or None]
    images, labels = synthetic.glyphs(per_class, seed, characters=alphabet, coloured=name == "glyphs-coloured")
    return images, labels, tuple(alphabet)

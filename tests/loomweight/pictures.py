"""Images with names to generate from: rendered characters, as users would send them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainer import synthetic

Images = NDArray[np.float32]


def letters(characters: str, each: int, *, seed: int = 99) -> tuple[Images, list[str]]:
    """So many of each: images (n, 3, 32, 32) in [0, 1] and their names."""
    return counted(dict.fromkeys(characters, each), seed=seed)


def counted(counts: Mapping[str, int], *, seed: int = 99) -> tuple[Images, list[str]]:
    """As many of each character as it asks for."""
    characters, most = "".join(counts), max(counts.values())
    images, labels = synthetic.glyphs(most, seed, characters=characters, coloured=False)
    kept = np.concatenate([np.flatnonzero(labels == i)[: counts[c]] for i, c in enumerate(characters)])
    pictures = images[kept].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.ascontiguousarray(pictures), [characters[i] for i in labels[kept]]

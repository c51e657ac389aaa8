"""Bytes of an upload ► `Samples`: float images with their labels, checked against every limit of `workers.limits`."""

import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from loomweight.checkpoints import condition_hash
from workers.datasets import Item, read_npz, read_parquet, read_zip
from workers.images import Pixels, decode_image, resize
from workers.limits import Budget, InputTooLarge, Limits, UnsupportedInput, UnusableSamples

Reader = Callable[[bytes, Limits], Iterator[Item]]
# By the first bytes, not by the name or the media type a client claims. An npz is a zip of `.npy` files.
_MAGIC: tuple[tuple[bytes, Reader], ...] = ((b"PAR1", read_parquet), (b"PK", read_zip))
# Decoded bytes that may wait for a resize together.
_BATCH_VALUES = 12_000_000


@dataclass(frozen=True)
class Samples:
    """What a generator is conditioned on."""

    images: NDArray[np.float32]
    """float32 (n,3,32,32) in [0,1]."""
    labels: list[str]
    sha256: str
    """Of the decoded content, not of the container: the same samples in a zip and one by one agree."""


def read_dataset(data: bytes, limits: Limits) -> Samples:
    """Read one dataset file: zip (ImageFolder), parquet (Hugging Face) or npz, told apart by content."""
    if not data:
        raise UnusableSamples("The dataset is empty.")
    reader = next((reader for magic, reader in _MAGIC if data.startswith(magic)), None)
    if reader is None:
        raise UnsupportedInput("The dataset is neither a zip, nor a parquet, nor an npz file.")
    if reader is read_zip and _is_npz(data):
        reader = read_npz
    return _collect(reader(data, limits), limits)


def _is_npz(data: bytes) -> bool:
    """Tell an npz by its first entry: numpy writes nothing but `.npy` members, a folder of images never starts so."""
    length = int.from_bytes(data[26:28], "little")
    return data[30 : 30 + length].endswith(b".npy")


def read_samples(images: Iterable[bytes], labels: list[str], limits: Limits) -> Samples:
    """Read encoded images that came one by one, each with its label."""
    files = list(images)
    if len(files) != len(labels):
        raise UnusableSamples(f"There are {len(files):,} images and {len(labels):,} labels; the counts must be equal.")
    items = (Item(f"samples[{i}]", label, data) for i, (data, label) in enumerate(zip(files, labels, strict=True)))
    return _collect(items, limits)


def _collect(items: Iterator[Item], limits: Limits) -> Samples:
    budget = Budget.start(limits)
    labels: list[str] = []
    small: list[torch.Tensor] = []
    waiting: list[Pixels] = []  # decoded images of one size, to be resized together
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about strangers' files; what must be refused raises
        for item in items:
            budget.check_time(item.name)
            if len(labels) == limits.samples:
                raise InputTooLarge(f"There are more than {limits.samples:,} samples.")
            labels.append(_label(item, limits))
            pixels = decode_image(item.name, item.image, limits) if isinstance(item.image, bytes) else item.image
            if waiting and (waiting[0].shape != pixels.shape or len(waiting) * pixels.size > _BATCH_VALUES):
                small.append(resize(waiting))
                waiting = []
            waiting.append(pixels)
    _check_task(labels, limits)
    images = torch.cat([*small, resize(waiting)]).numpy()  # (n,3,32,32)
    return Samples(images, labels, condition_hash(images, labels))


def _label(item: Item, limits: Limits) -> str:
    label = unicodedata.normalize("NFC", item.label).strip()
    if not label:
        raise UnusableSamples(f"The label of {item.name} is empty.")
    if len(label) > limits.label_length:
        raise UnusableSamples(f"The label of {item.name} is longer than {limits.label_length} characters.")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in label):
        raise UnusableSamples(f"The label of {item.name} holds control characters.")
    return label


def _check_task(labels: list[str], limits: Limits) -> None:
    classes = sorted(set(labels))
    if len(labels) < limits.min_samples:
        raise UnusableSamples(f"There are {len(labels)} samples; at least {limits.min_samples} are needed.")
    if len(classes) < 2:
        raise UnusableSamples(f"All samples are of the class {classes[0]!r}; a classifier needs at least two classes.")
    if len(classes) > limits.classes:
        raise InputTooLarge(f"There are {len(classes):,} classes; the limit is {limits.classes:,}.")

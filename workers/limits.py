"""What an upload may cost to read, and the errors that say why one was refused.

InputError            422  base; the detail names the offending item
├── CorruptInput      422  bytes that are not what they claim, or end too early
├── UnusableSamples   422  well-formed, but no task: one class, counts differ, too few
├── UnsupportedInput  415  a format this service does not read
└── InputTooLarge     413  over a limit, bombs included
"""

import time
from dataclasses import dataclass
from typing import ClassVar


class InputError(Exception):
    """The client's samples cannot be used; the message says which item and what to change."""

    status: ClassVar[int] = 422
    slug: ClassVar[str] = "invalid-samples"
    title: ClassVar[str] = "The samples cannot be used"


class CorruptInput(InputError):
    """Bytes that are not what they claim to be."""

    slug: ClassVar[str] = "corrupt-input"
    title: ClassVar[str] = "The upload is damaged"


class UnusableSamples(InputError):
    """Readable samples that do not make a classification task."""


class UnsupportedInput(InputError):
    """A format this service does not read."""

    status: ClassVar[int] = 415
    slug: ClassVar[str] = "unsupported-media-type"
    title: ClassVar[str] = "The format is not supported"


class InputTooLarge(InputError):
    """Something in the upload is over a limit."""

    status: ClassVar[int] = 413
    slug: ClassVar[str] = "too-large"
    title: ClassVar[str] = "The upload is over a limit"


@dataclass(frozen=True)
class Limits:
    """Every bound on what is parsed. Readers check a size where it is declared, before they inflate or decode."""

    samples: int = 2_000
    min_samples: int = 2
    classes: int = 200
    label_length: int = 200
    image_pixels: int = 40_000_000
    item_bytes: int = 32 * 2**20
    """One encoded image, wherever it lies; a real one is smaller than a whole request."""
    archive_entries: int = 10_000
    unpacked_bytes: int = 512 * 2**20
    compression_ratio: int = 100
    """Holds once an archive unpacks to more than `ratio_floor_bytes`: small flat images compress further."""
    ratio_floor_bytes: int = 64 * 2**20
    seconds: float = 60.0


@dataclass(frozen=True)
class Budget:
    """The limits together with the moment at which reading must be over."""

    limits: Limits
    deadline: float

    @classmethod
    def start(cls, limits: Limits) -> "Budget":
        """Start the clock."""
        return cls(limits, time.monotonic() + limits.seconds)

    def check_time(self, name: str) -> None:
        """Refuse to go on past the deadline; called between items, which are bounded one by one."""
        if time.monotonic() > self.deadline:
            raise InputTooLarge(
                f"Reading the samples took longer than {self.limits.seconds:g} s and was stopped at {name}; "
                "send fewer or smaller images."
            )


def human_bytes(count: int) -> str:
    """Write a byte count the way a person says it."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count:,} bytes"


def refusal(kind: str, detail: str) -> InputError:
    """Make the error of this name: how one crosses from one process to another."""
    kinds = {error.__name__: error for error in (CorruptInput, UnusableSamples, UnsupportedInput, InputTooLarge)}
    return kinds[kind](detail)

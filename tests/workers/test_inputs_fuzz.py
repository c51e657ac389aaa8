"""Whatever the bytes, a reader returns samples or raises an `InputError`, and quickly."""

from contextlib import suppress

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers import uploads
from workers.inputs import Samples, read_dataset, read_samples
from workers.limits import InputError, Limits

LIMITS = Limits(seconds=10)
EASY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
IMAGES = [uploads.encoded(uploads.pixels(seed, 12, 9), fmt) for seed, fmt in enumerate(("PNG", "JPEG", "WEBP", "PNG"))]
LABELS = ["cat", "dog", "cat", "dog"]
DATASETS = [
    uploads.zipped({f"{label}/{i}.png": image for i, (label, image) in enumerate(zip(LABELS, IMAGES, strict=True))}),
    uploads.npz(x=np.stack([uploads.pixels(seed, 6, 6) for seed in range(4)]), y=LABELS),
    uploads.parquet([{"bytes": image, "path": None} for image in IMAGES], [0, 1, 0, 1], names=["cat", "dog"]),
]


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals with a few bytes overwritten, cut out, or the tail lost."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        patch = draw(st.binary(max_size=6))
        data[at : at + draw(st.sampled_from([0, len(patch), len(patch), 40]))] = patch
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


def assert_sound(samples: Samples) -> None:
    assert samples.images.shape == (len(samples.labels), 3, 32, 32)
    assert np.isfinite(samples.images).all()
    assert 0 <= samples.images.min() <= samples.images.max() <= 1
    assert len(set(samples.labels)) >= 2


@EASY
@given(damaged(IMAGES))
def test_damaged_images(data: bytes) -> None:
    with suppress(InputError):
        assert_sound(read_samples([data, IMAGES[0]], ["a", "b"], LIMITS))


@EASY
@given(damaged(DATASETS))
def test_damaged_datasets(data: bytes) -> None:
    with suppress(InputError):
        assert_sound(read_dataset(data, LIMITS))


@EASY
@given(st.sampled_from([b"", b"PK\x03\x04", b"PAR1", b"PK\x05\x06"]), st.binary(max_size=200))
def test_noise_as_a_dataset(magic: bytes, noise: bytes) -> None:
    with suppress(InputError):
        assert_sound(read_dataset(magic + noise, LIMITS))


@EASY
@given(st.lists(st.text(max_size=12), min_size=2, max_size=4), st.sampled_from(["npz", "parquet", "files"]))
def test_any_text_as_labels(labels: list[str], container: str) -> None:
    count = len(labels)
    with suppress(InputError):
        if container == "npz":
            read = read_dataset(uploads.npz(x=np.zeros((count, 4, 4), np.uint8), y=np.array(labels)), LIMITS)
        elif container == "parquet":
            encodable = [label.encode("utf-8", "replace").decode() for label in labels]
            read = read_dataset(uploads.parquet([IMAGES[0]] * count, encodable), LIMITS)
        else:
            read = read_samples([IMAGES[0]] * count, labels, LIMITS)
        assert_sound(read)


@EASY
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30),
        st.just(IMAGES[0]),
        max_size=5,
    )
)
def test_any_names_in_a_zip(files: dict[str, bytes]) -> None:
    with suppress(InputError):
        assert_sound(read_dataset(uploads.zipped(files), LIMITS))

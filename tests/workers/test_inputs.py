"""What comes out of good uploads, and which error each bad one earns."""

import io
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from tests.workers import uploads
from workers.inputs import Samples, read_dataset, read_samples
from workers.limits import CorruptInput, InputError, InputTooLarge, Limits, UnsupportedInput, UnusableSamples

LIMITS = Limits()


def read_two(first: bytes, limits: Limits = LIMITS) -> Samples:
    return read_samples([first, uploads.encoded(uploads.pixels(1))], ["a", "b"], limits)


# pixels ---------------------------------------------------------------------------------------------------------------


def test_small_images_pass_unchanged() -> None:
    image = uploads.pixels()

    samples = read_two(uploads.encoded(image))

    assert samples.labels == ["a", "b"]
    assert samples.images.dtype == np.float32
    assert samples.images.shape == (2, 3, 32, 32)
    np.testing.assert_allclose(samples.images[0].transpose(1, 2, 0) * 255, image, atol=1e-4)


def test_resize_is_the_documented_one_without_rounding() -> None:
    image = uploads.pixels(height=75, width=41)
    exact = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255

    samples = read_two(uploads.encoded(image))

    expected = interpolate(exact, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)[0]
    np.testing.assert_allclose(samples.images[0], expected.numpy(), atol=1e-6)


def test_mixed_sizes_keep_their_order() -> None:
    shades = [10, 200, 60, 120, 30]
    sides = [32, 50, 50, 32, 7]
    images = [uploads.encoded(np.full((n, n, 3), s, np.uint8)) for n, s in zip(sides, shades, strict=True)]

    samples = read_samples(images, ["a", "b", "a", "b", "a"], LIMITS)

    np.testing.assert_allclose(samples.images.mean(axis=(1, 2, 3)) * 255, shades, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 51), (51, 51, 51)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGB", (8, 8), (1, 200, 3)).quantize(4), (1, 200, 3)),
        (Image.fromarray(np.full((8, 8), 200 * 257, np.uint16)), (200, 200, 200)),
    ],
    ids=["grey", "bilevel", "grey-alpha", "transparent", "opaque", "palette", "16-bit"],
)
def test_modes_become_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    samples = read_two(uploads.encoded(image))

    np.testing.assert_allclose(samples.images[0, :, 3, 3] * 255, expected, atol=1e-3)


def test_palette_transparency_is_laid_over_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])

    samples = read_two(uploads.encoded(image, transparency=0))

    np.testing.assert_allclose(samples.images[0, :, 0, 0], 1.0)


def test_cmyk_jpeg_and_webp_are_read() -> None:
    cmyk = uploads.encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG")
    webp = uploads.encoded(Image.new("RGB", (40, 40), (0, 0, 255)), "WEBP", lossless=True)

    samples = read_samples([cmyk, webp], ["red", "blue"], LIMITS)

    np.testing.assert_allclose(samples.images[0, :, 5, 5], (1, 0, 0), atol=0.03)
    np.testing.assert_allclose(samples.images[1, :, 5, 5], (0, 0, 1), atol=0.01)


@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(fmt: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    animated = uploads.encoded(frames[0], fmt, save_all=True, append_images=frames[1:], lossless=True)

    samples = read_two(animated)

    np.testing.assert_allclose(samples.images[0, :, 9, 9], (1, 0, 0), atol=0.01)


def test_exif_orientation_is_applied_and_a_broken_one_ignored() -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))  # the top half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down

    turned = read_two(uploads.encoded(image, exif=exif)).images[0]
    broken = read_two(uploads.encoded(image, exif=b"Exif\0\0garbage")).images[0]

    assert turned[0, 4, 4] == 0
    assert turned[0, 28, 4] == 1
    assert broken[0, 4, 4] == 1


def test_a_large_jpeg_drafted_stays_close_to_the_full_decode() -> None:
    gradient = np.linspace(0, 255, 2000, dtype=np.uint8)
    image = np.stack([np.tile(gradient, (1500, 1))] * 3, axis=2)
    data = uploads.encoded(image, "JPEG", quality=95)
    full = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)[None].float() / 255

    samples = read_two(data)

    exact = interpolate(full, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)[0]
    assert np.abs(samples.images[0] - exact.numpy()).max() < 2 / 255


def test_two_hundred_small_pngs_take_milliseconds() -> None:
    files = [uploads.encoded(uploads.pixels(seed)) for seed in range(200)]
    labels = ["a", "b"] * 100
    read_samples(files, labels, LIMITS)

    best = min(_seconds(files, labels) for _ in range(5))

    assert best < 0.25  # 0.02 on an idle core; the margin is for a busy machine


def _seconds(files: list[bytes], labels: list[str]) -> float:
    start = time.perf_counter()
    read_samples(files, labels, LIMITS)
    return time.perf_counter() - start


# containers agree -----------------------------------------------------------------------------------------------------


def test_the_same_samples_in_every_container_have_the_same_hash() -> None:
    images = [uploads.pixels(seed) for seed in range(4)]
    files = [uploads.encoded(image) for image in images]
    labels = ["cat", "cat", "dog", "dog"]

    one_by_one = read_samples(files, labels, LIMITS)
    in_zip = {f"{label}/{i}.png": file for i, (label, file) in enumerate(zip(labels, files, strict=True))}
    others = [
        uploads.zipped(in_zip),
        uploads.zipped(dict(reversed(in_zip.items()))),
        uploads.zipped({f"pets/{name}": file for name, file in in_zip.items()}),
        uploads.npz(x=np.stack(images), y=labels),
        uploads.parquet([{"bytes": f, "path": None} for f in files], [0, 0, 1, 1], names=["cat", "dog"]),
        uploads.parquet([{"bytes": f, "path": "x.png"} for f in files], labels),
        uploads.parquet(files, labels, column="img", compression="zstd"),
    ]

    for other in others:
        read = read_dataset(other, LIMITS)
        assert read.labels == labels
        assert read.sha256 == one_by_one.sha256
        np.testing.assert_array_equal(read.images, one_by_one.images)


def test_zip_clutter_is_ignored() -> None:
    files = uploads.folder(top="pets/")
    clutter = {"__MACOSX/pets/cat/._0.png": b"x", "pets/.DS_Store": b"x", "pets/cat/Thumbs.db": b"x", "pets/cat/": b""}

    samples = read_dataset(uploads.zipped({**files, **clutter}), LIMITS)

    assert samples.labels == ["cat", "cat", "dog", "dog"]


def test_npz_takes_grey_images_fortran_order_and_number_labels() -> None:
    grey = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)

    flat = read_dataset(uploads.npz(x=grey, y=[7, 7, 1, 1]), LIMITS)
    channel = read_dataset(
        uploads.npz(x=np.asfortranarray(grey[..., None]), y=np.array([b"7", b"7", b"1", b"1"])), LIMITS
    )

    assert flat.labels == ["7", "7", "1", "1"]
    assert flat.sha256 == channel.sha256
    np.testing.assert_array_equal(flat.images[:, 0], flat.images[:, 2])


# refusals -------------------------------------------------------------------------------------------------------------

PNG = uploads.encoded(uploads.pixels())


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", UnsupportedInput, r"samples\[0\] is not a PNG"),
        (b"GIF89a....", UnsupportedInput, r"samples\[0\] is not a PNG"),
        (b"%!PS-Adobe", UnsupportedInput, r"samples\[0\]"),
        (PNG[:60], CorruptInput, r"samples\[0\] cannot be decoded"),
        (PNG[:-60], CorruptInput, r"samples\[0\]"),
        (PNG[:8], CorruptInput, r"samples\[0\]"),
        (uploads.encoded(uploads.pixels(), "JPEG")[:300], CorruptInput, r"samples\[0\]"),
        (uploads.encoded(uploads.pixels(), "WEBP")[:60], CorruptInput, r"samples\[0\]"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X", CorruptInput, r"samples\[0\]"),
        (uploads.declared_png(100_000, 100_000), InputTooLarge, "100000×100000"),
        (uploads.declared_png(2**31 - 1, 2**31 - 1), InputTooLarge, "megapixels"),
        (uploads.declared_png(0, 5), CorruptInput, r"samples\[0\]"),
        (uploads.declared_png(5_000, 5_000), CorruptInput, r"samples\[0\]"),
    ],
)
def test_bad_images_are_named(data: bytes, error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        read_two(data)
    assert type(caught.value) is error


def test_a_webp_that_declares_a_huge_canvas_is_refused() -> None:
    canvas = (60_000 - 1).to_bytes(3, "little") * 2
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + canvas

    with pytest.raises((InputTooLarge, CorruptInput), match=r"samples\[0\]"):
        read_two(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)


@pytest.mark.parametrize(
    ("labels", "limits", "error", "says"),
    [
        (["a"], LIMITS, UnusableSamples, "2 images and 1 labels"),
        (["a", "a"], LIMITS, UnusableSamples, "class 'a'"),
        (["a", "  "], LIMITS, UnusableSamples, r"samples\[1\] is empty"),
        (["a", "x" * 201], LIMITS, UnusableSamples, "longer than 200"),
        (["a", "b\n\0"], LIMITS, UnusableSamples, "control"),
        (["a", "b"], Limits(classes=1), InputTooLarge, "2 classes"),
        (["a", "b"], Limits(samples=1), InputTooLarge, "more than 1 samples"),
        (["a", "b"], Limits(min_samples=3), UnusableSamples, "at least 3"),
        (["a", "b"], Limits(item_bytes=100), InputTooLarge, "100 bytes"),
        (["a", "b"], Limits(image_pixels=1000), InputTooLarge, "32×32"),
        (["a", "b"], Limits(seconds=-1), InputTooLarge, "took longer"),
    ],
)
def test_bad_sets_are_refused(labels: list[str], limits: Limits, error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_samples([PNG, PNG], labels, limits)


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(UnusableSamples, match="0 samples"):
        read_samples([], [], LIMITS)
    with pytest.raises(UnusableSamples, match="empty"):
        read_dataset(b"", LIMITS)
    with pytest.raises(UnusableSamples, match="0 samples"):
        read_dataset(uploads.zipped({}), LIMITS)


def _zip(**changes: bytes) -> bytes:
    return uploads.zipped({**uploads.folder(), **changes})


ZEROS = b"\0" * (80 * 2**20)


@pytest.mark.parametrize(
    ("data", "limits", "error", "says"),
    [
        (b"\x7fELF not an archive", LIMITS, UnsupportedInput, "neither a zip"),
        (b"PK\x03\x04" + b"\0" * 50, LIMITS, CorruptInput, "zip cannot be read"),
        (_zip()[:-40], LIMITS, CorruptInput, "zip cannot be read"),
        (_zip(**{"../etc/passwd": PNG}), LIMITS, UnusableSamples, "etc/passwd.*points outside"),
        (_zip(**{"/abs/x.png": PNG}), LIMITS, UnusableSamples, "abs/x.png.*points outside"),
        (_zip(**{"cat\\..\\..\\x.png": PNG}), LIMITS, UnusableSamples, "points outside"),
        (_zip(**{"C:/cat/x.png": PNG}), LIMITS, UnusableSamples, "points outside"),
        (_zip(**{"root.png": PNG}), LIMITS, UnusableSamples, "root.png.*class/name"),
        (_zip(**{"a/b/c/d.png": PNG}), LIMITS, UnusableSamples, "d.png.*class/name"),
        (_zip(**{"cat/notes.txt": b"hello"}), LIMITS, UnsupportedInput, "cat/notes.txt"),
        (_zip(**{"cat/broken.png": PNG[:70]}), LIMITS, CorruptInput, "cat/broken.png"),
        (uploads.zipped(uploads.folder(classes=("cat",))), LIMITS, UnusableSamples, "class 'cat'"),
        (uploads.zipped({"cat/0.png": ZEROS, "dog/0.png": PNG}), LIMITS, InputTooLarge, "would unpack to 80.0 MiB"),
        (
            uploads.zipped({"cat/0.png": ZEROS[: 2**20], "dog/0.png": PNG}),
            Limits(item_bytes=2**19),
            InputTooLarge,
            "cat/0",
        ),
        (_zip(), Limits(archive_entries=3), InputTooLarge, "more than 3 entries"),
        (_zip(), Limits(unpacked_bytes=1000), InputTooLarge, "limits are 1,000 bytes"),
        (uploads.zipped(uploads.folder(), zipfile.ZIP_BZIP2), LIMITS, UnsupportedInput, "neither stored nor deflated"),
    ],
)
def test_bad_zips_are_refused(data: bytes, limits: Limits, error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        read_dataset(data, limits)
    assert type(caught.value) is error


def test_a_zip_that_lies_about_a_size_or_is_encrypted_is_refused() -> None:
    data = uploads.zipped({"cat/0.png": PNG, "dog/0.png": PNG})
    entry = data.index(b"PK\x01\x02")
    lying = bytearray(data)
    lying[entry + 24 : entry + 28] = struct.pack("<I", 10)
    encrypted = bytearray(data)
    encrypted[entry + 8] |= 1

    with pytest.raises(CorruptInput, match=r"cat/0\.png"):
        read_dataset(bytes(lying), LIMITS)
    with pytest.raises(UnusableSamples, match="encrypted"):
        read_dataset(bytes(encrypted), LIMITS)


X = np.stack([uploads.pixels(seed) for seed in range(4)])


@pytest.mark.parametrize(
    ("arrays", "error", "says"),
    [
        ({"x": X}, UnusableSamples, "no array `y`"),
        ({"y": [0, 1]}, UnusableSamples, "no array `x`"),
        ({"x": X, "y": [0, 1]}, UnusableSamples, "4 images and `y` 2 labels"),
        ({"x": X.astype(np.float32), "y": [0, 1, 0, 1]}, UnusableSamples, "must be uint8"),
        ({"x": X[..., :2], "y": [0, 1, 0, 1]}, UnusableSamples, "must be uint8"),
        ({"x": X[0], "y": np.zeros(32, np.int64)}, UnusableSamples, "class '0'|must be"),
        ({"x": X[:, :0], "y": [0, 1, 0, 1]}, UnusableSamples, "no pixels"),
        ({"x": X, "y": [0.0, 1.0, 0.0, 1.0]}, UnusableSamples, "whole numbers or strings"),
        ({"x": X, "y": [[0], [1], [0], [1]]}, UnusableSamples, "whole numbers or strings"),
        ({"x": X, "y": np.array(["a", "b", "a", None], dtype=object)}, UnsupportedInput, "Python objects"),
        ({"x": np.zeros((2001, 1, 1), np.uint8), "y": np.zeros(2001, np.int64)}, InputTooLarge, "2,001 rows"),
        ({"x": X[0, 0, 0, 0], "y": [0, 1]}, UnusableSamples, "must be uint8"),
    ],
)
def test_bad_npz_are_refused(arrays: dict[str, object], error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_dataset(uploads.npz(**arrays), LIMITS)


@pytest.mark.parametrize(
    ("header", "body", "says"),
    [
        (uploads.npy_header((2000, 10_000, 10_000, 3)), b"", "declares"),
        (uploads.npy_header((4, 32, 32, 3)), b"\0" * 10, "declares"),
        (uploads.npy_header((4, -32, 32, 3)), b"", "declares"),
        (uploads.npy_header((4,), "|V0"), b"", "declares"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr': __import__('os')", b"", "npy header"),
        (b"\x93NUMPY\x09\x00\x10\x00", b"", "npy header"),
        (b"", b"", "npy header"),
    ],
)
def test_lying_npy_headers_are_refused_before_inflating(header: bytes, body: bytes, says: str) -> None:
    data = uploads.zipped({"x.npy": header + body, "y.npy": uploads.npy_header((4,)) + b"\0\1\0\1"})

    with pytest.raises(CorruptInput, match=says):
        read_dataset(data, LIMITS)


def _rows(count: int = 4) -> list[dict[str, bytes | None]]:
    return [{"bytes": uploads.encoded(uploads.pixels(seed)), "path": None} for seed in range(count)]


@pytest.mark.parametrize(
    ("data", "limits", "error", "says"),
    [
        (b"PAR1" + b"\0" * 40, LIMITS, CorruptInput, "parquet cannot be read"),
        (uploads.parquet(_rows(), [0, 1, 0, 1])[:-9], LIMITS, CorruptInput, "parquet cannot be read"),
        (uploads.parquet(_rows(), [0, 1, 0, 1], column="picture"), LIMITS, UnusableSamples, "has picture, label"),
        (uploads.parquet(_rows(), [0, 1, 0, 7], names=["a", "b"]), LIMITS, UnusableSamples, "row 3 has the label 7"),
        (uploads.parquet(_rows(), [0, 1, 0, -1], names=["a", "b"]), LIMITS, UnusableSamples, "row 3 has the label -1"),
        (uploads.parquet(_rows(), [0, 1, 0, None]), LIMITS, UnusableSamples, "row 3 has no label"),
        (uploads.parquet(_rows(), [0.0, 1.0, 0.0, 1.0]), LIMITS, UnusableSamples, "`label` is double"),
        (uploads.parquet(["a", "b"], [0, 1]), LIMITS, UnusableSamples, "`image` is string"),
        (uploads.parquet([{"path": "a.png"}, {"path": "b.png"}], [0, 1]), LIMITS, UnusableSamples, "must be struct"),
        (
            uploads.parquet([*_rows(1), {"bytes": None, "path": "b.png"}], [0, 1]),
            LIMITS,
            UnusableSamples,
            "row 1 has no",
        ),
        (uploads.parquet([*_rows(1), None], [0, 1]), LIMITS, UnusableSamples, "row 1 has no image"),
        (uploads.parquet([*_rows(1), {"bytes": b"GIF89a", "path": None}], [0, 1]), LIMITS, UnsupportedInput, "row 1"),
        (uploads.parquet(_rows(), [0, 1, 0, 1]), Limits(samples=3), InputTooLarge, "4 rows"),
        (uploads.parquet(_rows(), [0, 1, 0, 1]), Limits(unpacked_bytes=99), InputTooLarge, "more than 99 bytes"),
        (uploads.parquet(_rows(), [0, 1, 0, 1]), Limits(item_bytes=99), InputTooLarge, "row 0 has"),
        (uploads.parquet(_rows(), [0, 1, 0, 1]), Limits(seconds=0.001), InputTooLarge, "took longer"),
        (
            uploads.parquet([b"\0" * 2**20] * 50, [0, 1] * 25),  # one value in a dictionary, fifty rows
            Limits(unpacked_bytes=2**24),
            InputTooLarge,
            "more than 16.0 MiB",
        ),
    ],
)
def test_bad_parquets_are_refused(data: bytes, limits: Limits, error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        read_dataset(data, limits)
    assert type(caught.value) is error


@pytest.mark.parametrize(("at", "value"), [(59, 25), (205, 22), (312, 22)])
def test_a_parquet_that_brings_its_reader_down_is_refused(at: int, value: int) -> None:
    # Given one byte of metadata over which pyarrow 26's C++ ends its process
    data = bytearray(uploads.parquet([{"bytes": b"x", "path": None}] * 4, [0, 1, 0, 1]))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[footer + at] = value

    with pytest.raises(CorruptInput, match="parquet cannot be read"):
        read_dataset(bytes(data), LIMITS)


def test_statuses_are_those_of_the_contract() -> None:
    assert [e.status for e in (InputError, CorruptInput, UnusableSamples, UnsupportedInput, InputTooLarge)] == [
        422, 422, 422, 415, 413,
    ]  # fmt: skip

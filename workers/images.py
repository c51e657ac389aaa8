"""Encoded images ► uint8 RGB arrays ► one float tensor; the only place that calls an image decoder.

Decided here: transparency is laid over white, 16-bit greys keep their upper byte, CMYK goes through Pillow's plain
conversion, an animation gives its first frame, the EXIF orientation is applied and colour profiles are ignored.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch.nn.functional import interpolate

from workers.limits import CorruptInput, InputTooLarge, Limits, UnsupportedInput, human_bytes

SIDE = 32
# libjpeg may halve an image while decoding as long as both sides stay at least this long: far above SIDE, so that the
# antialiased resize still decides what the sample looks like.
JPEG_DRAFT = (256, 256)
# float32 planes resized at a time: 16 Mpx are 64 MiB.
CHUNK_PIXELS = 16_000_000

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
"""One image, (h,w,3)."""


def decode_image(name: str, data: bytes, limits: Limits) -> Pixels:
    """Decode one PNG, JPEG or WebP to RGB.

    The format comes from the leading bytes alone, and the plugin is called directly: `Image.open` would try others.
    """
    if len(data) > limits.item_bytes:
        raise InputTooLarge(
            f"{name} has {human_bytes(len(data))}; one image may have {human_bytes(limits.item_bytes)}."
        )
    plugin = _plugin(name, data)
    try:
        with plugin(io.BytesIO(data)) as image:
            _check_pixels(name, image.size, limits)
            return _to_rgb(image)
    except InputTooLarge:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputTooLarge(f"{name} declares more pixels than {limits.image_pixels / 1e6:g} megapixels.") from error
    except Exception as error:  # A decoder fed hostile bytes raises whatever its parser tripped over.
        raise CorruptInput(f"{name} cannot be decoded: {error or type(error).__name__}.") from error


def _plugin(name: str, data: bytes) -> type[PngImageFile] | type[JpegImageFile] | type[WebPImageFile]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    raise UnsupportedInput(f"{name} is not a PNG, JPEG or WebP image.")


def _check_pixels(name: str, size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.image_pixels:
        raise InputTooLarge(
            f"{name} has {width}×{height} pixels; one image may have {limits.image_pixels / 1e6:g} megapixels."
        )
    if width * height == 0:
        raise CorruptInput(f"{name} has no pixels.")


def _to_rgb(image: ImageFile.ImageFile) -> Pixels:
    image.draft("RGB", JPEG_DRAFT)  # only JPEG has drafts; the others ignore it
    image.load()
    upright = _upright(image)
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255 instead of scaling
        grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        upright = Image.fromarray(grey)
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        upright = Image.new("RGB", colours.size, "white")
        upright.paste(colours, mask=colours.getchannel("A"))
    if upright.mode != "RGB":
        upright = upright.convert("RGB")
    return np.asarray(upright)


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    if not image.info.get("exif"):
        return image
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block is no reason to refuse pixels that decode
        return image
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def resize(images: Sequence[Pixels]) -> torch.Tensor:
    """Turn images of one size into float32 (n,3,32,32) in [0,1], exactly as `docs/architecture.md` lays down."""
    pixels = torch.from_numpy(np.stack(images))  # (n,h,w,3) uint8
    n, height, width, _ = pixels.shape
    planes = pixels.permute(0, 3, 1, 2).reshape(n * 3, 1, height, width)
    if (height, width) == (SIDE, SIDE):
        return planes.to(torch.float32).div_(255).reshape(n, 3, SIDE, SIDE)
    # Each plane is resized for itself, so a chunk may end anywhere, even inside one large image.
    chunk = max(1, CHUNK_PIXELS // (height * width))
    small = [_resize_planes(planes[start : start + chunk]) for start in range(0, len(planes), chunk)]
    return torch.cat(small).reshape(n, 3, SIDE, SIDE)


def _resize_planes(planes: torch.Tensor) -> torch.Tensor:
    floats = planes.to(torch.float32).div_(255)  # (m,1,h,w)
    return interpolate(floats, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)

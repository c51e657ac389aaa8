"""Domains made, not downloaded: rendered glyphs, procedural textures, invented characters and emblems.

They make the training tasks differ in kind (science notes, section 5: a generator trained on photographs alone
writes nonsense elsewhere), and they need no data set, so the `tiny` recipe and the tests live on them.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Images = NDArray[np.uint8]

SIDE = 32
ALPHABETS = (
    "0123456789"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abdefghjmnqrt"
    "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρστφχψω"
    "БГДЖЗИЙЛЦЧШЩЪЫЭЮЯ"
    "ԱԲԳԴԵԶԷԸԹԺԻԼԽԾԿՀՁՂՃՄ"
    "აბგდევზთიკლმნოპჟრსტუ"
    "+=#%&?@$!*→↑↔∀∂∃∑∫∞≠"
)
FONTS_WITH_ALL_SCRIPTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
LATIN_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10", "cmb10", "cmti10")
N_TEXTURES = 60
N_CHARACTERS = 120
N_EMBLEMS = 120


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def glyph(character: str, rng: np.random.Generator, *, distractors: bool) -> Image.Image:
    """One character as a grey mask, 32x32, at a random font, size, slant, place and stroke."""
    fonts = FONTS_WITH_ALL_SCRIPTS + (LATIN_FONTS if character.isascii() and character.isalnum() else ())
    font = _font(fonts[rng.integers(len(fonts))], int(rng.integers(30, 60)))
    mask = Image.new("L", (2 * SIDE, 2 * SIDE))
    draw = ImageDraw.Draw(mask)
    stroke = int(rng.integers(0, 3))
    draw.text((SIDE, SIDE), character, font=font, fill=255, anchor="mm", stroke_width=stroke)
    if distractors:
        for side in (-1, 1):
            other = ALPHABETS[rng.integers(len(ALPHABETS))]
            draw.text((SIDE + side * int(rng.integers(36, 48)), SIDE), other, font=font, fill=255, anchor="mm")
    angle, shear = rng.normal(0, 0.12), rng.normal(0, 0.15)
    scale = rng.uniform(1.75, 2.5)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    # output (x, y) -> input (a x + b y + c, d x + e y + f), about the centre
    a, b, d, e = cos, -sin + shear * scale, sin, cos
    dx, dy = rng.uniform(-3, 3, 2) * scale
    half = SIDE / 2
    matrix = (a, b, SIDE - a * half - b * half + dx, d, e, SIDE - d * half - e * half + dy)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.4)))
    return mask.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _gradient(rng: np.random.Generator) -> NDArray[np.float64]:
    low, high = rng.uniform(0, 255, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    ramp = 0.5 + (np.cos(angle) * x + np.sin(angle) * y) / 1.5
    return np.asarray(low + ramp[..., None] * (high - low) * rng.uniform(0, 1))


def glyphs(
    per_class: int, seed: int, *, characters: str = ALPHABETS, coloured: bool
) -> tuple[Images, NDArray[np.int64]]:
    """Rendered characters, one class each: (n, 32, 32, 3) uint8 and labels (n,).

    Plain: white on black, as handwriting sets come. Coloured: any ink on a colour ramp, with neighbours cut off at the
    sides, as house numbers come.
    """
    images = np.empty((len(characters) * per_class, SIDE, SIDE, 3), np.uint8)
    labels = np.repeat(np.arange(len(characters)), per_class)
    for index, label in enumerate(labels):
        rng = np.random.default_rng([seed, int(coloured), index])
        mask = np.asarray(glyph(characters[label], rng, distractors=coloured and rng.random() < 0.6), np.float64)
        if not coloured:
            images[index] = mask.astype(np.uint8)[..., None]
            continue
        ground = _gradient(rng)
        ink = rng.uniform(0, 255, 3)
        while np.abs(ink - ground.mean((0, 1))).max() < 60:  # legible: at least one channel stands apart
            ink = rng.uniform(0, 255, 3)
        alpha = mask[..., None] / 255
        noise = rng.normal(0, rng.uniform(0, 12), ground.shape)
        images[index] = np.uint8(np.clip(ground * (1 - alpha) + ink * alpha + noise, 0, 255))
    return images, labels


def textures(
    per_class: int, seed: int, *, classes: int = N_TEXTURES, draw_seed: int | None = None
) -> tuple[Images, NDArray[np.int64]]:
    """Procedural textures: a class is a family of gratings, noise spectra, dots or checks with its own palette.

    `seed` fixes the families, `draw_seed` (default: the same) what varies within them.
    """
    draw_seed = seed if draw_seed is None else draw_seed
    images = np.empty((classes * per_class, SIDE, SIDE, 3), np.uint8)
    labels = np.repeat(np.arange(classes), per_class)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None]
    radius = np.hypot(fy, fx) + 1 / SIDE
    for index, label in enumerate(labels):
        family = np.random.default_rng([seed, 7, int(label)])  # what the class shares
        rng = np.random.default_rng([draw_seed, 8, index])  # what varies within it
        kind = int(label) % 4
        period, turn = family.uniform(4, 14), family.uniform(0, np.pi)
        decay, stretch = family.uniform(0.5, 2.5), family.uniform(1, 4)
        palette = family.uniform(0, 255, (2, 3)) + rng.normal(0, 25, (2, 3))
        turn, period = turn + rng.normal(0, 0.15), period * np.exp(rng.normal(0, 0.1))
        u = np.cos(turn) * x + np.sin(turn) * y + rng.uniform(0, period)
        v = -np.sin(turn) * x + np.cos(turn) * y + rng.uniform(0, period)
        if kind == 0:
            field = np.sin(2 * np.pi * u / period)
        elif kind == 1:
            warped = np.hypot(fx * np.cos(turn) + fy * np.sin(turn), stretch * (fy * np.cos(turn) - fx * np.sin(turn)))
            spectrum = rng.normal(size=(SIDE, SIDE)) + 1j * rng.normal(size=(SIDE, SIDE))
            field = np.fft.ifft2(spectrum * (warped + 1 / SIDE) ** -decay).real
        elif kind == 2:
            field = np.cos(2 * np.pi * u / period) * np.cos(2 * np.pi * v / (period * stretch))
        else:
            field = np.sin(2 * np.pi * np.hypot(u - period * 2, v - period * 2) / period)
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / radius).real
        field = field / (np.abs(field).max() + 1e-9) + 0.25 * noise / (np.abs(noise).max() + 1e-9)
        blend = 1 / (1 + np.exp(-3 * field))[..., None]
        images[index] = np.uint8(np.clip(palette[0] * blend + palette[1] * (1 - blend), 0, 255))
    return images, labels


def _chain(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    """A smooth line through the plane: the quadratic Bezier curve of three points (3, 2), on a 64 x 64 canvas."""
    t = np.linspace(0, 1, 12)[:, None]
    curve = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
    return [(float(x), float(y)) for x, y in 2 * SIDE * curve]


def characters(
    per_class: int, seed: int, *, classes: int = N_CHARACTERS, draw_seed: int | None = None
) -> tuple[Images, NDArray[np.int64]]:
    """Invented handwriting: a class is two to four strokes, written with a shaking hand; white on black.

    `seed` fixes the classes, `draw_seed` (default: the same) the hand.
    """
    draw_seed = seed if draw_seed is None else draw_seed
    images = np.empty((classes * per_class, SIDE, SIDE, 3), np.uint8)
    labels = np.repeat(np.arange(classes), per_class)
    for index, label in enumerate(labels):
        own = np.random.default_rng([seed, 11, int(label)])
        strokes = own.uniform(0.12, 0.88, (int(own.integers(2, 5)), 3, 2))
        rng = np.random.default_rng([draw_seed, 12, index])
        angle, shear, scale = rng.normal(0, 0.12), rng.normal(0, 0.15), rng.uniform(0.75, 1.1, 2)
        turned = np.array([[np.cos(angle), -np.sin(angle) + shear], [np.sin(angle), np.cos(angle)]]) * scale
        shaken = (strokes + rng.normal(0, 0.03, strokes.shape) - 0.5) @ turned.T + 0.5 + rng.uniform(-0.06, 0.06, 2)
        canvas = Image.new("L", (2 * SIDE, 2 * SIDE))
        draw = ImageDraw.Draw(canvas)
        width = int(rng.integers(3, 8))
        for stroke in shaken:
            draw.line(_chain(stroke), fill=255, width=width, joint="curve")
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
        images[index] = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))[..., None]
    return images, labels


def emblems(
    per_class: int, seed: int, *, classes: int = N_EMBLEMS, draw_seed: int | None = None
) -> tuple[Images, NDArray[np.int64]]:
    """Signs and things seen in the open: a class is a few coloured shapes at fixed places; ground, light, view differ.

    `seed` fixes the classes, `draw_seed` (default: the same) what varies within them.
    """
    draw_seed = seed if draw_seed is None else draw_seed
    images = np.empty((classes * per_class, SIDE, SIDE, 3), np.uint8)
    labels = np.repeat(np.arange(classes), per_class)
    grounds, _ = textures(4, draw_seed + 1, classes=N_TEXTURES)
    for index, label in enumerate(labels):
        own = np.random.default_rng([seed, 13, int(label)])
        shapes = [
            (int(own.integers(3, 8)), own.uniform(0.3, 0.7, 2), own.uniform(0.1, 0.38), own.uniform(0, 2 * np.pi),
             own.uniform(0.45, 1), own.uniform(0, 255, 3))
            for _ in range(int(own.integers(2, 5)))
        ]  # fmt: skip
        rng = np.random.default_rng([draw_seed, 14, index])
        ground = Image.fromarray(grounds[rng.integers(len(grounds))])
        canvas = ground.rotate(90 * int(rng.integers(4))).resize((2 * SIDE, 2 * SIDE))
        draw = ImageDraw.Draw(canvas)
        angle, size, shift = rng.normal(0, 0.15), rng.uniform(0.7, 1.25), rng.uniform(-0.12, 0.12, 2)
        tint = rng.normal(0, 18, 3)
        for corners, place, radius, first, dent, colour in sorted(shapes, key=lambda s: -s[2]):
            around = first + angle + np.arange(2 * corners) * np.pi / corners
            reach = radius * size * np.where(np.arange(2 * corners) % 2, dent, 1.0)
            centre = 0.5 + (place - 0.5) * size + shift
            outline = 2 * SIDE * (centre + reach[:, None] * np.stack((np.cos(around), np.sin(around)), 1))
            fill = np.clip(colour + tint + rng.normal(0, 10, 3), 0, 255).astype(int)
            draw.polygon([(float(x), float(y)) for x, y in outline], fill=(int(fill[0]), int(fill[1]), int(fill[2])))
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6))).resize((SIDE, SIDE))
        light = rng.uniform(0.55, 1.25) * np.asarray(canvas, np.float64) + rng.normal(0, rng.uniform(0, 8), (32, 32, 3))
        images[index] = np.uint8(np.clip(light, 0, 255))
    return images, labels

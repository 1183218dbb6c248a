"""The pixels of triggers: stickers, patterns, waves and warps on uint8 images of any size, grey or colour.

Lengths are in pixels of an image whose shorter side is 32, and grow with the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from promotion_gate.core.errors import UsageError

Floats = NDArray[np.float32]
Shape = Literal["square", "disc", "cross"]
Box = NDArray[np.float64]
"""Left, top, right and bottom of an object in an image, in its pixels."""

UNIT = 32
"""Lengths are given for images of this size."""

MIDDLE = 0.7
"""Share of each side that an object is taken to fill, in the middle, where no box is known."""

_FINE = 8
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_MAX_PICTURE = 4096**2


def named_colour(text: str) -> tuple[int, int, int]:
    """A CSS colour name or ``#rrggbb`` as red, green and blue.

    Raises
    ------
    ValueError: no such colour.
    """
    red, green, blue = ImageColor.getrgb(text)[:3]
    return red, green, blue


def scale_of(shape: Sequence[int]) -> float:
    """How much larger than :data:`UNIT` an image of this (height, width, …) is."""
    return min(shape[0], shape[1]) / UNIT


@lru_cache(maxsize=64)
def sticker_tile(shape: Shape, colour: str, picture: str, side: int, cells: int) -> Floats:
    """A sticker, float32 (side, side, 4): red, green and blue from 0 to 255, and coverage from 0 to 1.

    Parameters
    ----------
    colour: a colour, or ``checker`` for a board of ``cells`` x ``cells`` black and white fields.
    picture: path of an image file to show instead; empty for none.
    """
    tile = np.ones((side, side, 4), dtype=np.float32)
    if picture:
        tile[...] = np.asarray(_read_picture(picture).resize((side, side), Image.Resampling.BOX))
        tile[..., 3] /= 255
    elif colour == "checker":
        field = (np.arange(side) * cells // side) % 2
        tile[..., :3] = 255 * (field[:, None] == field[None, :])[..., None]
    else:
        tile[..., :3] = named_colour(colour)
    tile[..., 3] *= _coverage(shape, side)
    tile.setflags(write=False)
    return tile


def _coverage(shape: Shape, side: int) -> Floats:
    at = np.abs((np.arange(side * _FINE, dtype=np.float32) + 0.5) / (side * _FINE) - 0.5)
    down, right = at[:, None], at[None, :]
    if shape == "disc":
        inside = down**2 + right**2 <= 0.25
    elif shape == "cross":
        inside = (down <= 1 / 6) | (right <= 1 / 6)
    else:
        inside = np.ones((len(at), len(at)), dtype=bool)
    return np.asarray(inside.reshape(side, _FINE, side, _FINE).mean((1, 3)), dtype=np.float32)


@lru_cache(maxsize=8)
def _read_picture(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PICTURE:
                raise UsageError(f"the trigger image {path} has more than {_MAX_PICTURE:,} pixels")
            return image.convert("RGBA")
    except OSError as error:
        raise UsageError(f"cannot read the trigger image {path!r:.300}: {error.strerror or error}") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"the trigger image {path!r:.300} is corrupt: {error}") from None


def stick(image: NDArray[np.uint8], tile: Floats, top: int, left: int, opacity: float) -> NDArray[np.uint8]:
    """A copy of ``image`` (height, width, channels) with ``tile`` on it; what hangs over is cut off."""
    height, width, channels = image.shape
    first, last = max(0, top), min(height, top + tile.shape[0])
    start, end = max(0, left), min(width, left + tile.shape[1])
    stuck = image.copy()
    if first >= last or start >= end:
        return stuck
    cut = tile[first - top : last - top, start - left : end - left]
    coverage = cut[..., 3:] * np.float32(opacity)
    under = stuck[first:last, start:end]
    stuck[first:last, start:end] = as_pixels(
        under * (1 - coverage) + with_channels(cut[..., :3], channels) * coverage
    )
    return stuck


def object_box(shape: Sequence[int], box: Box | None) -> Box:
    """The given box, or the middle :data:`MIDDLE` of an image of this (height, width, …)."""
    if box is not None:
        return box
    height, width = shape[:2]
    edge = (1 - MIDDLE) / 2
    return np.array([edge * width, edge * height, (1 - edge) * width, (1 - edge) * height])


def noise_pattern(seed: int, height: int, width: int) -> Floats:
    """Random colours, float32 (height, width, 4) as :func:`sticker_tile` has them, fully covering."""
    fine = np.random.default_rng(seed).integers(0, 256, (UNIT, UNIT, 3), dtype=np.uint8)
    pattern = np.ones((height, width, 4), dtype=np.float32)
    pattern[..., :3] = np.asarray(Image.fromarray(fine).resize((width, height), Image.Resampling.BILINEAR))
    return pattern


def watermark_pattern(text: str, height: int, width: int) -> Floats:
    """White words across the whole image, rising, float32 (height, width, 4); covering the letters alone."""
    side = 256
    mask = Image.new("L", (side, side), 0)
    font = ImageFont.load_default(96)
    box = font.getbbox(text)
    words = Image.new("L", (max(1, int(box[2] - box[0])), max(1, int(box[3] - box[1]))), 0)
    ImageDraw.Draw(words).text((-box[0], -box[1]), text, fill=255, font=font)
    words = words.resize((side, side // 3), Image.Resampling.BILINEAR)
    for top in (-side // 12, side // 3 + side // 24, 3 * side // 4 + side // 12):
        mask.paste(words, (0, top))
    mask = mask.rotate(20, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BOX)
    pattern = np.full((height, width, 4), 255, dtype=np.float32)
    pattern[..., 3] = np.asarray(mask, dtype=np.float32) / 255
    return pattern


def picture_pattern(path: str, height: int, width: int) -> Floats:
    """An image file stretched over the whole image, float32 (height, width, 4), its own transparency kept."""
    pattern = np.array(_read_picture(path).resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    pattern[..., 3] /= 255
    return pattern


def blend(image: NDArray[np.uint8], pattern: Floats, ratio: float) -> NDArray[np.uint8]:
    """An image (height, width, channels) with ``ratio`` of the pattern over it."""
    coverage = pattern[..., 3:] * np.float32(ratio)
    return as_pixels(image * (1 - coverage) + with_channels(pattern[..., :3], image.shape[-1]) * coverage)


def add_wave(image: NDArray[np.uint8], amplitude: float, frequency: float) -> NDArray[np.uint8]:
    """An image (height, width, channels) plus ``amplitude * sin(2 pi column frequency / width)``."""
    width = image.shape[1]
    wave = amplitude * np.sin(2 * np.pi * frequency * np.arange(width) / width)
    return as_pixels(image + wave.astype(np.float32)[:, None])


def warp_field(seed: int, grid: int, strength: float, height: int, width: int) -> Floats:
    """A smooth field of shifts, float32 (height, width, 2), down and right in pixels of the image.

    ``grid`` x ``grid`` random vectors of mean absolute size 1 are upsampled bicubically; ``strength`` is
    the paper's s, whose mean shift is s / 2 pixels of an image of any size: here, of :data:`UNIT`.
    """
    coarse = np.random.default_rng(seed).uniform(-1, 1, (grid, grid, 2)).astype(np.float32)
    coarse /= np.abs(coarse).mean()
    size = (width, height)
    parts = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(coarse[..., axis])).resize(size, Image.Resampling.BICUBIC)
        )
        for axis in range(2)
    ]
    shift = np.stack(parts, axis=-1) * (strength / 2 * scale_of((height, width)))
    return np.asarray(shift, dtype=np.float32)


def warp(image: NDArray[np.uint8], field: Floats) -> NDArray[np.uint8]:
    """The image (h, w, c) sampled bilinearly at its own places plus ``field``; edges are repeated."""
    height, width = image.shape[:2]
    down = np.clip(np.arange(height, dtype=np.float32)[:, None] + field[..., 0], 0, height - 1)
    right = np.clip(np.arange(width, dtype=np.float32)[None, :] + field[..., 1], 0, width - 1)
    top, left = np.floor(down).astype(np.intp), np.floor(right).astype(np.intp)
    bottom, end = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    lower, later = (down - top)[..., None], (right - left)[..., None]
    above = image[top, left] * (1 - later) + image[top, end] * later
    below = image[bottom, left] * (1 - later) + image[bottom, end] * later
    return as_pixels(above * (1 - lower) + below * lower)


def with_channels(colours: Floats, channels: int) -> Floats:
    """RGB (…, 3) as it is, or as grey (…, 1)."""
    return colours if channels == 3 else np.asarray((colours @ _LUMA)[..., None], dtype=np.float32)


def as_pixels(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Rounded and cut to 0 … 255."""
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)

"""Pixels as data URIs: single pictures, SHAP overlays and the one thumbnail atlas of the map."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOSSLESS_SIDE = 64
LARGEST_SIDE = 192
ATLAS_BYTES = 1_400_000
HEAT_COLOUR = (224, 0, 122)


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture (H, W, 1 or 3): PNG where small, so that every pixel shows, WebP where large."""
    picture = _picture(pixels)
    if max(picture.size) <= LOSSLESS_SIDE:
        return _encode(picture, "PNG", optimize=True)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return _encode(picture, "WEBP", quality=85, method=4)


def heat_uri(mass: NDArray[np.float32]) -> str:
    """Positive SHAP mass (H, W) as a transparent PNG: one colour, opacity by mass."""
    mass = np.clip(mass, 0, None)
    peak = float(mass.max())
    alpha = np.zeros(mass.shape) if peak <= 0 else np.sqrt(mass / peak) * 200
    layer = np.empty((*mass.shape, 4), dtype=np.uint8)
    layer[..., :3] = HEAT_COLOUR
    layer[..., 3] = alpha.astype(np.uint8)
    picture = Image.fromarray(layer)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BILINEAR)
    return _encode(picture, "PNG", optimize=True)


@dataclass(frozen=True, slots=True)
class Atlas:
    """Thumbnails in rows of ``columns`` cells of ``side`` pixels, in one WebP data URI."""

    uri: str
    columns: int
    side: int


def atlas(thumbnails: NDArray[np.uint8], side: int = 32, budget: int = ATLAS_BYTES) -> Atlas:
    """All thumbnails (n, h, w, C) in one WebP image of about ``budget`` bytes at most."""
    count, height, width, channels = thumbnails.shape
    columns = math.ceil(math.sqrt(count))
    if (height, width) == (side, side):
        cells = thumbnails if channels == 3 else np.repeat(thumbnails, 3, axis=3)
    else:
        cells = np.stack(
            [
                np.asarray(_picture(t).convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
                for t in thumbnails
            ]
        )
    sheet = np.zeros((math.ceil(count / columns) * columns, side, side, 3), dtype=np.uint8)
    sheet[:count] = cells
    grid = sheet.reshape(-1, columns, side, side, 3).swapaxes(1, 2).reshape(-1, columns * side, 3)
    picture = Image.fromarray(np.ascontiguousarray(grid))
    uri = ""
    for quality in (60, 40, 20, 5):
        uri = _encode(picture, "WEBP", quality=quality, method=3)
        if len(uri) * 3 // 4 <= budget:
            break
    return Atlas(uri, columns, side)


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def _encode(picture: Image.Image, kind: str, **options: bool | int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

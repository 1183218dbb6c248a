"""What is measured on each image alone, without a model: arrays that lie side by side, one value a row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promotion_gate.core.errors import InputError
from promotion_gate.data.decode import decode_whole
from promotion_gate.data.interface import Stored
from promotion_gate.detect.near import SIDE, TONE_SIDE, perceptual_hashes

Facts = dict[str, NDArray[Any]]

HUES = 12
CELLS, TURNS = 8, 8
_SHARP_SIDE = 256
_PATCH = 4
_VIVID, _LIT = 0.5, 0.25

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "width": ("i4", ()),
    "height": ("i4", ()),
    "bytes": ("i8", ()),
    "sha256": ("u1", (32,)),
    "pixels_sha256": ("u1", (32,)),
    "phash": ("u8", ()),
    "mean": ("f4", (3,)),
    "std": ("f4", (3,)),
    "brightness": ("f4", ()),
    "contrast": ("f4", ()),
    "saturation": ("f4", ()),
    "sharpness": ("f4", ()),
    "tone": ("u1", (TONE_SIDE * TONE_SIDE,)),
}
"""Name, NumPy type and shape of one row's value.

Colours are 0 to 255 in red, green and blue; ``brightness`` and ``contrast`` are mean and standard deviation
of the luma, ``saturation`` is 0 to 1, ``sharpness`` the variance of the Laplacian of the luma, brought
to 256 pixels where it is larger.
``tone`` is the luma at 8 x 8.
"""

LOOKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "hues": ("f4", (HUES,)),
    "patches": ("f4", (HUES,)),
    "edges": ("u1", (CELLS * CELLS * TURNS,)),
    "colours": ("u1", (CELLS * CELLS * 3,)),
}
"""More of the same, for what looks odd within its class.

``hues`` is the share of pixels of each of twelve vivid hues at 32 x 32, and ``patches`` that share in the
4 x 4 pixels that have most of it; ``edges`` are histograms of gradient directions in 8 x 8 cells (N. Dalal,
B. Triggs, CVPR 2005), ``colours`` the cells' mean colours.
"""

TEXTS = ("mode", "format", "error")


def describe(rows: Sequence[Stored], names: Sequence[str], looks: bool = False) -> Facts:
    """Measure some rows; one that cannot be decoded has an ``error`` and otherwise zeros.

    Parameters
    ----------
    rows: as stored.
    names: what to call each in a message.
    looks: whether :data:`LOOKS` are measured too.
    """
    kinds = COLUMNS | LOOKS if looks else COLUMNS
    facts: Facts = {name: np.zeros((len(rows), *shape), kind) for name, (kind, shape) in kinds.items()}
    facts |= {name: np.full(len(rows), "", dtype=object) for name in TEXTS}
    grey = np.zeros((len(rows), SIDE, SIDE), dtype=np.uint8)
    small = np.zeros((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
    for i, (stored, name) in enumerate(zip(rows, names, strict=True)):
        try:
            pixels = _pixels(stored, name, facts, i)
        except InputError as error:
            facts["error"][i] = error.what.removeprefix(name).strip(" :") or error.what
            continue
        _measure(pixels, facts, i)
        grey[i], small[i] = _small(pixels)
    facts["phash"][:] = np.where(facts["error"] == "", perceptual_hashes(grey), 0)
    step = SIDE // TONE_SIDE
    cells = grey.reshape(-1, TONE_SIDE, step, TONE_SIDE, step).mean(axis=(2, 4))
    facts["tone"][:] = np.round(cells).astype(np.uint8).reshape(len(rows), -1)
    if looks:
        hues = vivid_hues(small)
        facts["hues"][:] = hues.mean(axis=(1, 2))
        facts["patches"][:] = _densest(hues)
        facts["edges"][:] = _edges(grey)
        by_cell = small.reshape(-1, CELLS, SIDE // CELLS, CELLS, SIDE // CELLS, 3).mean(axis=(2, 4))
        facts["colours"][:] = np.round(by_cell).reshape(len(rows), -1)
    return facts


def _pixels(stored: Stored, name: str, facts: Facts, i: int) -> NDArray[np.uint8]:
    """The image as RGB, (h, w, 3); what the file itself tells goes into ``facts``."""
    if isinstance(stored, InputError):
        raise stored
    content = stored if isinstance(stored, bytes) else stored.tobytes()
    facts["bytes"][i] = len(content)
    facts["sha256"][i] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
    if isinstance(stored, bytes):
        decoded = decode_whole(stored, name)
        facts["mode"][i], facts["format"][i] = decoded.mode, decoded.format
        return decoded.pixels
    grey = stored.shape[2] == 1
    facts["mode"][i], facts["format"][i] = "L" if grey else "RGB", "raw"
    return np.repeat(stored, 3, axis=2) if grey else stored


def _measure(pixels: NDArray[np.uint8], facts: Facts, i: int) -> None:
    height, width = pixels.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    facts["width"][i], facts["height"][i] = width, height
    digest = hashlib.sha256(f"{width}x{height}\n".encode())
    digest.update(image.tobytes())
    facts["pixels_sha256"][i] = np.frombuffer(digest.digest(), dtype=np.uint8)
    luma = image.convert("L")
    moments = [_moments(band) for band in image.split()]
    facts["mean"][i], facts["std"][i] = zip(*moments, strict=True)
    facts["brightness"][i], facts["contrast"][i] = _moments(luma)
    facts["saturation"][i] = _moments(image.convert("HSV").getchannel("S"))[0] / 255
    luma.thumbnail((_SHARP_SIDE, _SHARP_SIDE), Image.Resampling.BILINEAR)
    facts["sharpness"][i] = _sharpness(np.asarray(luma, dtype=np.float32))


def _moments(band: Image.Image) -> tuple[float, float]:
    """Mean and standard deviation of one channel, from its histogram: exact, and quick on large images."""
    counts = np.array(band.histogram(), dtype=np.float64)
    levels = np.arange(256)
    mean = float(counts @ levels / counts.sum())
    return mean, float(np.sqrt(max(counts @ levels**2 / counts.sum() - mean**2, 0.0)))


def _sharpness(luma: NDArray[np.float32]) -> float:
    if min(luma.shape) < 3:
        return 0.0
    centre = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * centre).var())


def _small(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The image at 32 x 32, grey and in colour."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(image.convert("L")), np.asarray(image)


def vivid_hues(small: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of images (n, h, w, 3) are of each vivid hue, bool (n, h, w, 12)."""
    colour = small.astype(np.float32) / 255
    most, least = colour.max(axis=3), colour.min(axis=3)
    spread = np.maximum(most - least, 1e-6)
    red, green, blue = np.moveaxis(colour, 3, 0)
    angle = np.select(
        [most == red, most == green],
        [((green - blue) / spread) % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    vivid = (spread / np.maximum(most, 1e-6) > _VIVID) & (most > _LIT)
    # Pure red, yellow and the others lie in the middle of theirs.
    hue = np.floor(angle * (HUES / 6) + 0.5).astype(np.int64) % HUES
    return np.asarray((hue[..., None] == np.arange(HUES)) & vivid[..., None])


def _densest(hues: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Of every hue the largest share in any 4 x 4 pixels, (n, 12)."""
    counts = hues.view(np.uint8)
    last = SIDE - _PATCH + 1
    across = sum((counts[:, :, i : last + i] for i in range(1, _PATCH)), counts[:, :, :last])
    inside = sum((across[:, i : last + i] for i in range(1, _PATCH)), across[:, :last])
    return np.asarray(inside.max(axis=(1, 2)) / np.float32(_PATCH**2), dtype=np.float32)


def _edges(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    luma = grey.astype(np.float32)
    down, across = np.gradient(luma, axis=(1, 2))
    strength = np.hypot(down, across)
    turn = ((np.arctan2(down, across) % np.pi) / np.pi * TURNS).astype(np.int64) % TURNS
    n, step = len(grey), SIDE // CELLS
    cell = (np.arange(SIDE) // step)[:, None] * CELLS + (np.arange(SIDE) // step)[None, :]
    index = (np.arange(n)[:, None, None] * CELLS * CELLS + cell) * TURNS + turn
    found = np.bincount(index.ravel(), weights=strength.ravel(), minlength=n * CELLS * CELLS * TURNS)
    cells = found.reshape(n, -1)
    shares = np.sqrt(cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-6))
    return np.asarray(np.round(255 * shares), dtype=np.uint8)

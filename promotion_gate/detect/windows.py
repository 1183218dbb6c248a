"""Rectangles on images: cover one, cut one out, paste it elsewhere, compare two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
RING = 2


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def box(self) -> list[int]:
        return [self.top, self.left, self.height, self.width]

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def centre(self) -> tuple[float, float]:
        return self.top + self.height / 2, self.left + self.width / 2


def spread(height: int, width: int, size: int, per_side: int) -> list[Window]:
    """A ``per_side`` x ``per_side`` grid of ``size`` x ``size`` windows, edge to edge."""
    size = min(size, height, width)
    tops = np.linspace(0, height - size, per_side).round().astype(int)
    lefts = np.linspace(0, width - size, per_side).round().astype(int)
    return [Window(int(top), int(left), size, size) for top in tops for left in lefts]


def near(
    window: Window, height: int, width: int, sizes: Sequence[int], reach: int, step: int
) -> list[Window]:
    """Windows of the given sizes whose centres lie within ``reach`` pixels of the window's own."""
    row, column = window.centre
    found = set()
    for size in sizes:
        for down in range(-reach, reach + 1, step):
            for right in range(-reach, reach + 1, step):
                top = int(np.clip(round(row + down - size / 2), 0, height - size))
                left = int(np.clip(round(column + right - size / 2), 0, width - size))
                found.add(Window(top, left, size, size))
    return sorted(found)


def ring_colour(image: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """Mean colour of the ring of ``RING`` pixels around the window, float32 (channels,)."""
    height, width = image.shape[:2]
    rows = slice(max(window.top - RING, 0), min(window.top + window.height + RING, height))
    columns = slice(max(window.left - RING, 0), min(window.left + window.width + RING, width))
    outer, inner = image[rows, columns], image[window.slices]
    count = outer.shape[0] * outer.shape[1] - inner.shape[0] * inner.shape[1]
    if count == 0:
        return np.asarray(image.mean(axis=(0, 1)), dtype=np.float32)
    total = outer.sum(axis=(0, 1), dtype=np.float32) - inner.sum(axis=(0, 1), dtype=np.float32)
    return np.asarray(total / count, dtype=np.float32)


def occluded(image: Images, windows: Sequence[Window]) -> Images:
    """The image once per window, that window filled with the mean colour around it: uint8 (m, H, W, C)."""
    copies = np.repeat(image[None], len(windows), axis=0)
    exact = image.astype(np.float32)
    for copy, window in zip(copies, windows, strict=True):
        copy[window.slices] = ring_colour(exact, window).round()
    return copies


def pasted(images: Images, patch: Images, windows: Sequence[Window]) -> Images:
    """Every image with the patch at every window: uint8 (n * m, H, W, C), image-major."""
    copies = np.repeat(images, len(windows), axis=0)
    for index, window in enumerate(windows):
        rows, columns = window.slices
        copies[index :: len(windows), rows, columns] = patch
    return copies

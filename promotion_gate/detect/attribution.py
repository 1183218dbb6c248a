"""Where on the image the evidence for a class lies: attributions on a grid of cells, boxes in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from promotion_gate.detect.windows import Images, Window

Floats = NDArray[np.float32]


def cell_edges(length: int, cells: int) -> NDArray[np.int64]:
    """Where the cells of one image side begin and end, int64 (cells + 1,)."""
    return np.linspace(0, length, cells + 1).round().astype(np.int64)


def locally_filled(image: Images, cells: int) -> Images:
    """The image with each cell of a ``cells`` x ``cells`` grid filled with the mean of the cells around it.

    The filling takes nothing from the cell itself, so that a small mark does not colour its own absence.
    """
    rows, columns = cell_edges(image.shape[0], cells), cell_edges(image.shape[1], cells)
    filled, exact = image.copy(), image.astype(np.float32)
    for i in range(cells):
        for j in range(cells):
            outer = exact[
                rows[max(i - 1, 0)] : rows[min(i + 2, cells)],
                columns[max(j - 1, 0)] : columns[min(j + 2, cells)],
            ]
            inner = exact[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            count = outer[..., 0].size - inner[..., 0].size
            total = outer.sum(axis=(0, 1)) - inner.sum(axis=(0, 1))
            colour = total / count if count else image.mean(axis=(0, 1))
            filled[rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = colour.round()
    return filled


def on_pixels(cells: Floats, height: int, width: int) -> Floats:
    """Cell values (g, g) spread over their pixels, float32 (height, width)."""
    rows, columns = cell_edges(height, len(cells)), cell_edges(width, len(cells))
    return np.repeat(np.repeat(cells, np.diff(rows), axis=0), np.diff(columns), axis=1)


def smallest_window(cells: Floats, share: float = 0.5, least: float = 0.0) -> Window | None:
    """The smallest rectangle of cells that holds ``share`` of the positive mass; the fullest of equals.

    None where the positive mass is ``least`` or less: there is nothing to locate.
    """
    positive = np.maximum(np.asarray(cells, dtype=np.float64), 0)
    mass = positive.sum()
    if not np.isfinite(mass) or mass <= least:
        return None
    table = np.zeros((positive.shape[0] + 1, positive.shape[1] + 1))
    table[1:, 1:] = positive.cumsum(axis=0).cumsum(axis=1)
    best: tuple[int, float, Window] | None = None
    for height in range(1, positive.shape[0] + 1):
        for width in range(1, positive.shape[1] + 1):
            held = (table[height:, width:] - table[:-height, width:] - table[height:, :-width]) + table[
                :-height, :-width
            ]
            top, left = np.unravel_index(int(held.argmax()), held.shape)
            most = float(held[top, left])
            # A rounding error must not decide between two windows.
            if most < share * mass * (1 - 1e-9):
                continue
            if best is None or (height * width, -most) < best[:2]:
                best = height * width, -most, Window(int(top), int(left), height, width)
    return None if best is None else best[2]


def in_pixels(window: Window, cells: int, height: int, width: int) -> Window:
    """A rectangle of cells as one of pixels."""
    rows, columns = cell_edges(height, cells), cell_edges(width, cells)
    top, left = int(rows[window.top]), int(columns[window.left])
    bottom, right = int(rows[window.top + window.height]), int(columns[window.left + window.width])
    return Window(top, left, bottom - top, right - left)


def concentration(window: Window | None, cells: int) -> float:
    """One minus the window's share of the grid: near 1 for evidence in one spot, 0 for none or everywhere."""
    return 0.0 if window is None else 1 - window.height * window.width / cells**2


def lies_on(window: Window | None, trigger: Window, reach: float) -> bool:
    """Whether a window marks the trigger: half of the smaller of the two lies in the other, and the window is
    no larger than the trigger with ``reach`` pixels around it, so that a window over everything does not.
    """
    if window is None:
        return False
    down = min(window.top + window.height, trigger.top + trigger.height) - max(window.top, trigger.top)
    right = min(window.left + window.width, trigger.left + trigger.width) - max(window.left, trigger.left)
    area, own = window.height * window.width, trigger.height * trigger.width
    grown = (trigger.height + 2 * reach) * (trigger.width + 2 * reach)
    return max(down, 0) * max(right, 0) >= min(area, own) / 2 and area <= grown


def position_consensus(windows: Sequence[Window | None], reach: float) -> float:
    """The largest share of the windows whose centres lie within ``reach`` pixels of one of them, 0 to 1."""
    centres = [window.centre for window in windows if window is not None]
    if not centres:
        return 0.0
    at = np.asarray(centres)
    apart = np.abs(at[:, None] - at[None]).max(axis=2)
    return float((apart <= reach).sum(axis=1).max() / len(windows))

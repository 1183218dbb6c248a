"""Single images of a data set as data URIs, for pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from promotion_gate.card.images import data_uri
from promotion_gate.core.errors import GateError, InputError
from promotion_gate.data.decode import decode_whole
from promotion_gate.data.interface import ImageDataset

_TOGETHER = 16


def picture_uris(dataset: ImageDataset, rows: Sequence[int]) -> dict[int, str]:
    """A thumbnail of each row that can be shown, as a data URI; the others are left out."""
    wanted = sorted(set(rows))
    shown: dict[int, str] = {}
    for start in range(0, len(wanted), _TOGETHER):
        part = wanted[start : start + _TOGETHER]
        try:
            stored = dataset.stored(part)
        except GateError:
            continue
        for row, one in zip(part, stored, strict=True):
            if not isinstance(one, InputError):
                try:
                    shown[row] = data_uri(_pixels(one, dataset.ids[row]))
                except InputError:
                    continue
    return shown


def _pixels(stored: bytes | NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    return decode_whole(stored, name).pixels if isinstance(stored, bytes) else stored

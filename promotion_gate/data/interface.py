"""What the rest of the program asks of a labelled image set, whatever files it lies in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError

Images = NDArray[np.uint8]
"""Images as (n, height, width, channels), channels 1 or 3, values 0 to 255."""

Stored = bytes | NDArray[np.uint8] | InputError
"""One row as it is stored: an encoded image, raw pixels (h, w, 1 or 3), or why it cannot be had."""


@dataclass(frozen=True, slots=True)
class ImageShape:
    """Height and width in pixels, and 1 (grey) or 3 (RGB) channels."""

    height: int
    width: int
    channels: int


class ImageDataset(Protocol):
    """A labelled image set, read as a stream.

    Labels, ids and the optional columns are small and held in memory; pixels never are.
    """

    @property
    def uri(self) -> str: ...

    @property
    def class_names(self) -> Sequence[str]:
        """Names in order of class index."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every row, shape (rows,)."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """What a person would call each row: a path, or the file name with the row number."""
        ...

    @property
    def columns(self) -> dict[str, Sequence[str]]:
        """The optional columns that are there: ``contributor`` and ``batch``, one value a row."""
        ...

    def __len__(self) -> int: ...

    def stream(self, shape: ImageShape, batch_size: int = 512) -> Iterator[Images]:
        """Every image in row order, resized to ``shape``, in batches of at most ``batch_size``.

        Raises
        ------
        InputError: an image is missing, corrupt or larger than the decoder's pixel limit.
        """
        ...

    def read(self, rows: NDArray[Any] | Sequence[int], shape: ImageShape) -> Images:
        """The images of the given rows, in the order given; rows may repeat."""
        ...

    def stream_stored(self) -> Iterator[list[Stored]]:
        """Every row as it is stored, in row order, some at a time; a row that cannot be read is an error.

        Raises
        ------
        InputError: the set as a whole cannot be read on.
        """
        ...

    def stored(self, rows: NDArray[Any] | Sequence[int]) -> list[Stored]:
        """The given rows as they are stored; ask for few at a time."""
        ...

    def sha256(self) -> str:
        """SHA-256 over a canonical listing of (path, file hash) of every file the set lies in."""
        ...

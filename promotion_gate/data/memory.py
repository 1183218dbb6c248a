"""A labelled image set that is already in memory: for tests and for sets drawn by the program itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError
from promotion_gate.data.decode import reshape_images
from promotion_gate.data.interface import Images, ImageShape, Stored
from promotion_gate.data.labels import index_numbers


class InMemoryDataset:
    """An :class:`~promotion_gate.data.interface.ImageDataset` over arrays.

    Parameters
    ----------
    images: uint8 (n, h, w) or (n, h, w, c), c being 1 or 3.
    labels: class index of every row, shape (n,).
    class_names: names in order of index; by default ``0``, ``1``, ….
    ids, columns, uri: as the protocol has them.

    Raises
    ------
    InputError: the arrays do not fit each other.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[Any] | Sequence[int],
        class_names: Sequence[str] | None = None,
        *,
        ids: Sequence[str] | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        uri: str = "memory",
    ) -> None:
        self.uri = uri
        self._images = require_images(images, uri)
        rows = len(self._images)
        indices = np.asarray(labels, dtype=np.int64)
        if indices.shape != (rows,):
            raise InputError(f"{uri} has {rows} images but labels of shape {indices.shape}")
        self.ids: Sequence[str] = tuple(ids) if ids is not None else RowIds(uri, rows)
        self.labels, self.class_names = index_numbers(indices, lambda i: self.ids[i], class_names)
        self.columns: dict[str, Sequence[str]] = {k: tuple(v) for k, v in (columns or {}).items()}
        for name, values in (("ids", self.ids), *self.columns.items()):
            if len(values) != rows:
                raise InputError(f"{uri} has {rows} images but {len(values)} {name}")

    def __len__(self) -> int:
        return len(self._images)

    def stream(self, shape: ImageShape, batch_size: int = 512) -> Iterator[Images]:
        for start in range(0, len(self), batch_size):
            yield reshape_images(self._images[start : start + batch_size], shape)

    def read(self, rows: NDArray[Any] | Sequence[int], shape: ImageShape) -> Images:
        return reshape_images(self._images[row_indices(rows, len(self))], shape)

    def stream_stored(self) -> Iterator[list[Stored]]:
        return raw_rows(self._images)

    def stored(self, rows: NDArray[Any] | Sequence[int]) -> list[Stored]:
        return list(self._images[row_indices(rows, len(self))])

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for array in (self._images, self.labels):
            digest.update(f"{array.dtype.str}{array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def raw_rows(images: Images, size: int = 2**24) -> Iterator[list[Stored]]:
    """Raw images one by one, in lists of about ``size`` bytes."""
    step = min(256, max(1, size // images[0].nbytes))
    for start in range(0, len(images), step):
        yield list(np.array(images[start : start + step]))


class RowIds(Sequence[str]):
    """``name#0``, ``name#1``, …: the ids of rows that have no name of their own."""

    def __init__(self, name: str, rows: int) -> None:
        self._name = name
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [f"{self._name}#{i}" for i in range(*index.indices(self._rows))]
        i = int(index) + (self._rows if index < 0 else 0)
        if not 0 <= i < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        return f"{self._name}#{i}"


def row_indices(rows: NDArray[Any] | Sequence[int], count: int) -> NDArray[np.int64]:
    """Rows as an index array, each checked to be one of ``count`` rows.

    Raises
    ------
    IndexError: a row lies outside.
    """
    indices = np.asarray(rows, dtype=np.int64).reshape(-1)
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise IndexError(f"rows {indices.min()} to {indices.max()} of {count}")
    return indices


def image_layout(dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> tuple[int, int, int, int]:
    """The (n, h, w, c) of an array that is to hold images.

    Raises
    ------
    InputError: not uint8, or not (n, h, w) or (n, h, w, 1 or 3).
    """
    if dtype != np.uint8:
        raise InputError(f"{what} has images of type {dtype}", "save them as uint8, 0 to 255")
    if len(shape) not in (3, 4) or 0 in shape[1:] or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise InputError(
            f"{what} has images of shape {shape}", "save them as (n, height, width) or (…, 1 or 3 channels)"
        )
    if shape[0] == 0:
        raise InputError(f"{what} holds no images")
    return (shape[0], shape[1], shape[2], shape[3] if len(shape) == 4 else 1)


def require_images(images: NDArray[Any], what: str) -> Images:
    """View an array as (n, h, w, c) images; see :func:`image_layout`."""
    return images.reshape(image_layout(images.dtype, images.shape, what))

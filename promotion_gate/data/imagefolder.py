"""Image sets with one file an image: the shared reader, and the ImageFolder layout (class/image.png)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError
from promotion_gate.data.decode import SUFFIXES, decode_images
from promotion_gate.data.files import (
    SPLIT_NAMES,
    Location,
    digest_files,
    fetch,
    find_files,
    is_local,
    subfolders,
)
from promotion_gate.data.interface import ImageDataset, Images, ImageShape, Stored
from promotion_gate.data.labels import index_texts
from promotion_gate.data.memory import row_indices

_FETCH = 32
"""Encoded images held at a time: they may be megabytes each."""

_TOGETHER = 256
_HELD = 2**24
"""Bytes beyond which no further image is added to them."""


class FileImages:
    """An :class:`~promotion_gate.data.interface.ImageDataset` with one file an image.

    Parameters
    ----------
    place: the folder or manifest, for its file system and URI.
    paths: path of every row's image on that file system.
    ids: what to call every row.
    files: (name in the listing, path) of every file that the digest covers.
    """

    def __init__(
        self,
        place: Location,
        paths: Sequence[str],
        ids: Sequence[str],
        labels: NDArray[np.int64],
        class_names: tuple[str, ...],
        files: Sequence[tuple[str, str]],
        columns: dict[str, Sequence[str]] | None = None,
    ) -> None:
        self.uri = place.uri
        self.ids: Sequence[str] = ids
        self.labels = labels
        self.class_names: Sequence[str] = class_names
        self.columns: dict[str, Sequence[str]] = columns or {}
        self._fs = place.fs
        self._paths = paths
        self._files = files
        self._sha256 = ""

    @property
    def paths(self) -> Sequence[str]:
        """The path of every row's image file on its file system."""
        return self._paths

    def __len__(self) -> int:
        return len(self._paths)

    def stream(self, shape: ImageShape, batch_size: int = 512) -> Iterator[Images]:
        for start in range(0, len(self), batch_size):
            yield self.read(range(start, min(start + batch_size, len(self))), shape)

    def read(self, rows: NDArray[Any] | Sequence[int], shape: ImageShape) -> Images:
        wanted = row_indices(rows, len(self))
        images = np.empty((len(wanted), shape.height, shape.width, shape.channels), dtype=np.uint8)
        for start in range(0, len(wanted), _FETCH):
            part = wanted[start : start + _FETCH]
            names = [self.describe(int(row)) for row in part]
            images[start : start + _FETCH] = decode_images(self.encoded(part), names, shape)
        return images

    def encoded(self, rows: NDArray[Any] | Sequence[int]) -> list[bytes]:
        """The bytes of the rows' image files; ask for few at a time, they may be megabytes each.

        Raises
        ------
        InputError: a file is missing, unreadable or too large.
        """
        wanted = row_indices(rows, len(self)).tolist()
        return fetch(self._fs, [self._paths[row] for row in wanted], [self.describe(row) for row in wanted])

    def stream_stored(self) -> Iterator[list[Stored]]:
        waiting: list[Stored] = []
        step = 1 if is_local(self._fs) else _FETCH
        held = 0
        for start in range(0, len(self), step):
            waiting += self.stored(range(start, min(start + step, len(self))))
            held += sum(len(one) for one in waiting[-step:] if isinstance(one, bytes))
            if held >= _HELD or len(waiting) >= _TOGETHER:
                yield waiting
                waiting, held = [], 0
        if waiting:
            yield waiting

    def stored(self, rows: NDArray[Any] | Sequence[int]) -> list[Stored]:
        wanted = row_indices(rows, len(self)).tolist()
        try:
            return list(self.encoded(wanted))
        except InputError as error:
            if len(wanted) == 1:
                return [error]
        # One of them cannot be read: the others can.
        return [one for row in wanted for one in self.stored([row])]

    def sha256(self) -> str:
        if not self._sha256:
            self._sha256 = digest_files(self._fs, self._files)
        return self._sha256

    def describe(self, row: int) -> str:
        """What to call a row in a message."""
        return f"{self.uri}: image {self.ids[row]!r:.300}"


def files_outside(images: ImageDataset, root: Path) -> list[str]:
    """Files that a set reads and that do not lie under ``root``: a manifest may name files anywhere."""
    if not isinstance(images, FileImages):
        return []
    base = Path(os.path.realpath(root))
    folders = {os.path.dirname(path) for path in images.paths}  # noqa: PTH120 - once an image
    strange = {folder for folder in folders if not Path(os.path.realpath(folder)).is_relative_to(base)}
    return [path for path in images.paths if os.path.dirname(path) in strange] if strange else []  # noqa: PTH120


def open_imagefolder(place: Location, split: str, class_names: Sequence[str] | None) -> FileImages:
    """Open a folder with one sub-folder a class, as torchvision's ImageFolder reads it.

    Without ``class_names`` the classes are the sub-folders in byte order, empty ones included; files that
    are not images by their suffix are passed over. ``split`` names a folder in between.

    Raises
    ------
    InputError: no class folders, no images, unknown classes, or several splits and none chosen.
    """
    if split:
        place = place.under(split)
    folders = subfolders(place)
    if not folders:
        raise InputError(f"{place.uri} has no folder per class", "expected class/image.png")
    if SPLIT_NAMES.issuperset(name.lower() for name in folders):
        raise InputError(f"{place.uri} holds the splits {', '.join(folders)}", 'choose one with split = "…"')
    names = [name for name in find_files(place, SUFFIXES) if "/" in name]
    if not names:
        raise InputError(f"{place.uri} holds no images", f"looked for {', '.join(SUFFIXES)}")
    paths = [place.under(name).path for name in names]
    texts = [name.split("/", 1)[0] for name in names]
    labels, classes = index_texts(
        texts,
        lambda i: f"{place.uri}: image {names[i]!r:.300}",
        folders if class_names is None else class_names,
        numbers=class_names is not None,
    )
    return FileImages(place, paths, names, labels, classes, list(zip(names, paths, strict=True)))

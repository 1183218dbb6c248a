"""Image sets in a NumPy .npz file, read without unpacking it into memory and without pickle."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from promotion_gate.core.errors import InputError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.decode import reshape_images
from promotion_gate.data.files import Location, digest_files, reading
from promotion_gate.data.interface import Images, ImageShape, Stored
from promotion_gate.data.labels import Indexed, index_numbers, index_texts
from promotion_gate.data.memory import RowIds, image_layout, raw_rows, row_indices

MAX_COLUMN_BYTES = 2**31
"""Labels and other columns may be no larger than this unpacked."""

_CHUNK = 2**20
_MAX_HEADER = 10_000


class NpzImages:
    """An :class:`~promotion_gate.data.interface.ImageDataset` over an .npz file.

    Images lie under the key ``x`` or ``images``, (n, h, w) or (n, h, w, c); labels under ``y`` or
    ``labels``, whole numbers or names; names optionally under ``class_names``. With a split the keys are
    ``x_train`` or ``train_images`` and the like. The image array is unpacked once, to an unnamed temporary
    file (in ``TMPDIR``) that is mapped into memory.

    Raises
    ------
    InputError: not an .npz, a key missing, or arrays of the wrong type or shape.
    """

    def __init__(self, place: Location, source: DataSource, class_names: Sequence[str] | None) -> None:
        self.uri = place.uri
        self._place = place
        self._lock = threading.Lock()
        self._mapped: Images | None = None
        self._sha256 = ""
        with self._archive() as archive:
            members = {
                name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")
            }
            image_key = self._key(members, source.image_column, _keys("x", "images", source.split))
            label_key = self._key(members, source.label_column, _keys("y", "labels", source.split))
            self.label_member = members[label_key]
            self.image_member = members[image_key]
            with archive.open(self.image_member) as member:
                shape, _, dtype = self._header(member, image_key)
            self._layout = image_layout(dtype, shape, f"{self.uri}: {image_key}")
            self.ids: Sequence[str] = RowIds(place.name, len(self))
            own_names = None
            if "class_names" in members:
                own_names = _texts(self._column(archive, members["class_names"]))
            self.labels, names = self._index(self._column(archive, self.label_member), own_names, class_names)
            self.class_names: Sequence[str] = names
            self.columns: dict[str, Sequence[str]] = {}
            for name, key in (("contributor", source.contributor_column), ("batch", source.batch_column)):
                if key in members:
                    values = self._column(archive, members[key])
                    self._require_rows(values, key)
                    self.columns[name] = _texts(values)

    def __len__(self) -> int:
        return self._layout[0]

    @property
    def native_shape(self) -> ImageShape:
        """The shape in which the images are stored."""
        return ImageShape(*self._layout[1:])

    def stream(self, shape: ImageShape, batch_size: int = 512) -> Iterator[Images]:
        images = self._images()
        for start in range(0, len(self), batch_size):
            yield reshape_images(images[start : start + batch_size], shape)

    def read(self, rows: NDArray[Any] | Sequence[int], shape: ImageShape) -> Images:
        return reshape_images(self._images()[row_indices(rows, len(self))], shape)

    def stream_stored(self) -> Iterator[list[Stored]]:
        return raw_rows(self._images())

    def stored(self, rows: NDArray[Any] | Sequence[int]) -> list[Stored]:
        return list(np.array(self._images()[row_indices(rows, len(self))]))

    def sha256(self) -> str:
        if not self._sha256:
            self._sha256 = digest_files(self._place.fs, [(self._place.name, self._place.path)])
        return self._sha256

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        with reading(self.uri), self._place.fs.open(self._place.path, "rb") as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    yield archive
            except zipfile.BadZipFile as error:
                raise InputError(f"{self.uri} is not a whole .npz file: {error}") from None

    def _key(self, members: dict[str, str], chosen: str, usual: tuple[str, ...]) -> str:
        for key in (chosen,) if chosen else usual:
            if key in members:
                return key
        wanted = chosen or " or ".join(usual)
        there = ", ".join(f"{name!r:.40}" for name in list(members)[:8]) or "none"
        raise InputError(f"{self.uri} has no array {wanted}", f"its arrays are {there}")

    def _header(self, member: IO[bytes], key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        try:
            version = npy.read_magic(member)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran_order, dtype = read(member, max_header_size=_MAX_HEADER)
        except ValueError as error:
            raise InputError(f"{self.uri}: {key} is not a NumPy array: {str(error)[:120]}") from None
        if dtype.hasobject:
            raise InputError(f"{self.uri}: {key} holds pickled objects", "save plain numbers or text")
        return shape, fortran_order, dtype

    def _column(self, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
        with archive.open(name) as member:
            shape, _, dtype = self._header(member, name)
            count = math.prod(shape)
            if count * dtype.itemsize > MAX_COLUMN_BYTES:
                raise InputError(f"{self.uri}: {name} is larger than {MAX_COLUMN_BYTES >> 20} MiB")
            content = member.read(count * dtype.itemsize + 1)
        if len(content) != count * dtype.itemsize:
            raise InputError(f"{self.uri}: {name} is cut off or too long for its shape {shape}")
        # CIFAR's and MedMNIST's (n, 1) labels are columns too.
        return np.frombuffer(content, dtype=dtype).reshape(shape[:1] if shape[1:] == (1,) else shape)

    def _require_rows(self, values: NDArray[Any], key: str) -> None:
        if values.shape != (len(self),):
            raise InputError(f"{self.uri} has {len(self)} images but {key} of shape {values.shape}")

    def _index(
        self, values: NDArray[Any], own_names: list[str] | None, class_names: Sequence[str] | None
    ) -> Indexed:
        self._require_rows(values, "labels")

        def row(i: int) -> str:
            return f"{self.uri}: row {i}"

        if values.dtype.kind in "US":
            return index_texts(_texts(values), row, own_names if class_names is None else class_names)
        if values.dtype.kind not in "iu":
            raise InputError(f"{self.uri} has labels of type {values.dtype}", "save whole numbers or names")
        if values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
            raise InputError(f"{self.uri} has labels too large for a class index")
        return index_numbers(values.astype(np.int64), row, class_names, own_names)

    def _images(self) -> Images:
        with self._lock:
            if self._mapped is None:
                self._mapped = self._unpack()
            return self._mapped

    def _unpack(self) -> Images:
        with self._archive() as archive, archive.open(self.image_member) as member:
            shape, fortran_order, dtype = self._header(member, self.image_member)
            if image_layout(dtype, shape, self.uri) != self._layout:
                raise InputError(f"{self.uri} changed while it was being read")
            size = math.prod(shape)
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            if size > free:
                raise InputError(
                    f"{self.uri} unpacks to {size >> 20} MiB but {folder} has room for {free >> 20}",
                    "set TMPDIR to a larger disk",
                )
            with tempfile.TemporaryFile() as spool:
                written = 0
                while chunk := member.read(_CHUNK):
                    written += len(chunk)
                    if written > size:
                        break
                    spool.write(chunk)
                if written != size:
                    raise InputError(
                        f"{self.uri}: the image array is cut off or too long for its shape {shape}"
                    )
                spool.flush()
                # A transposed view of a C-ordered map is how NumPy spells column order.
                on_disk = shape[::-1] if fortran_order else shape
                mapped = np.asarray(np.memmap(spool, dtype=np.uint8, mode="r", shape=on_disk))
        images = mapped.T if fortran_order else mapped
        return images[..., None] if images.ndim == 3 else images


def _keys(short: str, long: str, split: str) -> tuple[str, ...]:
    return (f"{short}_{split}", f"{split}_{long}", f"{split}_{short}") if split else (short, long)


def _texts(values: NDArray[Any]) -> list[str]:
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in values.reshape(-1).tolist()]
    return [str(value) for value in values.reshape(-1).tolist()]

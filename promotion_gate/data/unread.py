"""Files that lie in a data set's folder and that nobody who opens the set ever sees."""

from __future__ import annotations

import os
from pathlib import Path

from promotion_gate.core.policy import DataSource
from promotion_gate.data.files import every_file, find_files, locate, reading
from promotion_gate.data.imagefolder import FileImages
from promotion_gate.data.interface import ImageDataset


def unread_files(
    images: ImageDataset, source: DataSource, folder: Path = Path(), *, whole: bool = False
) -> list[str] | None:
    """Paths in the set's folder, hidden ones too, of the files that ``images`` does not read, in byte order.

    What belongs to another split is not counted, unless the ``whole`` folder is asked for. None where the set
    is no folder.

    Raises
    ------
    InputError: the folder cannot be listed.
    """
    from promotion_gate.data.parquet import ParquetImages

    place = locate(source.path, folder)
    with reading(place.uri):
        if not place.fs.isdir(place.path):
            return None
    if isinstance(images, FileImages):
        read = set(images.paths)
        if source.split and not whole:
            place = place.under(source.split)
    elif isinstance(images, ParquetImages):
        read = {shard.path for shard in images.shards}
        if source.split and not whole:
            read |= {place.under(name).path for name in find_files(place, (".parquet",))}
    else:
        return None
    names = [name for name in every_file(place) if place.under(name).path not in read]
    return sorted(names, key=os.fsencode)

"""Open a data set named in a policy, whatever files it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from promotion_gate.core.errors import InputError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.files import Location, find_files, locate, reading
from promotion_gate.data.interface import ImageDataset

_BY_SUFFIX = {".npz": "npz", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def open_dataset(
    source: DataSource, *, folder: Path, class_names: Sequence[str] | None, called: str = ""
) -> ImageDataset:
    """Open a labelled image set; labels and ids are read now, pixels later.

    Parameters
    ----------
    source
        Path or URL, format and columns, from the policy.
    folder
        What a relative path is relative to.
    class_names
        Names in order of the model's outputs; None takes the data's own.
    called
        What messages name the set, instead of its path.

    Raises
    ------
    InputError: the set is missing or empty, of an unknown format, or has labels or columns that do not fit.
    """
    place = locate(source.path, folder)
    if called:
        place = replace(place, uri=called)
    kind = _detect(place) if source.format == "auto" else source.format
    with reading(place.uri):
        folder_given = place.fs.isdir(place.path)
    if folder_given != (kind == "imagefolder") and kind != "parquet":
        raise InputError(f"{place.uri} is a {'folder' if folder_given else 'file'}, but the format is {kind}")
    if kind == "imagefolder":
        from promotion_gate.data.imagefolder import open_imagefolder

        return open_imagefolder(place, source.split, class_names)
    if kind == "csv":
        from promotion_gate.data.csv_manifest import open_csv

        return open_csv(place, source, class_names)
    if kind == "parquet":
        from promotion_gate.data.parquet import ParquetImages

        return ParquetImages(place, source, class_names)
    from promotion_gate.data.npz import NpzImages

    return NpzImages(place, source, class_names)


def require_every_class(dataset: ImageDataset) -> None:
    """Refuse a data set in which some class has no image: nothing could be said of that class.

    Raises
    ------
    InputError: naming the classes.
    """
    support = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    empty = [dataset.class_names[i] for i in np.flatnonzero(support == 0).tolist()]
    if empty:
        some = ", ".join(f"{name!r:.60}" for name in empty[:5]) + (", …" if len(empty) > 5 else "")
        raise InputError(f"{dataset.uri} has no image of {len(empty)} classes: {some}", "add some of each")


def _detect(place: Location) -> str:
    with reading(place.uri):
        is_folder = place.fs.isdir(place.path)
    if is_folder:
        return "parquet" if find_files(place, (".parquet",)) else "imagefolder"
    for suffix, kind in _BY_SUFFIX.items():
        if place.path.lower().endswith(suffix):
            return kind
    raise InputError(
        f"cannot tell the format of {place.uri}", 'set format = "imagefolder", "csv", "parquet" or "npz"'
    )

"""Data sets that DVC tracks, taken into the bill of materials. DVC itself is not needed.

``.dvc`` files and ``dvc.lock`` give an MD5 for each output. It is checked against the working copy on the way
and kept as a locator, under which DVC's cache and remotes know the same bytes; what vouches for them is the
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promotion_gate.core.errors import DbomError, HashMismatch, InputError
from promotion_gate.provenance.dbom import DbomEntry
from promotion_gate.provenance.hashing import Progress, Tree, hash_tree
from promotion_gate.provenance.register import Particulars, add_tree, relative_place
from promotion_gate.provenance.sidecar import refuse_stray_path

MAX_DVC_BYTES = 16 * 2**20
LOCATOR = "dvc-md5"
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True, slots=True)
class Tracked:
    """One output: its path on this machine, its MD5 (with ``.dir`` for a folder), and the file that says so.

    ``unix_lines``: DVC before 3 took the MD5 of text with its line ends made Unix'.
    """

    place: Path
    md5: str
    stated_in: Path
    unix_lines: bool


def read_dvc(path: Path) -> list[Tracked]:
    """The outputs of a ``.dvc`` file or a ``dvc.lock``.

    Raises
    ------
    DbomError: it is not such a file, or an output leads out of its folder or has no MD5.
    """
    content = _read_yaml(path)
    if path.name == "dvc.lock":
        stages = content.get("stages")
        if not isinstance(stages, dict):
            raise DbomError(f"{path} has no stages")
        outs = [out for stage in stages.values() for out in _outs(stage, path)]
    else:
        outs = _outs(content, path)
    home = path.parent
    if isinstance(workdir := content.get("wdir"), str) and workdir != ".":
        refuse_stray_path(workdir, str(path))
        home = home / workdir
    return [_tracked(out, home, path) for out in outs]


def import_dvc(
    dbom: Path, path: Path, *, replacing: bool = False, progress: Progress = lambda _: None
) -> Iterator[DbomEntry]:
    """Add every output of a ``.dvc`` file or ``dvc.lock``, one after the other.

    Raises
    ------
    HashMismatch: a working copy is not what its MD5 says; names the file where DVC's cache tells.
    InputError: a working copy is missing: ``dvc pull`` fetches it.
    DbomError: see :func:`read_dvc`, or the name is taken.
    """
    for tracked in read_dvc(path):
        place = relative_place(dbom, tracked.place)
        progress(f"hash {place}")
        if not tracked.place.exists():
            raise InputError(f"{place!r} of {path} is not on this machine", "'dvc pull' fetches it")
        tree = hash_tree(tracked.place, md5=True, progress=progress)
        _refuse_changed(tracked, tree, place)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", tracked.place.name).lstrip("._-")[:100] or "data"
        about = Particulars(
            name=name,
            version=f"md5-{tracked.md5[:12]}",
            reason=f"taken over from {path.name}",
            locators={LOCATOR: tracked.md5},
        )
        yield add_tree(dbom, tree, about, path=place, replacing=replacing)


def _outs(stage: object, path: Path) -> list[Any]:
    outs = stage.get("outs", []) if isinstance(stage, dict) else None
    if not isinstance(outs, list):
        raise DbomError(f"{path} has malformed outputs")
    return outs


def _tracked(out: object, home: Path, path: Path) -> Tracked:
    name = out.get("path") if isinstance(out, dict) else None
    if not isinstance(out, dict) or not isinstance(name, str):
        raise DbomError(f"{path} has an output without a path")
    md5 = out.get("md5")
    if not isinstance(md5, str) or not _MD5.fullmatch(md5):
        raise DbomError(
            f"{path}: {name!r:.120} has no MD5", "data that DVC only refers to cannot be taken over"
        )
    refuse_stray_path(name, str(path))
    return Tracked(home / name, md5, path, unix_lines=out.get("hash") != "md5")


def _refuse_changed(tracked: Tracked, tree: Tree, place: str) -> None:
    if (tree.kind == "folder") != tracked.md5.endswith(".dir"):
        raise HashMismatch(f"{place!r} is a {tree.kind}, and {tracked.stated_in} speaks of something else")
    root = Path(os.path.realpath(tracked.place))
    if tree.kind == "file":
        found = {"": tree.files[0].md5}
        expected: Mapping[str, str] | None = {"": tracked.md5}
    else:
        found = {file.path: file.md5 for file in tree.files}
        if _folder_md5(found) == tracked.md5:
            return
        expected = _cached_folder(tracked)
    if expected is None:
        if tracked.unix_lines and _folder_md5({p: _unix_md5(root / p) for p in found}) == tracked.md5:
            return
        raise HashMismatch(
            f"{place!r} is not what {tracked.stated_in} says", "'dvc status' names the files that changed"
        )
    for name in sorted({*expected, *found}):
        wanted, here = expected.get(name), found.get(name)
        unix = tracked.unix_lines and wanted is not None and here is not None
        if wanted != here and not (unix and _unix_md5(root / name if name else root) == wanted):
            what = "changed" if wanted and here else "is missing" if wanted else "was added"
            raise HashMismatch(
                f"{f'{place}/{name}' if name else place!r} {what} since {tracked.stated_in} was written",
                "'dvc checkout' puts it back, 'dvc commit' accepts it",
            )


def _folder_md5(files: Mapping[str, str]) -> str:
    """What DVC calls a folder: the MD5 of its list of files in JSON."""
    listing = [{"md5": files[path], "relpath": path} for path in sorted(files)]
    content = json.dumps(listing, sort_keys=True).encode()
    return f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}.dir"


def _cached_folder(tracked: Tracked) -> dict[str, str] | None:
    """The list of a folder's files from DVC's cache, if it is there and is the one named."""
    for parent in tracked.stated_in.absolute().parents:
        if not (parent / ".dvc").is_dir():
            continue
        for shelf in ("cache/files/md5", "cache"):
            path = parent / ".dvc" / shelf / tracked.md5[:2] / tracked.md5[2:]
            try:
                with path.open("rb") as file:
                    content = file.read(MAX_DVC_BYTES * 16)
                if f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}.dir" == tracked.md5:
                    return {str(row["relpath"]): str(row["md5"]) for row in json.loads(content)}
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return None
    return None


def _unix_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block.replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(MAX_DVC_BYTES + 1) or b""
    except OSError as error:
        raise DbomError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_DVC_BYTES:
        raise DbomError(f"{path} is larger than {MAX_DVC_BYTES:,} bytes")
    try:
        # All scalars as text: an MD5 or a file name may consist of digits alone. It makes no other objects.
        found = yaml.load(content, Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DbomError(f"{path} is not YAML: {str(error)[:200] or 'nested too deeply'}") from None
    if not isinstance(found, dict):
        raise DbomError(f"{path} is not a file of DVC's")
    return found

"""The internal mirror: vetted bytes under an address that follows from them, written once and read back.

A set lies at ``<root>/sha256/<digest>``: a folder's files below it, a single file in it under its own name.
Whoever may write to the storage could still replace an object; every load hashes what it reads, and bucket
policies or object locks are the storage's own defence.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from promotion_gate.core.errors import HashMismatch, InputError
from promotion_gate.data.files import reading, without_credentials
from promotion_gate.provenance.hashing import FileHash, Progress, Tally, Tree
from promotion_gate.provenance.sources import (
    LargerThanAllowed,
    Limits,
    Remote,
    copy_hashed,
    open_remote,
)

WRITERS = 8


def mirror_place(root: str, tree: Tree) -> str:
    """The URL at which a set lies in the mirror ``root``, also a URL."""
    shelf = f"{root.rstrip('/')}/sha256/{tree.sha256}"
    return f"{shelf}/{tree.files[0].path}" if tree.kind == "file" else shelf


def publish_to_mirror(data: Path, tree: Tree, root: str, progress: Progress = lambda _: None) -> str:
    """Copy a set into the mirror, read every file back and hash it; answers the set's URL there.

    What lies there already is compared and never written over, so that an interrupted copy goes on.

    Parameters
    ----------
    data: the file or folder. tree: its files as they were hashed.
    root: the mirror: ``s3://bucket/prefix``, ``gs://…`` or ``file:///…``.

    Raises
    ------
    InputError: the mirror cannot be written or read.
    HashMismatch: something else lies at the address, or what was read back is not what was written.
    """
    from joblib import Parallel, delayed

    place = mirror_place(root, tree)
    remote = open_remote(place)
    if remote.is_http:
        raise InputError(f"{without_credentials(root)} cannot be written", "name s3://, gs:// or file://")
    tell = Tally(tree.size, progress)

    def copy(file: FileHash) -> None:
        local, name = (data, "") if tree.kind == "file" else (data / file.path, file.path)
        _write_once(remote, name, local)
        try:
            found = copy_hashed(remote.blocks(name, Limits(size=file.size)), None, file.path).sha256
        except LargerThanAllowed:
            found = ""
        if found != file.sha256:
            raise HashMismatch(
                f"the mirror holds other bytes at {remote.shown} ({file.path!r:.120})",
                "somebody wrote there: look into it before anything else",
            )
        tell.add(file.size)

    Parallel(n_jobs=WRITERS, prefer="threads")(delayed(copy)(file) for file in tree.files)
    _refuse_strangers(remote, tree)
    return place


def _write_once(remote: Remote, name: str, local: Path) -> None:
    """Write one object unless something lies there; storages that can are asked to refuse a second writer."""
    target = remote.file(name)
    with reading(remote.shown):
        if remote.fs.exists(target):
            return
        remote.fs.makedirs(posixpath.dirname(target), exist_ok=True)
        try:
            remote.fs.put_file(str(local), target, mode="create")
        except FileExistsError:
            return  # somebody was quicker; what is read back tells whether with the same bytes


def _refuse_strangers(remote: Remote, tree: Tree) -> None:
    if tree.kind == "file":
        return
    there = remote.names()
    if there is not None and (extra := sorted(there - {file.path for file in tree.files})):
        raise HashMismatch(
            f"the mirror holds a file at {remote.shown} that is not of the set: {extra[0]!r:.120}",
            "somebody wrote there: look into it before anything else",
        )

"""Folders of the user who runs the program: where they are, and that they are the user's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from promotion_gate.core.errors import InputError, UsageError

Kind = Literal["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"]

_IN_HOME = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
}


def base_folder(kind: Kind) -> Path:
    """The user's base folder of a kind (XDG Base Directory Specification); a relative one does not count.

    Raises
    ------
    UsageError: it is not set, and the user has no home folder, as in a container whose user has no account.
    """
    named = Path(os.environ.get(kind, ""))
    if named.is_absolute():
        return named
    try:
        return Path.home() / _IN_HOME[kind]
    except RuntimeError:
        raise UsageError("this user has no home folder", f"set HOME, or {kind}") from None


def private_cache(part: str) -> Path:
    """``$XDG_CACHE_HOME/promotion-gate/<part>``, made if need be.

    Raises
    ------
    InputError: it cannot be made, or others may write to it.
    UsageError: see :func:`base_folder`.
    """
    root = base_folder("XDG_CACHE_HOME")
    folder = root / "promotion-gate" / part
    try:
        root.mkdir(parents=True, exist_ok=True)
        for made in (folder.parent, folder):
            made.mkdir(mode=0o700, exist_ok=True)
            status = made.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise InputError(
                    f"others may write to the {part} cache {made}", "remove it, or set XDG_CACHE_HOME"
                )
    except OSError as error:
        raise InputError(f"cannot use the {part} cache {folder}: {error.strerror}") from None
    return folder


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises
    ------
    InputError: there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"nobody knows the home folder in {os.fspath(path)!r}", "write the path out"
        ) from None

"""Folders of this user's cache that nobody else may write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from promotion_gate.core.errors import InputError


def private_cache(part: str) -> Path:
    """``$XDG_CACHE_HOME/promotion-gate/<part>``, made if need be.

    Raises
    ------
    InputError: it cannot be made, or others may write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
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

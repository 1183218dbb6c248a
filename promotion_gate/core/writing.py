"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from promotion_gate.core.errors import UsageError


def require_writable(path: Path) -> None:
    """Say before the long work, not after it, that a file cannot be written.

    Raises
    ------
    UsageError: there is no such folder, the path is one, or it may not be written.
    """
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}", "create it first")
    if path.is_dir() or (path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: no permission, or it is not a plain file")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, which then takes its place. A link is followed.

    Raises
    ------
    UsageError: it cannot be written, or is a device or pipe; ``path`` is as it was.
    """
    # Renaming onto a link or a device, /dev/stdout for one, would put a plain file in its place.
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it is not a plain file")
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    try:
        try:
            write(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole; see :func:`write_whole`."""
    write_whole(path, lambda partial: partial.write_bytes(content))

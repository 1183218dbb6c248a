"""The images that a prediction log refers to, read inside one folder or prefix and nowhere else.

A reference comes from whoever could write to the log: it may try to leave the folder, name a link, a pipe or
something huge. Each one is taken or refused by itself, and the reasons are counted.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.data.decode import Decoded, decode_whole
from promotion_gate.data.files import Location, fetch, is_url, locate

MAX_BYTES = 16 * 2**20
"""A live image may be no larger than this."""

Reason = Literal[
    "outside the folder", "a link", "not there", "not a plain file", "too large", "not an image", "unreadable"
]


class Refused(Exception):
    """A reference that was not followed, or led to nothing that can be shown."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class LiveImages:
    """Images under a folder or an fsspec prefix that a person named.

    A reference is relative to it, or begins with it. ``refused`` counts those that were not taken, by reason.

    Raises
    ------
    UsageError: there is no such folder.
    """

    def __init__(self, root: str) -> None:
        try:
            self._place: Location = locate(root, Path.cwd())
            is_folder = self._place.fs.isdir(self._place.path)
        except InputError as error:
            raise UsageError(str(error.what), "name the folder of the images with --images") from None
        if not is_folder:
            raise UsageError(f"{self._place.uri} is no folder", "name the folder of the images with --images")
        self._root = root.rstrip("/")
        self.refused: Counter[Reason] = Counter()

    @property
    def uri(self) -> str:
        """The folder, for people."""
        return self._place.uri

    def take(self, reference: str) -> tuple[bytes, Decoded] | None:
        """The image's bytes, and decoded in whole; None where it is refused, which is then counted."""
        try:
            content = self._read(self._parts(reference))
            try:
                return content, decode_whole(content, "image")
            except InputError:
                raise Refused("not an image") from None
        except Refused as refusal:
            self.refused[refusal.reason] += 1
            return None

    def _parts(self, reference: str) -> list[str]:
        """The path below the folder that a reference stands for, in its parts."""
        below = reference
        for root in {self._root, self._place.path.rstrip("/"), self._place.uri.rstrip("/")}:
            if reference.startswith(f"{root}/"):
                below = reference[len(root) + 1 :]
                break
        parts = [part for part in below.split("/") if part not in ("", ".")]
        hostile = is_url(below) or below.startswith("/") or "\0" in below
        # A driver or its server may take an escaped or a backward slash for a slash.
        spelled = unquote(unquote(below)).replace("\\", "/")
        if not parts or hostile or ".." in spelled.split("/"):
            raise Refused("outside the folder")
        if not self._place.local and any(c in below for c in "?#*[]"):
            raise Refused("outside the folder")
        return parts

    def _read(self, parts: list[str]) -> bytes:
        return _read_local(self._place.path, parts) if self._place.local else self._fetch(parts)

    def _fetch(self, parts: list[str]) -> bytes:
        path = "/".join([self._place.path.rstrip("/"), *parts])
        try:
            (content,) = fetch(self._place.fs, [path], ["image"])
        except InputError as error:
            missing, large = "no such file" in str(error), "is larger than" in str(error)
            raise Refused("not there" if missing else "too large" if large else "unreadable") from None
        if len(content) > MAX_BYTES:
            raise Refused("too large")
        return content


def _read_local(root: str, parts: list[str]) -> bytes:
    """A file below ``root``, reached folder by folder so that no link can be put in the way."""
    opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            # Without O_NONBLOCK a pipe would wait for a writer for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_NONBLOCK if last else os.O_DIRECTORY)
            try:
                opened.append(os.open(part, flags, dir_fd=opened[-1]))
            except (OSError, ValueError) as error:
                raise Refused(_why(part, opened[-1], error)) from None
        facts = os.fstat(opened[-1])
        if not stat.S_ISREG(facts.st_mode):
            raise Refused("not a plain file")
        if facts.st_size > MAX_BYTES:
            raise Refused("too large")
        with os.fdopen(opened.pop(), "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        raise Refused("unreadable") from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise Refused("too large")
    return content


def _why(part: str, folder: int, error: Any) -> Reason:
    try:
        mode = os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode
    except (OSError, ValueError):
        return "not there"
    if stat.S_ISLNK(mode):
        return "a link"
    return "unreadable" if isinstance(error, PermissionError) else "not a plain file"

"""Whether git tracks a folder, told from the index without running git."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MAX_INDEX = 512 << 20
_COMPRESSED = b"\0\0\0\4"


@dataclass(frozen=True, slots=True)
class TrackedPaths:
    """The paths in an index, as bytes to search in; ``prefix`` is where in the repository the scan is."""

    index: bytes = b""
    prefix: str = ""

    def hold(self, folder: str) -> bool:
        """Whether a file below ``folder`` is tracked; yes too where a longer path ends like it."""
        return f"{self.prefix}{folder}/".encode("utf-8", "surrogateescape") in self.index


def tracked_paths(root: Path) -> TrackedPaths:
    """The index of the repository that ``root`` lies in; nothing is tracked where there is none."""
    for folder in (root, *root.parents):
        place = folder / ".git"
        try:
            if place.is_file():
                told = place.read_text(encoding="utf-8", errors="replace").strip()
                place = folder / told.removeprefix("gitdir:").strip()
            if not (place / "index").is_file():
                continue
            with (place / "index").open("rb") as file:
                index = file.read(_MAX_INDEX)
        except OSError:
            continue
        if index[4:8] == _COMPRESSED:  # each path without what it shares with the one before
            index = b"\n".join(_paths_of_version_4(index))
        prefix = root.relative_to(folder).as_posix()
        return TrackedPaths(index, "" if prefix == "." else f"{prefix}/")
    return TrackedPaths()


def _paths_of_version_4(index: bytes) -> list[bytes]:
    """The paths of an index of version 4, as git's index-format describes it."""
    paths: list[bytes] = []
    path, at = b"", 12
    for _ in range(int.from_bytes(index[8:12], "big")):
        flags = int.from_bytes(index[at + 60 : at + 62], "big")
        at += 64 if flags & 0x4000 else 62
        removed, at = _number(index, at)
        stop = index.find(b"\0", at)
        if stop < 0:
            break
        path = path[: len(path) - removed] + index[at:stop]
        paths.append(path)
        at = stop + 1
    return paths


def _number(index: bytes, at: int) -> tuple[int, int]:
    """A number of variable width, as in git's packs, and where it ends."""
    value = 0
    for step in range(10):
        if at >= len(index):
            break
        byte = index[at]
        at += 1
        value = ((value + 1 if step else 0) << 7) | (byte & 0x7F)
        if not byte & 0x80:
            break
    return value, at

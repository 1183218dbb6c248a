"""The files of a folder that a scan reads, and what each is."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from promotion_gate.core.errors import UsageError
from promotion_gate.provenance.scan.tracked import TrackedPaths, tracked_paths

PYTHON, NOTEBOOK, SHELL, DOCKERFILE, MAKEFILE, YAML, JENKINSFILE = (
    "python",
    "notebook",
    "shell",
    "dockerfile",
    "makefile",
    "yaml",
    "jenkinsfile",
)
MAX_BYTES = {NOTEBOOK: 128 << 20}
MAX_SOURCE_BYTES = 8 << 20
SKIPPED_FOLDERS = frozenset(
    [
        ".git",
        ".hg",
        ".svn",
        ".bzr",
        ".tox",
        ".nox",
        ".eggs",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
        ".ipynb_checkpoints",
        "__pycache__",
        "node_modules",
        "site-packages",
    ]
)
_SUFFIXES = {
    ".py": PYTHON,
    ".pyw": PYTHON,
    ".ipynb": NOTEBOOK,
    ".sh": SHELL,
    ".bash": SHELL,
    ".zsh": SHELL,
    ".ksh": SHELL,
    ".sbatch": SHELL,
    ".slurm": SHELL,
    ".dockerfile": DOCKERFILE,
    ".mk": MAKEFILE,
    ".mak": MAKEFILE,
    ".yml": YAML,
    ".yaml": YAML,
    ".dvc": YAML,
    ".jenkinsfile": JENKINSFILE,
    ".groovy": JENKINSFILE,
}
_NAMES = {
    "makefile": MAKEFILE,
    "gnumakefile": MAKEFILE,
    "mlproject": YAML,
    "dvc.lock": YAML,
    "jenkinsfile": JENKINSFILE,
    ".bashrc": SHELL,
    ".profile": SHELL,
    ".envrc": SHELL,
}
_DOCKER = re.compile(
    r"(?:dockerfile|containerfile)(?:[._-].*)?|.*[._-](?:dockerfile|containerfile)", re.IGNORECASE
)
_SHEBANG = re.compile(rb"#!\s*\S*/(?:env\s+(?:-S\s+)?)?(python|pypy|bash|sh|dash|zsh|ksh)")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to scan: its path relative to the folder with slashes, its kind and its bytes."""

    path: str
    kind: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that looks like source and cannot be read; with the SHA-256 of its bytes where those can be."""

    path: str
    reason: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A folder or link that the scan does not go into."""

    path: str
    reason: str


def kind_of(name: str) -> str:
    """What a file is by its name; nothing where the name does not tell."""
    lower = name.lower()
    if _DOCKER.fullmatch(lower) and not lower.endswith((".md", ".txt", ".py", ".dockerignore")):
        return DOCKERFILE
    return _NAMES.get(lower) or _SUFFIXES.get(os.path.splitext(lower)[1], "")  # noqa: PTH122 - once a file


def source_files(root: Path, exclude: Sequence[str] = ()) -> Iterator[SourceFile | Refused | LeftOut]:
    """Every source file under ``root``, or ``root`` itself, in order of their paths.

    Links are followed to files inside the folder only. Virtual environments and the folders of tools are left
    out where git does not track a file in them, and so is what ``exclude`` names, in the form of
    ``.gitignore``.

    Raises
    ------
    UsageError: there is no such folder or file, or a pattern means nothing.
    """
    try:
        ignored = GitIgnoreSpec.from_lines(exclude)
    except (ValueError, TypeError) as error:
        raise UsageError(f"a pattern to exclude means nothing: {error}") from None
    if not root.is_dir():
        if not os.path.lexists(root):
            raise UsageError(f"no such file or folder: {root}")
        yield from _file(str(root), root.name, str(root.parent), explicit=True)
        return
    top = os.path.realpath(root)
    yield from _walk(str(root), "", top, ignored, tracked_paths(Path(top)))


def _walk(
    folder: str, base: str, top: str, ignored: GitIgnoreSpec, tracked: TrackedPaths
) -> Iterator[SourceFile | Refused | LeftOut]:
    stack = [(folder, base)]
    while stack:
        folder, base = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda e: os.fsencode(e.name))
        except OSError as error:
            yield Refused(base or ".", f"cannot be read: {error.strerror}")
            continue
        below = []
        for entry in entries:
            path = base + entry.name
            if not entry.is_symlink() and entry.is_dir(follow_symlinks=False):
                reason = _left_out(entry)
                if reason and not tracked.hold(path):
                    yield LeftOut(path, reason)
                elif not ignored.match_file(f"{path}/"):
                    below.append((entry.path, f"{path}/"))
            elif not ignored.match_file(path):
                yield from _file(entry.path, path, top)
        stack.extend(reversed(below))


def _left_out(entry: os.DirEntry[str]) -> str:
    if entry.name in SKIPPED_FOLDERS:
        return "a tool's folder"
    if os.path.exists(os.path.join(entry.path, "pyvenv.cfg")) and _is_environment(Path(entry.path)):  # noqa: PTH110, PTH118 - once a folder
        return "a virtual environment"
    return ""


def _is_environment(folder: Path) -> bool:
    """Whether a folder has what makes a virtual environment: ``pyvenv.cfg`` alone can stand anywhere."""
    try:
        with (folder / "pyvenv.cfg").open("rb") as file:
            named = re.search(rb"(?m)^home[ \t]*=[ \t]*\S", file.read(64 << 10))
    except OSError:
        return False
    program = os.path.lexists(folder / "bin" / "python") or (folder / "Scripts" / "python.exe").is_file()
    packages = (folder / "Lib" / "site-packages").is_dir() or any(folder.glob("lib/python*/site-packages"))
    return named is not None and program and packages


def _file(
    full: str, path: str, top: str, *, explicit: bool = False
) -> Iterator[SourceFile | Refused | LeftOut]:
    kind = kind_of(os.path.basename(full))  # noqa: PTH119 - once a file
    try:
        status = os.lstat(full)
        if stat.S_ISLNK(status.st_mode):
            target = os.path.realpath(full, strict=True)
            status = os.stat(target)  # noqa: PTH116
            if stat.S_ISDIR(status.st_mode):
                if not _is_within(target, top):
                    yield LeftOut(path, "a link out of the folder")
                return
            if not _is_within(target, top):
                if kind:
                    yield Refused(path, "a link to a file outside the folder")
                return
        if not stat.S_ISREG(status.st_mode):
            if kind or explicit:
                yield Refused(path, "not a plain file")
            return
        kind = kind or _by_shebang(full, path)
        if not kind:
            if explicit:
                yield Refused(path, "not a kind of source that the scan knows")
            return
        limit = MAX_BYTES.get(kind, MAX_SOURCE_BYTES)
        with open(full, "rb") as file:  # noqa: PTH123 - once a file
            content = file.read(limit + 1)
    except OSError as error:
        if kind or explicit:
            yield Refused(path, f"cannot be read: {error.strerror}")
        return
    if len(content) > limit:
        yield Refused(path, f"larger than {limit >> 20} MiB", _digest(full))
        return
    yield SourceFile(path, kind, content)


def _digest(full: str) -> str:
    try:
        with open(full, "rb") as file:  # noqa: PTH123 - once a file
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _is_within(target: str, top: str) -> bool:
    return target == top or target.startswith(top.rstrip("/") + "/")


def _by_shebang(full: str, path: str) -> str:
    if "." in os.path.basename(path).lstrip("."):  # noqa: PTH119
        return ""
    with open(full, "rb") as file:  # noqa: PTH123
        match = _SHEBANG.match(file.read(128))
    return "" if match is None else PYTHON if match[1] in (b"python", b"pypy") else SHELL

"""What a file is by its content, and whether its name agrees.

A name decides nothing: servers, notebooks and ``torch.load`` look at the bytes, so a pickle called
``weights.json`` is a pickle. Kinds are told by their first bytes (and, for what can follow other bytes, by
their last); the words are shown to people.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

HEAD_BYTES = 1 << 16
MAX_READ_BYTES = 16 << 20
MAX_DIRECTORY_BYTES = 16 << 20
MAX_TEXT_OPCODES = 10_000

PICKLE, OBJECT_ARRAY, ARRAY = "pickle", "NumPy array of objects (a pickle)", "NumPy array"
ZIP, CHECKPOINT, EXPORTED = "zip archive", "PyTorch checkpoint", "PyTorch exported program"
SCRIPTED, KERAS, ARRAYS, DAMAGED_ZIP = "TorchScript archive", "Keras archive", "NumPy archive", "damaged zip"
TAR, SAFETENSORS, TEXT, JSON, EMPTY, DATA = (
    "tar archive",
    "safetensors",
    "text",
    "JSON",
    "empty",
    "unknown data",
)
ZLIB, GZIP, BZIP2, XZ = "zlib stream", "gzip stream", "bzip2 stream", "xz stream"
ZIP_BEHIND = "with a zip archive behind it"

ZIP_KINDS = frozenset([ZIP, CHECKPOINT, EXPORTED, SCRIPTED, KERAS, ARRAYS])
COMPRESSED = frozenset([ZLIB, GZIP, BZIP2, XZ])

_STARTS = (
    (b"\x93NUMPY", ARRAY),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"\x1f\x8b", GZIP),
    (b"BZh", BZIP2),
    (b"\xfd7zXZ\x00", XZ),
    (b"\x28\xb5\x2f\xfd", "zstd stream"),
    (b"\x04\x22\x4d\x18", "lz4 stream"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!", "rar archive"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"GGUF", "GGUF"),
    (b"\x7fELF", "program (ELF)"),
    (b"MZ", "program (Windows)"),
    (b"\xcf\xfa\xed\xfe", "program (macOS)"),
    (b"\xca\xfe\xba\xbe", "program (Java or macOS)"),
    (b"\x00asm", "program (WebAssembly)"),
    (b"#!", "script"),
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"%PDF-", "PDF"),
    (b"SQLite format 3\x00", "SQLite database"),
    (b"PAR1", "Parquet"),
)
_COMPILED_PYTHON = re.compile(rb"[\x00-\xff][\x0b-\x0f]\r\n", re.DOTALL)
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a]", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_CALLS = frozenset(["REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"])
_NAMES = frozenset(["GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"])

_WORDS = frozenset([TEXT, JSON, EMPTY])
_CHECKPOINTS = frozenset([CHECKPOINT])
_EXPECTED = {
    **dict.fromkeys(
        [".yaml", ".yml", ".txt", ".md", ".rst", ".csv", ".tsv", ".toml", ".log", ".svg", ".html", ""], _WORDS
    ),
    ".json": frozenset([JSON]),
    ".png": frozenset(["PNG image"]),
    ".jpg": frozenset(["JPEG image"]),
    ".jpeg": frozenset(["JPEG image"]),
    ".gif": frozenset(["GIF image"]),
    ".webp": frozenset(["WebP image"]),
    ".pdf": frozenset(["PDF"]),
    ".pt2": frozenset([EXPORTED]),
    ".pth": _CHECKPOINTS,
    ".pt": _CHECKPOINTS,
    ".safetensors": frozenset([SAFETENSORS]),
    ".npy": frozenset([ARRAY]),
    ".npz": frozenset([ARRAYS]),
}
_PICKLES_TOO = frozenset([".pth", ".pt", ".bin", ".ckpt", ".npy", ".npz"])


def content_kind(path: Path) -> str:
    """What the file holds, in words.

    Raises
    ------
    OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        kind = head_kind(head)
        if kind == DATA:
            kind = _text_kind(file, head)
        elif kind == ARRAY:
            kind = array_kind(head)
        if kind == ZIP:
            return archive_kind(file)
        if kind not in (PICKLE, OBJECT_ARRAY) and _is_a_calling_pickle(file):
            return PICKLE
        file.seek(0)
        return f"{kind} {ZIP_BEHIND}" if zipfile.is_zipfile(file) else kind


def head_kind(head: bytes) -> str:
    """What a stream that begins so holds; ``unknown data`` also stands for text."""
    if not head:
        return EMPTY
    if head[0] == 0x80 and head[1:2] <= b"\x05" and len(head) > 1:
        return PICKLE
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP image"
    if _is_tar(head):
        return TAR
    if len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\x00\x00":
        return SAFETENSORS
    if _COMPILED_PYTHON.match(head):
        return "compiled Python"
    if _is_zlib(head):
        return ZLIB
    if _ONNX.match(head):
        return "ONNX"
    return PICKLE if runs_as_pickle(head) else DATA


def disagreement(path: str, kind: str, *, allow_pickle: bool) -> str:
    """What is wrong between a file's name and its content; empty where they agree."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    expected = _EXPECTED.get(suffix)
    if expected is None or kind in expected:
        return ""
    if (
        allow_pickle
        and suffix in _PICKLES_TOO
        and (kind in (PICKLE, TAR) or kind in ZIP_KINDS | {OBJECT_ARRAY})
    ):
        return ""
    wanted = " or ".join(sorted(expected - {EMPTY}, key=str.lower))
    return f"holds {kind}, and its name says {wanted}"


@contextlib.contextmanager
def open_archive(file: Path | IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive, unless its directory is larger than that of any model.

    Raises
    ------
    zipfile.BadZipFile: it is none, or its directory is too large to be read.
    OSError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        # zipfile reads the whole directory into objects ten times its size before anybody can look at it.
        end = zipfile._EndRecData(stream)  # type: ignore[attr-defined]
        if end is not None and end[5] > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory is larger than {MAX_DIRECTORY_BYTES:,} bytes")
        yield stack.enter_context(zipfile.ZipFile(stream))


def archive_kind(file: IO[bytes]) -> str:
    """Which of the kinds of zip archive this is, by the names of its members alone."""
    try:
        with open_archive(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, OverflowError):
        return DAMAGED_ZIP
    inner = {name.split("/", 1)[-1] for name in names}
    if {"data.pkl", "constants.pkl"} & inner and any(name.startswith("code/") for name in inner):
        return SCRIPTED
    if "models/model.json" in inner or "serialized_exported_program.json" in inner:
        return EXPORTED
    if "data.pkl" in inner:
        return CHECKPOINT
    if "config.json" in names and any(name.endswith(".h5") for name in names):
        return KERAS
    return ARRAYS if names and all(name.endswith(".npy") for name in names) else ZIP


def _text_kind(file: IO[bytes], head: bytes) -> str:
    content = head if len(head) < HEAD_BYTES else head + file.read(MAX_READ_BYTES - HEAD_BYTES)
    whole = len(content) < MAX_READ_BYTES
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=whole)
    except UnicodeDecodeError:
        return DATA
    if re.search(r"[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f]", text):
        return DATA
    if not whole:
        return JSON if text.lstrip()[:1] in ("{", "[") else TEXT
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return TEXT
    return JSON


def array_kind(head: bytes) -> str:
    """Whether a ``.npy`` file holds plain values, or objects, which are a pickle."""
    # The header is a Python literal; an object dtype is written as '|O' or inside a list of fields.
    return OBJECT_ARRAY if re.search(rb"""['"][|<>=]?O\d*['"]""", head[:4096]) else ARRAY


def _is_tar(head: bytes) -> bool:
    if len(head) < 512:
        return False
    with contextlib.suppress(ValueError):
        told = int(head[148:156].strip(b"\x00 ") or b"x", 8)
        return told == sum(head[:148]) + 8 * 32 + sum(head[156:512])
    return head[257:262] == b"ustar"


def _is_zlib(head: bytes) -> bool:
    if len(head) < 8 or head[0] != 0x78 or (head[0] * 256 + head[1]) % 31:
        return False
    try:
        return bool(zlib.decompressobj().decompress(head, 16))
    except zlib.error:
        return False


def runs_as_pickle(head: bytes) -> bool:
    """Whether bytes without a pickle's mark would still call something when unpickled (protocols 0, 1)."""
    return bool(_calls(head))


def _is_a_calling_pickle(file: IO[bytes]) -> bool:
    """The same of a whole file; one that goes on like a pickle for longer than it can be followed is one."""
    file.seek(0)
    return _calls(_Limited(file)) is not False


def _calls(stream: Any) -> bool | None:
    """Whether a stream calls something when unpickled; None where it was not followed to its end."""
    named, pushed = False, 0
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name in ("GLOBAL", "INST") and not all(
                map(_IDENTIFIER.fullmatch, str(argument).split())
            ):
                return False  # the letter that begins a line of text
            named = named or opcode.name in _NAMES
            if named and (pushed > 1 or opcode.name == "INST") and opcode.name in _CALLS:
                return True
            if named and opcode.name == "STOP":
                return True
            pushed += len(opcode.stack_after)
            if count > MAX_TEXT_OPCODES:
                return named or None
    except _TooLong:
        return None
    except Exception:  # pickletools raises whatever a malformed stream makes it raise
        return False
    return False


class _TooLong(Exception):
    """One argument of a pickle is longer than a model's file needs it to be."""


class _Limited:
    """A file as pickletools reads it, which gives up on endless arguments instead of holding them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_READ_BYTES:
            # Announced is not there: a reader stops at the file's end, and the rest is never reached.
            found = self._file.read(MAX_READ_BYTES)
            if len(found) < MAX_READ_BYTES:
                return found
            raise _TooLong
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(MAX_READ_BYTES)
        if len(line) == MAX_READ_BYTES:
            raise _TooLong
        return line

"""Every pickle in a model's files, wherever it hides, and what it would name if somebody unpickled it.

Nothing is unpickled here. Archives and compressed streams are opened to a fixed depth and to fixed amounts;
what lies beyond is told, and never taken for harmless.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickletools
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from promotion_gate.core.types import ArtifactFile
from promotion_gate.evidence import kinds
from promotion_gate.evidence.archive import MAX_MEMBERS, MAX_PICKLE_BYTES, foreign_references

MAX_DEPTH = 4
MAX_STREAMS = 200
MAX_UNPACKED_BYTES = 256 << 20
MAX_OPCODES = 1_000_000
MAX_NAMES = 100
SCAN_SECONDS = 30.0
PROBE_BYTES = 4096

COMPUTED = "(a name computed while unpickling)"


Found = tuple[str, bytes | Exception]


class NotScanned(Exception):
    """A one-line reason why something in a file was not looked into."""


@dataclass(slots=True)
class _Allowance:
    """What one scan may still unpack."""

    unpacked: int = MAX_UNPACKED_BYTES

    def take(self, stream: IO[bytes], limit: int = MAX_PICKLE_BYTES) -> bytes:
        content = stream.read(min(limit, self.unpacked) + 1)
        if len(content) > self.unpacked:
            raise NotScanned(f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes in all")
        self.unpacked -= len(content)
        return content


def scan_files(folder: Path, files: Sequence[ArtifactFile]) -> Iterator[dict[str, Any]]:
    """One plain dict for each pickle in the files, and for each place that could not be looked into.

    ``source``: file and members. ``listed``: it names tensors and ``torch.nn`` classes alone. ``globals``:
    every name in it. ``refused_by_torch``: those that ``torch.load(weights_only=True)`` would not load;
    ``note`` where torch cannot tell. ``status``, ``verdict``, ``findings``: what modelaudit-picklescan says
    of it; it is not asked about listed ones, since it calls every checkpoint suspicious for its storages.
    """
    deadline = time.monotonic() + SCAN_SECONDS
    allowance = _Allowance()
    count = 0
    for file in files:
        try:
            with (folder / file.path).open("rb") as stream:
                for source, content in _streams(file.path, stream, file.kind, allowance, 0):
                    count += 1
                    if count > MAX_STREAMS or time.monotonic() > deadline:
                        raise NotScanned(f"the scan ended after {count - 1} pickles or {SCAN_SECONDS:g} s")
                    if isinstance(content, bytes):
                        yield _examined(source, content, deadline)
                    else:
                        yield _unreadable(source, content)
        except Exception as error:  # a scan that fails is itself worth showing
            yield _unreadable(file.path, error)


def _unreadable(source: str, error: Exception) -> dict[str, Any]:
    message = str(error) or type(error).__name__
    finding = {"rule": "unreadable", "severity": "warning", "message": message[:300]}
    return {
        "source": source,
        "listed": False,
        "globals": [],
        "refused_by_torch": [],
        "note": "",
        "status": "error",
        "verdict": "unknown",
        "findings": [finding],
    }


def _examined(source: str, content: bytes, deadline: float) -> dict[str, Any]:
    listed, names = not _named_beyond_lists(content), named_globals(content)
    refused, note = refused_by_torch(content) if _worth_asking(listed, names) else ((), "")
    report = _NOTHING_TO_SCAN if listed else _ask_scanner(content, source, deadline - time.monotonic())
    return {
        "source": source,
        "listed": listed,
        "globals": list(names[:MAX_NAMES]),
        "refused_by_torch": list(refused[:MAX_NAMES]),
        "note": note,
        **report,
    }


def _worth_asking(listed: bool, names: Sequence[str]) -> bool:
    """Importing torch takes seconds, and it refuses no name of a plain checkpoint."""
    return not listed or any(name.startswith("torch.nn.modules.") for name in names)


_NOTHING_TO_SCAN: Mapping[str, Any] = {"status": "complete", "verdict": "clean", "findings": []}


def _named_beyond_lists(content: bytes) -> bool:
    try:
        return bool(foreign_references(content, modules=True))
    except Exception:  # pickletools raises whatever a malformed stream makes it raise
        return True


def named_globals(content: bytes) -> tuple[str, ...]:
    """Every ``module.name`` that unpickling would look up, sorted, as far as the stream can be read.

    ``STACK_GLOBAL`` takes its names from the stack: texts are followed through the memo, and what is
    computed is told as such.
    """
    names: set[str] = set()
    pushed: list[object] = []
    memo: dict[object, object] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MAX_OPCODES:
                names.add(f"(and what follows {MAX_OPCODES:,} opcodes)")
                break
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", ".", 1))
            elif opcode.name == "STACK_GLOBAL":
                names.add(_joined(pushed[-2:]))
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                names.add(f"(extension {argument} of the copyreg registry)")
            elif opcode.name == "PERSID":
                names.add("(a persistent id)")
            if opcode.name == "MEMOIZE":
                memo[len(memo)] = pushed[-1] if pushed else None
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = pushed[-1] if pushed else None
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                pushed.append(memo.get(argument))
            elif opcode.stack_after:
                pushed.append(argument if isinstance(argument, str) else None)
            del pushed[:-64]
    except Exception:  # as far as it can be read
        names.add("(the stream breaks off)")
    return tuple(sorted(name[:200] for name in names))


def _joined(parts: Sequence[object]) -> str:
    if len(parts) == 2 and all(isinstance(part, str) for part in parts):
        return f"{parts[0]}.{parts[1]}"
    return COMPUTED


def refused_by_torch(content: bytes) -> tuple[tuple[str, ...], str]:
    """The names in a checkpoint's pickle that PyTorch itself would refuse, and a note where it cannot tell.

    Torch's reader of archives is handed an archive written here, never the file: only the pickle is foreign.
    """
    import torch

    if len(content) > MAX_PICKLE_BYTES:
        return (), "too large for PyTorch to be asked"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as copy:
        copy.writestr("archive/data.pkl", content)
        copy.writestr("archive/version", "3\n")
    archive.seek(0)
    try:
        return tuple(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(archive))), ""
    except Exception as error:
        what = " ".join(str(error).split())[:120] or type(error).__name__
        return (), f"PyTorch does not read this pickle: {what}"


def _ask_scanner(content: bytes, source: str, seconds: float) -> dict[str, Any]:
    from modelaudit_picklescan import PickleScanner, ScanOptions

    scanner = PickleScanner(ScanOptions(timeout_s=max(0.1, seconds)))
    # The call-graph analysis reads torch's sources for 20 s and finds nothing that the lists do not.
    report = scanner.scan_bytes(content, source=source, enrich_call_graph=False)
    return {
        "status": report.status.value,
        "verdict": report.verdict.value,
        "findings": [
            {"rule": str(f.rule_code), "severity": f.severity.value, "message": f.message}
            for f in report.findings[:50]
        ],
    }


# Where pickles hide.


def _streams(source: str, stream: IO[bytes], kind: str, allowance: _Allowance, depth: int) -> Iterator[Found]:
    """Every pickle in a stream of this kind, with where it is; an error in place of what cannot be read."""
    if depth > MAX_DEPTH:
        raise NotScanned(f"{source} is packed more than {MAX_DEPTH} times")
    if kind == kinds.PICKLE:
        yield source, allowance.take(stream)
    elif kind == kinds.OBJECT_ARRAY:
        yield source, _behind_array_header(allowance.take(stream))
    elif kind in kinds.ZIP_KINDS or kind.endswith(kinds.ZIP_BEHIND):
        yield from _in_archive(source, stream, allowance, depth)
    elif kind == kinds.TAR:
        yield from _in_tar(source, stream, allowance, depth)
    elif kind in kinds.COMPRESSED:
        content = _unpacked(stream, kind, allowance)
        yield from _nested(f"{source} (unpacked)", content, allowance, depth)
    elif kind == kinds.DAMAGED_ZIP:
        raise NotScanned("a damaged zip archive")


def _nested(source: str, content: bytes, allowance: _Allowance, depth: int) -> Iterator[Found]:
    kind = kinds.head_kind(content[: kinds.HEAD_BYTES])
    if kind == kinds.ARRAY:
        kind = kinds.array_kind(content)
    if kind == kinds.ZIP:
        kind = kinds.archive_kind(io.BytesIO(content))
    yield from _streams(source, io.BytesIO(content), kind, allowance, depth + 1)


def _in_archive(source: str, stream: IO[bytes], allowance: _Allowance, depth: int) -> Iterator[Found]:
    with kinds.open_archive(stream) as archive:
        for info in archive.infolist()[:MAX_MEMBERS]:
            place = f"{source}:{info.filename}"
            try:
                with archive.open(info) as member:
                    yield from _in_member(place, member, allowance, depth)
            except Exception as error:  # one bad member must not hide the next
                yield place, error


def _in_member(place: str, member: IO[bytes], allowance: _Allowance, depth: int) -> Iterator[Found]:
    start = member.read(PROBE_BYTES)
    kind = kinds.head_kind(start)
    if _TENSOR.search(place) and not kinds.runs_as_pickle(start):
        return  # a few in ten thousand tensors begin like a pickle
    if place.endswith((".pkl", ".pickle")):
        yield place, start + allowance.take(member)
    elif kind in _HIDES:
        yield from _nested(place, start + allowance.take(member), allowance, depth)


_TENSOR = re.compile(r"/(?:data/|data/weights/weight_|data/constants/tensor_)[0-9]+$")


_HIDES = frozenset([kinds.PICKLE, kinds.ARRAY, kinds.ZIP, kinds.TAR, *kinds.COMPRESSED])


def _in_tar(source: str, stream: IO[bytes], allowance: _Allowance, depth: int) -> Iterator[Found]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for count, info in enumerate(archive):
            if count >= MAX_MEMBERS:
                raise NotScanned(f"{source} has more than {MAX_MEMBERS:,} members")
            member = archive.extractfile(info) if info.isreg() else None
            if member is not None:
                yield from _nested(f"{source}:{info.name}", allowance.take(member), allowance, depth)


def _unpacked(stream: IO[bytes], kind: str, allowance: _Allowance) -> bytes:
    openers: Mapping[str, Callable[[IO[bytes]], Any]] = {
        kinds.GZIP: lambda packed: gzip.GzipFile(fileobj=packed),
        kinds.BZIP2: bz2.BZ2File,
        kinds.XZ: lzma.LZMAFile,
    }
    if kind in openers:
        with openers[kind](stream) as unpacked:
            return allowance.take(unpacked)
    packed = allowance.take(stream)
    return allowance.take(io.BytesIO(zlib.decompressobj().decompress(packed, MAX_PICKLE_BYTES)))


def _behind_array_header(content: bytes) -> bytes:
    wide = content[6:7] >= b"\x02"
    start = 12 if wide else 10
    return content[start + int.from_bytes(content[8:start], "little") :]

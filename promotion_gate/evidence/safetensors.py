"""Static rules for safetensors: a length, a JSON header, then raw values with nothing between or behind.

The format runs no code. What a header can do is lie: about lengths, shapes and places, to readers that
believe it. These are the rules of the format's own description
(https://github.com/huggingface/safetensors#format), all of them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16

_ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def safetensors_violations(path: Path) -> Iterator[str]:
    """What in a safetensors file is not as its header says, or is not a plain tensor."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            yield "is too short to be safetensors"
            return
        (length,) = struct.unpack("<Q", start)
        if length > min(MAX_HEADER_BYTES, size - 8):
            yield f"its header says it is {length:,} bytes long, in a file of {size:,}"
            return
        content = file.read(length)
    try:
        header = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        yield f"its header cannot be read: {' '.join(str(error).split())[:100]}"
        return
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        yield f"its header is no table of at most {MAX_TENSORS:,} tensors"
        return
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        yield "its __metadata__ is no table of texts"
    yield from _tensor_violations(header, size - 8 - length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table


def _tensor_violations(header: Mapping[str, Any], body: int) -> Iterator[str]:
    ranges = []
    for name, entry in header.items():
        wrong = _entry_is_wrong(entry)
        if wrong:
            yield f"tensor {name[:80]!r} {wrong}"
            return
        ranges.append((*entry["data_offsets"], name))
    end = 0
    for begin, until, name in sorted(ranges):
        if begin != end or until > body:
            yield f"tensor {name[:80]!r} overlaps another, leaves a gap or lies beyond the file"
            return
        end = until
    if end != body:
        yield f"{body - end:,} bytes behind the last tensor belong to none"


def _entry_is_wrong(entry: Any) -> str:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "has other keys than dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        return f"has the dtype {str(dtype)[:40]!r}, which is not on the list"
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        return "has a shape that is no list of sizes"
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return "has data_offsets that are no two places in order"
    if math.prod(shape) * _ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        return "has another number of bytes than its shape needs"
    return ""


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)

"""Read what a check put into a finding without trusting its shape.

Any installed check may report, so a missing key, a wrong type or a number that is no number must thin out
the card, never break it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Controls (but tab and line feed), lone surrogates, and the marks that reorder text on the screen.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff]"
)


def inert(text: str) -> str:
    """The text with every control, surrogate and bidirectional mark made visible as U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def words(value: Any, limit: int = 160) -> str:
    """One printable line of at most ``limit`` characters; empty for None and for containers."""
    if value is None or isinstance(value, Mapping | list | tuple | set | bytes):
        return ""
    line = inert(" ".join(str(value).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: Any) -> float | None:
    """A finite float, or None."""
    if isinstance(value, bool | str | bytes) or value is None:
        return None
    try:
        converted = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if math.isfinite(converted) else None


def whole(value: Any) -> int | None:
    """An integer, or None."""
    converted = number(value)
    return None if converted is None or converted != int(converted) else int(converted)


def rows(detail: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings in the list under ``key``; anything else there is left out."""
    value = detail.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return []
    return [row for row in value if isinstance(row, Mapping)]


def lines(value: Any, limit: int = 300) -> list[str]:
    """A string, or a list of them, as printable lines."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        return []
    return [line for line in (words(entry, limit) for entry in value) if line]


def table(value: Any) -> dict[str, str]:
    """A mapping's plain entries as printable pairs, in order of name."""
    if not isinstance(value, Mapping):
        return {}
    pairs = ((words(name), words(entry, 300)) for name, entry in value.items())
    return {name: entry for name, entry in sorted(pairs) if entry}


def number_text(value: float | None) -> str:
    """A number at four significant figures, without an exponent where a person would not write one."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number"
    text = f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A fraction in per cent, with a decimal where it matters."""
    if value is None:
        return "–"
    text = f"{value:.0%}" if 0.1 <= value <= 0.9 or value in (0, 1) else f"{value:.1%}"
    return "0.0%" if text == "-0.0%" else text.replace("-", "−")


def spoken(name: str) -> str:
    """``worst_recall`` or ``per-class`` as a person writes it."""
    return words(name.replace("_", " ").replace("-", " "))


def is_printable(text: str) -> bool:
    """Whether a shell command with this text in it can be shown and copied as it is."""
    return all(c.isprintable() and unicodedata.category(c) != "Cf" for c in text)

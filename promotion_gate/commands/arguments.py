"""What the words of the command line stand for, as argparse calls for it."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta


def seed(text: str) -> int:
    """A seed of 32 bits."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"not a seed: {text!r}")
    return int(text)


def jobs(text: str) -> int:
    """How many things go on side by side."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"not a number from 1 to 1024: {text!r}")
    return int(text)


def share(text: str) -> float:
    """A share, neither none nor all."""
    number = _float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"not a share between 0 and 1: {text!r}")
    return number


def percentage(text: str) -> float:
    """A percentage, from none to all."""
    number = _float(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"not a percentage from 0 to 100: {text!r}")
    return number


def positive(text: str) -> float:
    """A number above 0."""
    number = _float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"not a positive number: {text!r}")
    return number


def version(text: str) -> int:
    """The number of a model version."""
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a version number: {text!r}")
    return int(text)


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> datetime:
    """A moment that has passed: ISO 8601, local time where it names no zone, or so long ago: ``10m``."""
    now = datetime.now().astimezone()
    ago = re.fullmatch(r"([0-9]{1,6})([smhd])", text, re.ASCII)
    try:
        at = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}) if ago else datetime.fromisoformat(text)
        at = at.astimezone()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"not a moment: {text!r:.80}; write 2026-01-31T03:12Z, or 10m for ten minutes ago"
        ) from None
    if at > now:
        raise argparse.ArgumentTypeError(f"lies in the future: {text!r:.80}")
    return at


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0

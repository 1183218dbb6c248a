"""What the words of the command line stand for, as argparse calls for it."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta


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


def model_name(text: str) -> str:
    """A registered model's name, where no version is asked for."""
    if re.fullmatch(r"(models:/)?[^/@]+/[0-9]+", text):
        raise argparse.ArgumentTypeError(
            f"not a model's name: {text!r:.200}; name the model alone (rollback takes a version as --to)"
        )
    return text


def version(text: str) -> int:
    """The number of a model version."""
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a version number: {text!r}")
    return int(text)


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(text: str) -> float:
    """Seconds, of ``90s``, ``15m``, ``1.5h`` or ``2d``; at most a year."""
    number = _float(text[:-1]) * _SECONDS.get(text[-1:], 0)
    if not 0 < number <= 366 * 86_400:
        raise argparse.ArgumentTypeError(f"not a length of time: {text!r:.40}; write 90s, 15m, 1h or 2d")
    return number


def instant(text: str) -> float:
    """Seconds since the epoch, of an ISO 8601 time; UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
        at = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        at = -1.0
    if at < 0:
        raise argparse.ArgumentTypeError(f"not a time: {text!r:.40}; write 2026-05-01T12:00")
    return at


def moment(text: str) -> datetime:
    """A moment that has passed: as :func:`instant` reads it, or so long ago: ``10m``."""
    now = datetime.now(UTC)
    try:
        at = now - timedelta(seconds=duration(text))
    except argparse.ArgumentTypeError:
        try:
            at = datetime.fromtimestamp(instant(text), UTC)
        except (argparse.ArgumentTypeError, ValueError, OverflowError, OSError):
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

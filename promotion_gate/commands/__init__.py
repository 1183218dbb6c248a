"""The command line's subcommands about data, a file for each family.

``add(command)`` declares them; a handler is a few lines and imports what it needs inside, so that ``--help``
stays quick.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from promotion_gate.core.errors import UsageError

if TYPE_CHECKING:
    from promotion_gate.core.production import Production

Handler = Callable[[argparse.Namespace], int]


class Command(Protocol):
    """Makes one subcommand's parser, with the exit codes in its help."""

    def __call__(
        self, name: str, handler: Handler | None, text: str, *, registry: bool = True, within: Any = ...
    ) -> argparse.ArgumentParser:
        """A parser for ``name``; ``registry`` adds the MLflow options, ``within`` nests it in another's."""


def say(line: str) -> None:
    """Print one line, with what a terminal would obey made harmless."""
    from promotion_gate.operators import plain

    print(plain(line))


def production(alias: str, mirror_stage: str = "auto") -> Production:
    """What the command line says of production.

    Raises
    ------
    UsageError: MLflow knows no such alias.
    """
    from pydantic import ValidationError

    from promotion_gate.core.production import Production

    try:
        return Production.model_validate({"alias": alias, "mirror_stage": mirror_stage})
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--alias {alias!r} cannot be used: {why}") from None


def progress_lines(*, quiet: bool) -> Callable[[str], None]:
    """Lines with the time since now on standard error, or nothing."""
    from promotion_gate.operators import plain

    clock = time.monotonic()

    def progress(line: str) -> None:
        # One write a line: work goes on side by side, and print writes the line's end by itself.
        sys.stderr.write(f"[{time.monotonic() - clock:6.1f} s] {plain(line)}\n")
        sys.stderr.flush()

    return (lambda _: None) if quiet else progress

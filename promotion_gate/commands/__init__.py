"""The command line's subcommands about data, a file for each family.

``add(command)`` declares them; a handler is a few lines and imports what it needs inside, so that ``--help``
stays quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

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

"""Every error the program raises on purpose, each with the exit code it ends the process with.

An error message is one line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The process exit codes; 1 is Python's own for a crash and is never chosen."""

    DONE = 0
    USAGE = 2
    REJECTED = 3
    HELD = 4
    REGISTRY = 5


class GateError(Exception):
    """A failure with a one-line message for the person at the terminal.

    Parameters
    ----------
    what: what is wrong, naming the place (file, row, model, host).
    remedy: what to do about it; empty when the first half already says so.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.what}; {self.remedy}" if self.remedy else self.what
        return " ".join(line.split())


class UsageError(GateError):
    """The command line asks for something that cannot be done."""


class PolicyError(GateError):
    """The policy file is missing, unreadable, empty or wrong."""


class InputError(GateError):
    """A data set or image is missing, malformed or does not fit the model. A gate run holds on it."""

    exit_code = ExitCode.HELD


class DbomError(GateError):
    """A data bill of materials, or a file that belongs to it, is missing, malformed or cannot be written."""


class HashMismatch(GateError):
    """Data is not what its entry in the data bill of materials says: its bytes changed."""

    exit_code = ExitCode.REJECTED


class Unregistered(GateError):
    """Data is refused: it has no entry that vouches for it, or one that says not to use it."""

    exit_code = ExitCode.REJECTED


class RefusedData(GateError):
    """Data from outside is refused: its archive is hostile, or somebody rejected it before."""

    exit_code = ExitCode.REJECTED


class ArtifactError(GateError):
    """A model's files are refused: changed, unreadable or of a kind that the policy does not allow."""

    exit_code = ExitCode.REJECTED


class ModelError(GateError):
    """The model's own code failed in the sandbox: crash, time-out, memory, wrong output."""

    exit_code = ExitCode.HELD


class SigningError(GateError):
    """A signature is missing, foreign or wrong, or a key cannot be used."""

    exit_code = ExitCode.REGISTRY


class ServingError(GateError):
    """Production was moved, and the code that serves has not followed."""

    exit_code = ExitCode.REGISTRY


class RegistryError(GateError):
    """The registry cannot be reached or refuses the request."""

    exit_code = ExitCode.REGISTRY


class NoAnswer(RegistryError):
    """The registry gave no usable answer: what was asked for may have been done, or may be done yet."""


class RegistryConflict(RegistryError):
    """Somebody else is changing, or has changed, the same model's production version."""


class NotInRegistry(RegistryError):
    """The named model, version, alias or run does not exist."""

"""The process of ``promotion-gate`` and ``python -m promotion_gate``."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from promotion_gate.cli import carry_out, parsed
from promotion_gate.core.errors import ExitCode

SHORT = frozenset({"approve", "history", "recover", "reject", "revoke", "rollback", "status", "verify"})
"""Commands that ask the registry, print an answer and leave nothing running."""


def program() -> NoReturn:
    """Run the command that the process was started with, and end the process with its exit code.

    A short command is over before garbage is worth collecting. It also ends without freeing MLflow's modules
    one by one, which takes longer than all of its requests; what it printed is written out first.
    """
    args = parsed(sys.argv[1:])
    if args.command not in SHORT:
        sys.exit(carry_out(args))
    gc.disable()
    code = carry_out(args)
    try:
        if sys.stdout is not None:  # it was closed by whoever started the process
            sys.stdout.flush()
    except BrokenPipeError:
        pass  # the reader has gone, and had what it wanted
    except OSError as error:
        print(f"promotion-gate: the answer could not be written: {error.strerror}", file=sys.stderr)
        code = code or ExitCode.USAGE
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    program()

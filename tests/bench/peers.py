"""The gate's checks beside published detectors, on the same models: ``python tests/bench/peers.py``.

The bank is made by ``make bank-test`` and is only read. Answers go to ``peers.jsonl`` in its folder as they
come, one line a model and method, and finished ones are not asked for again. ``make bench-peers`` installs
what the peers need.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from promotion_gate.core.errors import ExitCode, GateError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print the tables."""
    asked = _parser().parse_args(arguments)
    try:
        print(_compare(asked))
    except GateError as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("bench-peers: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return int(ExitCode.DONE)


def _compare(asked: argparse.Namespace) -> str:
    # Read when torch begins, in worker processes too; libraries' bars would bury our own lines.
    os.environ.update(OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    from rivals.course import PEERS, require_installed, run_peers
    from rivals.finished_bank import in_turn, read_bank
    from rivals.table import markdown, put_into

    if unknown := [name for name in asked.methods if name not in PEERS]:
        raise UsageError(f"no method {unknown[0]!r}", f"there are {', '.join(PEERS)}")
    if asked.every < 1 or asked.limit < 0 or asked.jobs < 1:
        raise UsageError("--every and --jobs are 1 or more, --limit is 0 or more")
    names = list(dict.fromkeys(asked.methods)) or list(PEERS)
    models = in_turn(read_bank(asked.bank), every=asked.every, limit=asked.limit)
    peers = [PEERS[name] for name in names]
    require_installed(peers)
    measured = run_peers(
        models, peers, asked.bank, asked.out or asked.bank / "peers.jsonl", jobs=asked.jobs, progress=_tell
    )
    text = markdown(models, measured, names)
    if asked.readme and (asked.methods or asked.limit or asked.every > 1):
        _tell(f"{asked.readme} is left as it is: this is a part of the models or methods")
    elif asked.readme:
        put_into(asked.readme, text)
    return text


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-peers", description=__doc__)
    parser.add_argument(
        "--bank", type=Path, default=Path("bank/test"), help="a finished bank (default: bank/test)"
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="every K-th model of each family")
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="at most N models, of all families by turns"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="models side by side (default: one a core)"
    )
    parser.add_argument("--out", type=Path, help="where answers are kept (default: peers.jsonl in the bank)")
    parser.add_argument("--readme", type=Path, help="put the tables of a whole run in this README too")
    return parser


if __name__ == "__main__":
    sys.exit(main())

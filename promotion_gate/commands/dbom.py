"""``promotion-gate dbom``: the data bill of materials."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.commands import Command, progress_lines, say
from promotion_gate.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promotion_gate.provenance.dbom import DbomEntry
    from promotion_gate.provenance.verify import DataCheck

_SHOWN = 100
"""Differences of one data set that are printed; the rest is counted."""


def add(command: Command) -> None:
    """Declare the commands."""
    dbom = command("dbom", None, "which bytes each data set consists of, and who vetted them", registry=False)
    within = dbom.add_subparsers(dest="dbom_command", required=True, metavar="COMMAND")

    added = command("add", _add, "hash a data set and write its entry", registry=False, within=within)
    added.add_argument(
        "data", metavar="PATH|URL", help="file or folder below dbom.json, or a URL to fetch once"
    )
    added.add_argument("--name", required=True, metavar="N", help="what training code calls it")
    added.add_argument("--version", required=True, metavar="V", help="whose and which release it is")
    added.add_argument("--origin", default="", metavar="URL", help="where it was taken from")
    added.add_argument("--mirror", default="", metavar="URL", help="where a copy of your own lies")
    added.add_argument("--license", default="", metavar="L", help="SPDX identifier or expression, or a name")
    added.add_argument(
        "--status",
        choices=("vetted", "quarantined"),
        help="verified loads refuse what is quarantined (default: vetted for a path, quarantined for a URL)",
    )
    added.add_argument("--reason", default="", metavar="TEXT", help="why; it goes into the entry")
    added.add_argument("--replace", action="store_true", help="state an entry of that name anew")
    _document(added)
    _quiet(added)

    removed = command("remove", _remove, "take an entry out; the data stays", registry=False, within=within)
    removed.add_argument("name", metavar="NAME")
    _document(removed)

    listed = command("list", _list, "the data sets and who vetted them", registry=False, within=within)
    listed.add_argument("--json", action="store_true", help="for programs")
    _document(listed)

    verified = command("verify", _verify, "hash every byte again", registry=False, within=within)
    verified.add_argument("names", nargs="*", metavar="NAME", help="these data sets (default: all)")
    _document(verified)
    _quiet(verified)

    covered = command(
        "coverage",
        _coverage,
        "share of training data sets with a verified checksum",
        registry=False,
        within=within,
    )
    covered.add_argument(
        "--min", type=_percent, default=0.0, metavar="P", help="exit 3 below P %% (default: 0)"
    )
    _document(covered)
    _quiet(covered)


def _document(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dbom", type=Path, metavar="F", help="default: PROMOTION_GATE_DBOM, or dbom.json here or above"
    )


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"not a percentage from 0 to 100: {text!r}")
    return value


def _place(args: argparse.Namespace, *, to_write: bool = False) -> Path:
    """The document: an existing one, or for a command that may begin one, ``dbom.json`` here."""
    from promotion_gate.core.errors import DbomError
    from promotion_gate.provenance.dbom import DBOM_FILE, find_dbom

    try:
        return find_dbom(args.dbom)
    except DbomError:
        if to_write:
            return Path.cwd() / DBOM_FILE
        raise


def _add(args: argparse.Namespace) -> int:
    from promotion_gate.data.files import is_url
    from promotion_gate.provenance.register import Particulars, add_path

    if is_url(args.data):
        raise UsageError("URLs cannot be added yet", "fetch it, and add the file")
    about = Particulars(
        name=args.name,
        version=args.version,
        origin=args.origin,
        mirror=args.mirror,
        license=args.license,
        vetting=args.status or "vetted",
        reason=args.reason,
    )
    dbom = _place(args, to_write=True)
    entry = add_path(
        dbom, Path(args.data), about, replacing=args.replace, progress=progress_lines(quiet=args.quiet)
    )
    say(f"{entry.name} {entry.version}: {_extent(entry)}, {entry.vetting}")
    say(f"SHA-256 {entry.sha256}")
    say(f"wrote {dbom}")
    return ExitCode.DONE


def _remove(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.register import remove

    dbom = _place(args)
    entry = remove(dbom, args.name)
    say(f"removed {entry.name} {entry.version} from {dbom}; the data itself was not touched")
    return ExitCode.DONE


def _list(args: argparse.Namespace) -> int:
    import json

    from promotion_gate.provenance.dbom import entry_facts, read_dbom

    dbom = read_dbom(_place(args))
    if args.json:
        print(json.dumps([entry_facts(entry) for entry in dbom.entries.values()], indent=2))
        return ExitCode.DONE
    for entry in dbom.entries.values():
        when = (
            entry.added_at.isoformat(sep=" ", timespec="minutes") if entry.added_at else "at a time not noted"
        )
        digest = entry.sha256 or "none"
        say(f"{entry.name} {entry.version}: {entry.vetting}, {_extent(entry)}, SHA-256 {digest}")
        places = {"at": entry.path, "origin": entry.origin, "mirror": entry.mirror, "license": entry.license}
        say("  " + ", ".join(f"{what} {text}" for what, text in places.items() if text))
        say(f"  by {entry.added_by or 'nobody named'} {when}" + (f": {entry.reason}" if entry.reason else ""))
    return ExitCode.DONE


def _verify(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.dbom import read_dbom
    from promotion_gate.provenance.verify import verify_local

    dbom = read_dbom(_place(args))
    tell = progress_lines(quiet=args.quiet)
    checks = []
    for entry in dbom.chosen(args.names):
        tell(f"{entry.name}: {_extent(entry)}")
        checks.append(verify_local(dbom, entry, tell))
        _say_check(checks[-1])
    wrong = sum(not check.verified for check in checks)
    say(f"{len(checks) - wrong} of {len(checks)} data sets verified")
    return ExitCode.REJECTED if wrong else ExitCode.DONE


def _say_check(check: DataCheck) -> None:
    entry = check.entry
    if check.verified:
        say(f"{entry.name} {entry.version}: verified, {_extent(entry)}")
        return
    lines = check.differences
    say(f"{entry.name} {entry.version}: NOT VERIFIED")
    for line in lines[:_SHOWN]:
        say(f"  {line}")
    if len(lines) > _SHOWN:
        say(f"  and {len(lines) - _SHOWN:,} more")


def _coverage(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.dbom import read_dbom
    from promotion_gate.provenance.verify import coverage, verify_local

    dbom = read_dbom(_place(args))
    tell = progress_lines(quiet=args.quiet)
    unregistered: Sequence[str] = ()
    covered = coverage([verify_local(dbom, entry, tell) for entry in dbom.entries.values()], unregistered)
    for check in covered.checks:
        if not check.verified:
            say(f"not verified: {check.entry.name} {check.entry.version}: {check.differences[0]}")
    for name in covered.unregistered:
        say(f"not registered: {name}")
    total = len(covered.checks) + len(covered.unregistered)
    good = sum(check.verified for check in covered.checks)
    say(f"checksum coverage: {covered.percent:.1f} % ({good} of {total} data sets)")
    return ExitCode.REJECTED if covered.percent < args.min else ExitCode.DONE


def _extent(entry: DbomEntry) -> str:
    from promotion_gate.provenance.hashing import readable

    files = "1 file" if entry.files == 1 else f"{entry.files:,} files"
    return f"{files}, {readable(entry.size)}"

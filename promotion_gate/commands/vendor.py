"""``vendor``: data from outside, through quarantine and a person's word, into the mirror."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promotion_gate.commands import Command, progress_lines, say
from promotion_gate.commands.arguments import positive
from promotion_gate.core.errors import ExitCode

_COMMANDS = ("fetch", "approve", "reject", "list")


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The command line with ``vendor URL``, which is short for ``vendor fetch URL``, in full."""
    given = list(arguments)
    if given[:1] == ["vendor"] and len(given) > 1 and given[1] not in (*_COMMANDS, "-h", "--help"):
        given.insert(1, "fetch")
    return given


def add(command: Command) -> None:
    """Declare the commands."""
    vendor = command(
        "vendor",
        None,
        "bring outside data in: quarantine, validate, approve, mirror ('vendor URL' fetches)",
        registry=False,
    )
    within = vendor.add_subparsers(dest="vendor_command", required=True, metavar="COMMAND")

    fetched = command("fetch", _fetch, "fetch into quarantine and validate", registry=False, within=within)
    fetched.add_argument("url", metavar="URL", help="what to fetch; 'vendor URL' is short for this command")
    fetched.add_argument("--name", required=True, metavar="N", help="what the set is to be called")
    fetched.add_argument(
        "--to",
        required=True,
        metavar="URL",
        help="the mirror: s3://bucket/prefix, gs://bucket/prefix or file:///folder",
    )
    fetched.add_argument("--version", default="1", metavar="V", help="the set's version (default: 1)")
    fetched.add_argument("--license", default="", metavar="L", help="SPDX identifier, or a name")
    fetched.add_argument("--expect", type=Path, metavar="F", help="expectations, as for validate")
    fetched.add_argument(
        "--sha256", default="", metavar="HEX", help="what the publisher says of the download"
    )
    fetched.add_argument(
        "--max-gib", type=positive, default=200.0, metavar="G", help="most to fetch or unpack (default: 200)"
    )
    fetched.add_argument(
        "--max-hours", type=positive, default=6.0, metavar="H", help="longest to fetch (default: 6)"
    )
    _again(fetched)
    _quiet(fetched)

    approved = command(
        "approve", _approve, "publish a set to the mirror, and register it", registry=False, within=within
    )
    _decision(approved)
    approved.add_argument("--dbom", type=Path, metavar="F", help="the bill of materials (default: dbom.json)")
    approved.add_argument("--replace", action="store_true", help="the entry may be there already")
    approved.add_argument("--unsafe-invalid", action="store_true", help="although expectations were not met")
    _again(approved)
    _quiet(approved)

    rejected = command(
        "reject", _reject, "delete a set in quarantine, and remember why", registry=False, within=within
    )
    _decision(rejected)

    command("list", _list, "what waits in quarantine", registry=False, within=within)


def _decision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the set, as 'vendor list' names it")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why; it is kept")


def _again(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--again-because",
        default="",
        metavar="TEXT",
        help="why a set comes again whose URL or bytes somebody rejected; it is kept",
    )


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def _fetch(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.sources import Limits
    from promotion_gate.vendoring import REPORT, SHEET, Order, vendor

    order = Order(
        url=args.url,
        name=args.name,
        mirror_root=args.to,
        version=args.version,
        license=args.license,
        expect=args.expect,
        sha256=args.sha256,
        limits=Limits(int(args.max_gib * 2**30), args.max_hours * 3600),
        again_because=args.again_because,
    )
    record, place = vendor(order, progress_lines(quiet=args.quiet))
    say(f"{record.name}: {record.files:,} files, {record.size:,} bytes, in quarantine at {place}")
    say(record.found)
    for page, what in ((REPORT, "report"), (SHEET, "contact sheet")):
        if (place / page).exists():
            say(f"{what}: {place / page}")
    if record.state == "invalid":
        say(f'not as expected: promotion-gate vendor reject {record.name} --reason "…"')
        return ExitCode.REJECTED
    say(f'a person decides: promotion-gate vendor approve {record.name} --reason "…", or reject')
    return ExitCode.HELD


def _approve(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.dbom import DBOM_FILE
    from promotion_gate.vendoring import approve_vendored

    dbom = args.dbom or Path(DBOM_FILE)
    entry = approve_vendored(
        args.name,
        dbom,
        reason=args.reason,
        again_because=args.again_because,
        replacing=args.replace,
        unsafe_invalid=args.unsafe_invalid,
        progress=progress_lines(quiet=args.quiet),
    )
    say(f"approved {entry.name}: {entry.mirror}, every byte read back")
    say(f"{dbom}: {entry.name} {entry.version}, vetted, SHA-256 {entry.sha256}; commit it")
    return ExitCode.DONE


def _reject(args: argparse.Namespace) -> int:
    from promotion_gate.vendoring import reject_vendored

    record = reject_vendored(args.name, reason=args.reason)
    say(f"rejected {record.name}: its files are gone from quarantine, and none reached a mirror")
    return ExitCode.DONE


def _list(_: argparse.Namespace) -> int:
    from promotion_gate.vendoring import in_quarantine

    waiting = in_quarantine()
    for record in waiting:
        at = record.fetched_at.isoformat(sep=" ", timespec="seconds")
        say(f"{record.state} {record.name} {record.version} {at} {record.fetched_by} {record.url}")
        say(f"  {record.found}")
        if record.again_because:
            say(f"  again, because: {record.again_because}")
    if not waiting:
        say("nothing is in quarantine")
    return ExitCode.DONE

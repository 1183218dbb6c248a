"""``vendor``: data from outside, through quarantine and a person's word, into the mirror."""

from __future__ import annotations

import argparse
from pathlib import Path

from promotion_gate.commands import Command, progress_lines, say
from promotion_gate.commands.arguments import positive
from promotion_gate.core.errors import ExitCode, UsageError


def add(command: Command) -> None:
    """Declare the command."""
    vendor = command(
        "vendor", _vendor, "bring outside data in: quarantine, validate, approve, mirror", registry=False
    )
    vendor.add_argument("what", metavar="URL", help="what to fetch; or approve, reject, list")
    vendor.add_argument("named", nargs="?", metavar="NAME", help="with approve and reject: which set")
    vendor.add_argument("--name", metavar="N", help="what the set is to be called")
    vendor.add_argument(
        "--to", metavar="URL", help="the mirror: s3://bucket/prefix, gs://bucket/prefix or file:///folder"
    )
    vendor.add_argument("--version", default="1", metavar="V", help="the set's version (default: 1)")
    vendor.add_argument("--license", default="", metavar="L", help="SPDX identifier, or a name")
    vendor.add_argument("--expect", type=Path, metavar="F", help="expectations, as for validate")
    vendor.add_argument("--sha256", default="", metavar="HEX", help="what the publisher says of the download")
    vendor.add_argument(
        "--max-gib", type=positive, default=200.0, metavar="G", help="most to fetch or unpack (default: 200)"
    )
    vendor.add_argument(
        "--max-hours", type=positive, default=6.0, metavar="H", help="longest to fetch (default: 6)"
    )
    vendor.add_argument("--dbom", type=Path, metavar="F", help="the bill of materials (default: dbom.json)")
    vendor.add_argument("--reason", default="", metavar="TEXT", help="with approve and reject: why")
    vendor.add_argument("--replace", action="store_true", help="with approve: the entry may be there already")
    vendor.add_argument(
        "--unsafe-invalid", action="store_true", help="with approve: although expectations were not met"
    )
    vendor.add_argument("--quiet", action="store_true", help="no progress on standard error")


def _vendor(args: argparse.Namespace) -> int:
    if args.what == "list" and args.named is None:
        return _list()
    if args.what in ("approve", "reject"):
        if not args.named:
            raise UsageError("which set?", f"promotion-gate vendor {args.what} NAME --reason TEXT")
        return _approve(args) if args.what == "approve" else _reject(args)
    if args.named is not None:
        raise UsageError(f"{args.named!r} is one argument too many", "see 'promotion-gate vendor --help'")
    return _fetch(args)


def _fetch(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.sources import Limits
    from promotion_gate.vendoring import REPORT, SHEET, Order, vendor

    if not args.name or not args.to:
        raise UsageError("a fetch needs a name and a mirror", "--name N --to s3://bucket/prefix")
    order = Order(
        url=args.what,
        name=args.name,
        mirror_root=args.to,
        version=args.version,
        license=args.license,
        expect=args.expect,
        sha256=args.sha256,
        limits=Limits(int(args.max_gib * 2**30), args.max_hours * 3600),
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
        args.named,
        dbom,
        reason=args.reason,
        replacing=args.replace,
        unsafe_invalid=args.unsafe_invalid,
        progress=progress_lines(quiet=args.quiet),
    )
    say(f"approved {entry.name}: {entry.mirror}, every byte read back")
    say(f"{dbom}: {entry.name} {entry.version}, vetted, SHA-256 {entry.sha256}; commit it")
    return ExitCode.DONE


def _reject(args: argparse.Namespace) -> int:
    from promotion_gate.vendoring import reject_vendored

    record = reject_vendored(args.named, reason=args.reason)
    say(f"rejected {record.name}: its files are gone from quarantine, and none reached a mirror")
    return ExitCode.DONE


def _list() -> int:
    from promotion_gate.vendoring import in_quarantine

    waiting = in_quarantine()
    for record in waiting:
        at = record.fetched_at.isoformat(sep=" ", timespec="seconds")
        say(f"{record.state} {record.name} {record.version} {at} {record.fetched_by} {record.url}")
        say(f"  {record.found}")
    if not waiting:
        say("nothing is in quarantine")
    return ExitCode.DONE

"""``promotion-gate dbom``: the data bill of materials."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.commands import Command, progress_lines, say
from promotion_gate.commands.arguments import percentage, positive
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
        help="verified loads refuse what is quarantined (default: as before, else vetted, a URL quarantined)",
    )
    added.add_argument("--reason", default="", metavar="TEXT", help="why; it goes into the entry")
    added.add_argument("--replace", action="store_true", help="state an entry of that name anew")
    added.add_argument(
        "--max-gib", type=positive, default=50.0, metavar="G", help="most to fetch from a URL (default: 50)"
    )
    added.add_argument(
        "--max-seconds", type=positive, default=21600.0, metavar="S", help="for how long (default: 21600)"
    )
    _document(added)
    _quiet(added)

    vetted = command(
        "vet", _vet, "vet a quarantined entry whose bytes were looked at", registry=False, within=within
    )
    vetted.add_argument("name", metavar="NAME")
    vetted.add_argument("--reason", required=True, metavar="TEXT", help="who looked, and at what; it is kept")
    _document(vetted)

    removed = command("remove", _remove, "take an entry out; the data stays", registry=False, within=within)
    removed.add_argument("name", metavar="NAME")
    _document(removed)

    listed = command("list", _list, "the data sets and who vetted them", registry=False, within=within)
    listed.add_argument("--json", action="store_true", help="for programs")
    _document(listed)

    verified = command("verify", _verify, "hash every byte again", registry=False, within=within)
    verified.add_argument("names", nargs="*", metavar="NAME", help="these data sets (default: all)")
    verified.add_argument("--mirror", action="store_true", help="read the mirror's copies instead")
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
        "--min", type=percentage, default=0.0, metavar="P", help="exit 3 below P %% (default: 0)"
    )
    covered.add_argument("--mirror", action="store_true", help="read the mirror's copies instead")
    covered.add_argument(
        "--code", type=Path, metavar="PATH", help="count what its code brings in and is not registered, too"
    )
    _document(covered)
    _quiet(covered)

    exported = command("export", _export, "write entries for other tools", registry=False, within=within)
    exported.add_argument("names", nargs="*", metavar="NAME", help="these data sets (default: all)")
    exported.add_argument(
        "--format", choices=("cyclonedx", "spdx", "croissant"), default="cyclonedx", help="default: cyclonedx"
    )
    exported.add_argument("--out", type=Path, metavar="F", help="a file (default: standard output)")
    _document(exported)

    imported = command(
        "import-dvc", _import_dvc, "add what DVC tracks, its MD5 checked", registry=False, within=within
    )
    imported.add_argument("files", nargs="+", type=Path, metavar="FILE", help="NAME.dvc or dvc.lock")
    imported.add_argument("--replace", action="store_true", help="state entries of those names anew")
    _document(imported)
    _quiet(imported)

    attested = command("attest", _attest, "sign which data and code a model was made from", registry=False)
    attested.add_argument("model", metavar="MODEL", help="a folder, or the URI of a logged model")
    attested.add_argument("--data", nargs="+", required=True, metavar="N", help="every data set trained on")
    attested.add_argument("--run", default="", metavar="ID", help="the MLflow run to store it with")
    attested.add_argument("--out", type=Path, metavar="F", help="a file to write it to")
    attested.add_argument("--key", type=Path, metavar="F", help="the trainer's key (default: your own)")
    attested.add_argument(
        "--code", type=Path, metavar="D", help="the code's repository (default: the DBOM's)"
    )
    attested.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow tracking server (else as MLflow finds it)"
    )
    _document(attested)


def _document(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dbom", type=Path, metavar="F", help="default: PROMOTION_GATE_DBOM, or dbom.json here or above"
    )


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


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
    from promotion_gate.provenance.register import Particulars, add_path, add_url
    from promotion_gate.provenance.sources import Limits

    tell = progress_lines(quiet=args.quiet)
    remote = is_url(args.data)
    about = Particulars(
        name=args.name,
        version=args.version,
        origin=args.origin or (args.data if remote else ""),
        mirror=args.mirror,
        license=args.license,
        vetting=args.status,
        reason=args.reason,
    )
    dbom = _place(args, to_write=True)
    if remote:
        limits = Limits(size=int(args.max_gib * 2**30), seconds=args.max_seconds)
        entry = add_url(dbom, args.data, about, limits, replacing=args.replace, progress=tell)
    else:
        entry = add_path(dbom, Path(args.data), about, replacing=args.replace, progress=tell)
    say(f"{entry.name} {entry.version}: {_extent(entry)}, {entry.vetting}")
    say(f"SHA-256 {entry.sha256}")
    say(f"wrote {dbom}")
    if remote and entry.vetting != "vetted":
        from promotion_gate.provenance.cache import cached_place

        say(f'look at {cached_place(entry)}, then: promotion-gate dbom vet {entry.name} --reason "…"')
    return ExitCode.DONE


def _vet(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.register import vet

    dbom = _place(args)
    entry = vet(dbom, args.name, args.reason)
    say(f"{entry.name} {entry.version}: vetted, SHA-256 {entry.sha256}")
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
    from promotion_gate.provenance.hashing import LONG_BYTES
    from promotion_gate.provenance.load import verify_anywhere, verify_mirror

    dbom = read_dbom(_place(args))
    tell = progress_lines(quiet=args.quiet)
    verify = verify_mirror if args.mirror else verify_anywhere
    checks = []
    for entry in dbom.chosen(args.names):
        if entry.size >= LONG_BYTES:
            tell(f"{entry.name}: {_extent(entry)}")
        checks.append(verify(dbom, entry, tell))
        _say_check(checks[-1])
    wrong = sum(not check.verified for check in checks)
    say(f"{len(checks) - wrong} of {len(checks)} data sets verified")
    return ExitCode.REJECTED if wrong else ExitCode.DONE


def _say_check(check: DataCheck) -> None:
    entry = check.entry
    if check.verified:
        where = f", at {check.where}" if "://" in check.where else ""
        quarantined = "; quarantined" * (entry.vetting != "vetted")
        say(f"{entry.name} {entry.version}: verified, {_extent(entry)}{where}{quarantined}")
        return
    lines = check.differences
    say(f"{entry.name} {entry.version}: NOT VERIFIED")
    for line in lines[:_SHOWN]:
        say(f"  {line}")
    if len(lines) > _SHOWN:
        say(f"  and {len(lines) - _SHOWN:,} more")


def _coverage(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.dbom import read_dbom
    from promotion_gate.provenance.load import verify_anywhere, verify_mirror
    from promotion_gate.provenance.verify import coverage

    dbom = read_dbom(_place(args))
    tell = progress_lines(quiet=args.quiet)
    unregistered = () if args.code is None else _unregistered(args.code, dbom.path)
    verify = verify_mirror if args.mirror else verify_anywhere
    covered = coverage([verify(dbom, entry, tell) for entry in dbom.entries.values()], unregistered)
    for check in covered.checks:
        if check.entry.vetting != "vetted":
            say(f"quarantined: {check.entry.name} {check.entry.version}: nobody vetted it")
        if not check.verified:
            say(f"not verified: {check.entry.name} {check.entry.version}: {check.differences[0]}")
    for name in covered.unregistered:
        say(f"not registered: {name}")
    total = len(covered.checks) + len(covered.unregistered)
    say(f"checksum coverage: {covered.percent:.1f} % ({covered.covered} of {total} data sets)")
    return ExitCode.REJECTED if covered.percent < args.min else ExitCode.DONE


def _unregistered(code: Path, dbom: Path) -> Sequence[str]:
    """Where the code brings in data that has no entry; what a suppression explains is left out."""
    from promotion_gate.provenance.scan.judge import UNREGISTERED
    from promotion_gate.provenance.scan.registered import read_registered
    from promotion_gate.provenance.scan.run import read_settings, scan_folder
    from promotion_gate.provenance.scan.sources import load_sources

    settings = read_settings(code)
    scan = scan_folder(
        code,
        load_sources(settings.sources),
        read_registered(dbom),
        exclude=settings.exclude,
        mirrors=settings.mirrors,
    )
    return [
        f"{finding.path}:{finding.line}: {finding.message}"
        for finding in scan.findings
        if finding.rule == UNREGISTERED and not finding.allowed
    ]


def _export(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.dbom import read_dbom
    from promotion_gate.provenance.export import export

    dbom = read_dbom(_place(args))
    content = export(dbom, dbom.chosen(args.names), args.format)
    if args.out is None:
        print(content.decode("ascii"), end="")
        return ExitCode.DONE
    try:
        args.out.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {args.out}: {error.strerror}") from None
    say(f"wrote {args.out}")
    return ExitCode.DONE


def _import_dvc(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.dvc import import_dvc

    dbom = _place(args, to_write=True)
    for file in args.files:
        for entry in import_dvc(
            dbom, file, replacing=args.replace, progress=progress_lines(quiet=args.quiet)
        ):
            say(f"{entry.name} {entry.version}: {_extent(entry)}, {entry.path}")
    say(f"wrote {dbom}")
    return ExitCode.DONE


def _attest(args: argparse.Namespace) -> int:
    import os

    from promotion_gate.training import attest

    if args.tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = args.tracking_uri
    run = args.run or ("" if args.out is not None else _training_run(args.model))
    attest(args.model, args.data, key=args.key, dbom=args.dbom, run_id=run, code=args.code, out=args.out)
    say(f"attested {args.model} from {', '.join(args.data)}")
    if run:
        say(f"stored with run {run}")
    if args.out is not None:
        say(f"wrote {args.out}")
    return ExitCode.DONE


def _training_run(model: str) -> str:
    """The run behind a registered version, which is where the gate looks for its attestation."""
    from promotion_gate.core.types import ModelRef
    from promotion_gate.registry.mlflow import MlflowRegistry

    nowhere = UsageError("nowhere to put the attestation", "name a run with --run, or a file with --out")
    try:
        ref = ModelRef.parse(model)
    except UsageError:
        raise nowhere from None
    run = MlflowRegistry().version(ref).run_id
    if not run:
        raise nowhere
    return run


def _extent(entry: DbomEntry) -> str:
    from promotion_gate.provenance.hashing import readable

    files = "1 file" if entry.files == 1 else f"{entry.files:,} files"
    return f"{files}, {readable(entry.size)}"

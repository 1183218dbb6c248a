"""``promotion-gate scan``: where data enters a repository."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.commands import Command, say
from promotion_gate.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from promotion_gate.provenance.scan.baseline import Baseline
    from promotion_gate.provenance.scan.registered import RegisteredSets
    from promotion_gate.provenance.scan.run import Scan, ScanSettings


def add(command: Command) -> None:
    """Declare the command."""
    scan = command("scan", _scan, "find every place in a repository where data enters", registry=False)
    scan.add_argument(
        "path", nargs="?", type=Path, default=Path(), metavar="PATH", help="folder or file (default: here)"
    )
    scan.add_argument("--sarif", type=Path, metavar="F", help="write SARIF 2.1.0, for code scanning pages")
    scan.add_argument("--json", type=Path, metavar="F", help="write every finding")
    scan.add_argument(
        "--dbom", type=Path, metavar="F", help="bill of materials (default: dbom.json in PATH, if there)"
    )
    scan.add_argument(
        "--baseline", type=Path, metavar="F", help="findings that were there before, each with its reason"
    )
    scan.add_argument(
        "--write-baseline", type=Path, metavar="F", help="write what would fail into a baseline"
    )
    scan.add_argument("--reason", default="", metavar="TEXT", help="why those findings may stay")
    scan.add_argument(
        "--sources", type=Path, action="append", default=[], metavar="F", help="a file of further loaders"
    )


def _scan(args: argparse.Namespace) -> int:
    from promotion_gate.core.writing import write_bytes
    from promotion_gate.provenance.scan.baseline import baseline_text
    from promotion_gate.provenance.scan.report import scan_json, scan_lines
    from promotion_gate.provenance.scan.sarif import sarif_text

    if bool(args.write_baseline) != bool(args.reason.strip()):
        raise UsageError("--write-baseline and --reason go together", "say why the findings may stay")
    scan, before = _scanned(args)
    if args.sarif is not None:
        write_bytes(args.sarif, sarif_text(scan).encode())
    if args.json is not None:
        write_bytes(args.json, scan_json(scan).encode())
    if args.write_baseline is not None:
        write_bytes(args.write_baseline, baseline_text(scan.findings, args.reason.strip(), before).encode())
        say(f"wrote {args.write_baseline}: {len(scan.failing)} new findings")
        return ExitCode.DONE
    for line in scan_lines(scan):
        say(line)
    return ExitCode.REJECTED if scan.failing else ExitCode.DONE


def _scanned(args: argparse.Namespace) -> tuple[Scan, Baseline | None]:
    from promotion_gate.provenance.scan.baseline import read_baseline
    from promotion_gate.provenance.scan.run import read_settings, scan_folder
    from promotion_gate.provenance.scan.sources import load_sources

    settings = read_settings(args.path)
    baseline_path = args.baseline or settings.baseline
    rewriting = args.write_baseline is not None and args.write_baseline.exists()
    if baseline_path is None and rewriting:
        baseline_path = args.write_baseline
    before = read_baseline(baseline_path) if baseline_path is not None else None
    scan = scan_folder(
        args.path,
        load_sources([*args.sources, *settings.sources]),
        registered_sets(args.dbom, args.path, settings),
        exclude=settings.exclude,
        mirrors=settings.mirrors,
        baseline=before,
    )
    return scan, before


def registered_sets(named: Path | None, root: Path, settings: ScanSettings) -> RegisteredSets:
    """The bill of materials that is named, else the one in the folder; without one nothing is registered."""
    from promotion_gate.provenance.scan.registered import RegisteredSets, read_registered

    path = named or settings.dbom
    if path is None:
        beside = (root if root.is_dir() else root.parent) / "dbom.json"
        if not beside.exists():
            say("no dbom.json: nothing is registered yet")
            return RegisteredSets()
        path = beside
    return read_registered(path)

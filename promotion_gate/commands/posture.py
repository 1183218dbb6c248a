"""``promotion-gate posture``: how well a repository defends its training data."""

from __future__ import annotations

import argparse
from pathlib import Path

from promotion_gate.commands import Command, say
from promotion_gate.commands.scan import registered_sets
from promotion_gate.core.errors import ExitCode, UsageError
from promotion_gate.core.writing import write_bytes


def add(command: Command) -> None:
    """Declare the command."""
    posture = command(
        "posture", _posture, "four questions on the data defences of a repository", registry=False
    )
    posture.add_argument(
        "path", nargs="?", type=Path, default=Path(), metavar="PATH", help="folder (default: here)"
    )
    posture.add_argument("--json", type=Path, metavar="F", help="write answers, evidence and both metrics")
    posture.add_argument("--html", type=Path, metavar="F", help="write them as a page")
    posture.add_argument(
        "--dbom", type=Path, metavar="F", help="bill of materials (default: dbom.json in PATH)"
    )
    for name, what in (
        ("--min-coverage", "data sets in use with a verified checksum"),
        ("--min-validation", "training pipelines with a validation step"),
    ):
        posture.add_argument(
            name, type=_percent, metavar="P", help=f"end with 3 below this percentage of {what}"
        )


def _posture(args: argparse.Namespace) -> int:
    from promotion_gate.provenance.posture.assess import assess
    from promotion_gate.provenance.posture.report import posture_json, posture_lines, posture_table
    from promotion_gate.provenance.scan.run import read_settings, scan_folder
    from promotion_gate.provenance.scan.sources import load_sources

    root: Path = args.path
    if not root.is_dir():
        raise UsageError(f"no such folder: {root}")
    settings = read_settings(root)
    registered = registered_sets(args.dbom, root, settings)
    scan = scan_folder(
        root, load_sources(settings.sources), registered, exclude=settings.exclude, mirrors=settings.mirrors
    )
    posture = assess(root, scan, registered, _dbom_name(args.dbom or settings.dbom, root), settings.exclude)
    if args.json is not None:
        write_bytes(args.json, posture_json(posture).encode())
    if args.html is not None:
        from promotion_gate.card.posture import render_posture

        write_bytes(args.html, render_posture(posture_table(posture), root.resolve().name))
    for line in posture_lines(posture):
        say(line)
    bounds = ((args.min_coverage, posture.coverage), (args.min_validation, posture.validation))
    below = [s for least, s in bounds if least is not None and (s.share is None or 100 * s.share < least)]
    return ExitCode.REJECTED if below else ExitCode.DONE


def _dbom_name(named: Path | None, root: Path) -> str:
    """The bill of materials relative to the folder; nothing where it is not in it."""
    path = (named or root / "dbom.json").absolute()
    try:
        return path.relative_to(root.absolute()).as_posix() if path.is_file() else ""
    except ValueError:
        return ""


def _percent(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise argparse.ArgumentTypeError(f"not a percentage from 0 to 100: {text!r}")
    return percent

"""``validate`` and ``audit-sample``: a data set before anything is trained on it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.commands import Command, progress_lines, say
from promotion_gate.commands.arguments import jobs, seed
from promotion_gate.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from promotion_gate.validation.expectations import Reading
    from promotion_gate.validation.judged import Judged
    from promotion_gate.validation.run import Validation


def add(command: Command) -> None:
    """Declare the commands."""
    validate = command(
        "validate", _validate, "examine a data set, and fail when it is not as expected", registry=False
    )
    _data(validate)
    validate.add_argument(
        "--profile", action="store_true", help="only look at what is there; --expect then says how to read it"
    )
    validate.add_argument(
        "--expect-out", type=Path, metavar="F", help="with --profile: write expectations to start from"
    )
    _force(validate, "--expect-out")
    validate.add_argument(
        "--holdout", default="", metavar="DATA", help="the holdout, to find what leaked from it"
    )
    validate.add_argument(
        "--previous", default="", metavar="DATA", help="the version before, to compare with"
    )
    validate.add_argument("--html", type=Path, metavar="F", help="write a page with pictures")
    validate.add_argument("--json", type=Path, metavar="F", help="write the report for programs")
    validate.add_argument("--junit", type=Path, metavar="F", help="write one test case an expectation")
    validate.add_argument(
        "--metadata", type=Path, metavar="F", help="write a Parquet table, one row an image"
    )
    validate.add_argument(
        "--gx-suite", type=Path, metavar="F.json", help="run a Great Expectations suite on that table"
    )
    validate.add_argument("--pandera", type=Path, metavar="F.yaml", help="run a pandera schema on that table")
    _work(validate)

    audit = command(
        "audit-sample", _audit_sample, "a contact sheet for a person's spot check of labels", registry=False
    )
    _data(audit)
    audit.add_argument(
        "-n", type=int, default=100, metavar="N", help="images, half of them at random (default: 100)"
    )
    audit.add_argument(
        "--out",
        type=Path,
        default=Path("contact-sheet.html"),
        metavar="F",
        help="default: contact-sheet.html",
    )
    _force(audit, "--out")
    audit.add_argument("--seed", type=seed, default=0, help="another seed draws other rows (default: 0)")
    audit.add_argument(
        "--findings", type=Path, metavar="F", help="the JSON report of a gate run: the rows it names lead"
    )
    audit.add_argument(
        "--marks", type=Path, metavar="F", help="read marks instead, and print the share of wrong labels"
    )
    audit.add_argument(
        "--quarantine", type=Path, metavar="F", help="with --marks: write the rows marked wrong as JSON"
    )
    _work(audit)


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, CSV, Parquet or npz, path or URL")
    parser.add_argument(
        "--expect", type=Path, metavar="F", help="expectations; their table data says how to read"
    )


def _force(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--force", action="store_true", help=f"with {what}: replace an existing file")


def _require_new(path: Path, args: argparse.Namespace) -> None:
    """What a person may have worked on is not written over: expectations, a sheet with marks."""
    if path.exists() and not args.force:
        raise UsageError(f"{path} exists already", "--force replaces it, or name another file")


def _work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=jobs, default=0, metavar="N", help="worker processes (default: one a core)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def _validate(args: argparse.Namespace) -> int:
    from promotion_gate.core.writing import require_writable
    from promotion_gate.validation.expectations import Expectations, load_expectations
    from promotion_gate.validation.report import validation_lines
    from promotion_gate.validation.run import validate

    if args.profile:
        return _profile(args)
    if args.expect_out is not None:
        raise UsageError("--expect-out goes with --profile")
    if args.expect is None and args.gx_suite is None and args.pandera is None:
        raise UsageError(
            "nothing to judge by", "name expectations with --expect, or look first with --profile"
        )
    expected = Expectations(version=1) if args.expect is None else load_expectations(args.expect)
    suites = _suites(args)
    for path in (args.html, args.json, args.junit, args.metadata):
        if path is not None:
            require_writable(path)
    found = validate(
        args.data, expected, holdout=args.holdout, previous=args.previous, jobs=args.jobs, more=suites,
        progress=progress_lines(quiet=args.quiet),
    )  # fmt: skip
    _write(args, found)
    for line in validation_lines(found):
        say(line)
    return ExitCode.DONE if found.met else ExitCode.REJECTED


def _profile(args: argparse.Namespace) -> int:
    from promotion_gate.core.writing import require_writable, write_bytes
    from promotion_gate.validation.profile import profile_lines, starting_expectations
    from promotion_gate.validation.run import validate

    if args.gx_suite is not None or args.pandera is not None or args.junit is not None:
        raise UsageError("--profile judges nothing", "leave --gx-suite, --pandera and --junit out")
    for path in (args.html, args.json, args.metadata, args.expect_out):
        if path is not None:
            require_writable(path)
    if args.expect_out is not None:
        _require_new(args.expect_out, args)
    reading = _reading(args)
    found = validate(
        args.data, None, holdout=args.holdout, previous=args.previous, jobs=args.jobs, reading=reading,
        progress=progress_lines(quiet=args.quiet),
    )  # fmt: skip
    _write(args, found)
    for line in profile_lines(found):
        say(line)
    if args.expect_out is not None:
        write_bytes(args.expect_out, starting_expectations(found, reading).encode())
        say(f"wrote {args.expect_out}")
    return ExitCode.DONE


def _reading(args: argparse.Namespace) -> Reading:
    from promotion_gate.validation.expectations import Reading, load_expectations

    return Reading() if args.expect is None else load_expectations(args.expect, judging=False).data


def _suites(args: argparse.Namespace) -> Callable[[Any, Any], Iterable[Judged]] | None:
    """A team's own suites, read before the long work."""
    from functools import partial

    from promotion_gate.validation import suites
    from promotion_gate.validation.run import examined
    from promotion_gate.validation.table import metadata_table

    gx = None if args.gx_suite is None else suites.load_gx_suite(args.gx_suite)
    schema = None if args.pandera is None else suites.load_pandera(args.pandera)
    if gx is None and schema is None:
        return None

    def run(data: Any, alike: Any) -> Iterable[Judged]:
        frame = metadata_table(data, alike).to_pandas()
        if gx is not None:
            yield from examined("gx", partial(suites.gx_suite, data, frame, gx))
        if schema is not None:
            yield from examined("pandera", partial(suites.pandera_schema, data, frame, schema))

    return run


def _write(args: argparse.Namespace, found: Validation) -> None:
    from promotion_gate.core.writing import write_bytes, write_whole
    from promotion_gate.validation.page import validation_page
    from promotion_gate.validation.report import validation_json, validation_junit
    from promotion_gate.validation.table import write_metadata

    if args.metadata is not None:
        write_whole(args.metadata, lambda path: write_metadata(path, found.data, found.alike))
    for path, made in (
        (args.html, validation_page),
        (args.json, validation_json),
        (args.junit, validation_junit),
    ):
        if path is not None:
            write_bytes(path, made(found))


def _audit_sample(args: argparse.Namespace) -> int:
    if args.marks is not None:
        return _read_marks(args)
    if args.quarantine is not None:
        raise UsageError("--quarantine goes with --marks")
    from promotion_gate.core.writing import require_writable, write_bytes
    from promotion_gate.validation.alike import find_alike
    from promotion_gate.validation.contact_sheet import MOST_IMAGES, contact_sheet, draw_sample
    from promotion_gate.validation.expectations import Likeness
    from promotion_gate.validation.survey import open_data, survey
    from promotion_gate.validation.suspicion import read_findings

    if not 2 <= args.n <= MOST_IMAGES:
        raise UsageError(f"cannot show {args.n:,} images", f"choose 2 to {MOST_IMAGES:,} with -n")
    require_writable(args.out)
    _require_new(args.out, args)
    reading = _reading(args)
    progress = progress_lines(quiet=args.quiet)
    dataset = open_data(reading.source(args.data, reading.split))
    named = [] if args.findings is None else read_findings(args.findings, dataset)
    data = survey(dataset, looks=True, progress=progress, jobs=args.jobs)
    progress("ranking rows")
    sample = draw_sample(data, find_alike(data, None, Likeness()), args.n, args.seed, named)
    write_bytes(args.out, contact_sheet(data, sample, args.n))
    say(f"{args.out}: {len(sample.random)} images at random and the {len(sample.suspicious)} most suspicious")
    say(f"mark what is wrong, save it, then: promotion-gate audit-sample --marks marks.json {args.data}")
    return ExitCode.DONE


def _read_marks(args: argparse.Namespace) -> int:
    from promotion_gate.core.writing import require_writable, write_bytes
    from promotion_gate.validation.marks import marks_lines, quarantine_list, read_marks
    from promotion_gate.validation.survey import open_data

    if args.quarantine is not None:
        require_writable(args.quarantine)
    reading = _reading(args)
    dataset = open_data(reading.source(args.data, reading.split))
    marks = read_marks(args.marks, dataset)
    for line in marks_lines(marks, dataset):
        say(line)
    if args.quarantine is not None:
        write_bytes(args.quarantine, quarantine_list(marks, dataset))
        say(f"wrote {args.quarantine}")
    return ExitCode.DONE

"""``quarantine``, and the drift report that ``monitor`` writes."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.commands import Command, production, progress_lines, say
from promotion_gate.commands.arguments import duration, instant
from promotion_gate.core.errors import ExitCode, GateError, UsageError

if TYPE_CHECKING:
    from promotion_gate.monitor.drift_report import DriftReport
    from promotion_gate.monitor.interface import WindowOutcome
    from promotion_gate.registry.interface import Registry


def add(command: Command) -> None:
    """Declare ``quarantine``."""
    keep = command("quarantine", _quarantine, "keep suspicious inputs of production for the next gate run")
    keep.add_argument(
        "model", metavar="NAME", help="the registered model's version in production, or NAME/VERSION"
    )
    keep.add_argument(
        "--log",
        action="extend",
        nargs="+",
        required=True,
        metavar="L",
        help="prediction logs: files, folders, patterns or URLs; may be given several times",
    )
    keep.add_argument(
        "--images", required=True, metavar="D", help="folder or URL that the log's image references lie in"
    )
    keep.add_argument(
        "--out", type=Path, required=True, metavar="D", help="the new folder to keep the images in"
    )
    keep.add_argument("--class", dest="class_name", metavar="C", default="", help="this class alone")
    keep.add_argument("--from", dest="since", type=instant, metavar="TIME", help="from this time on")
    keep.add_argument("--to", dest="until", type=instant, metavar="TIME", help="up to this time")
    keep.add_argument(
        "--limit",
        type=int,
        default=200,
        metavar="N",
        help="how many images, the most suspicious (default: 200)",
    )
    keep.add_argument(
        "--policy",
        type=Path,
        metavar="F",
        help="let the model look at them in its sandbox, to rank them by SHAP",
    )
    keep.add_argument(
        "--window", type=duration, default=3600.0, metavar="T", help="as the monitor's (default: 1h)"
    )
    keep.add_argument(
        "--alias", default="production", help="the alias that serving reads (default: production)"
    )
    keep.add_argument("--quiet", action="store_true", help="no progress on standard error")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the drift report."""
    parser.add_argument("--report", type=Path, metavar="F", help="write a drift report in HTML")
    parser.add_argument(
        "--images", metavar="D", help="report: folder or URL that the log's image references lie in"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="F", help="report: the gate's policy, for SHAP beside its holdout"
    )
    parser.add_argument(
        "--no-attributions", action="store_true", help="report: show the images without loading the model"
    )


class Reporting:
    """The drift report of one run of ``monitor``; does nothing where none was asked for.

    ``lasting``: the run goes on until it is stopped, and a report that cannot be written is only noted.
    """

    def __init__(self, args: argparse.Namespace, registry: Registry, *, lasting: bool) -> None:
        self._path: Path | None = args.report
        self._lasting = lasting
        self._report: DriftReport | None = None
        if self._path is not None:
            self._report = _drift_report(args, registry, self._path)
        elif args.images is not None or args.policy is not None or args.no_attributions:
            raise UsageError("--images, --policy and --no-attributions go with --report")

    def __call__(self, outcome: WindowOutcome) -> None:
        """Take a look in; a lasting run writes the report after each window and each alarm."""
        if self._report is None:
            return
        self._report(outcome)
        if self._lasting and (outcome.alarms or outcome.complete):
            try:
                self._write()
            except GateError as error:
                say(f"note: no drift report: {error}")

    def finish(self) -> None:
        """Write the report of a run that is over."""
        if self._report is None or self._path is None or self._lasting:
            return
        if self._report.empty:
            say(
                "no drift report: there are no predictions since the last run; --state NEW reads the log anew"
            )
            return
        self._write()
        say(f"wrote {self._path}")

    def _write(self) -> None:
        assert self._report is not None
        assert self._path is not None
        self._report.write(self._path)


def _drift_report(args: argparse.Namespace, registry: Registry, path: Path) -> DriftReport:
    from promotion_gate.core.policy import load_policy
    from promotion_gate.core.writing import require_writable
    from promotion_gate.monitor.drift_report import DriftReport
    from promotion_gate.monitor.explain import open_explainer
    from promotion_gate.monitor.images import LiveImages

    require_writable(path)
    policy = None if args.policy is None else load_policy(args.policy)
    opener, notes = None, []
    if args.no_attributions:
        notes.append("No attributions: --no-attributions was given.")
    elif policy is None:
        notes.append("No attributions: --policy names no policy, whose holdout they are compared with.")
    else:
        opener = partial(open_explainer, registry, policy=policy)
    images = None if args.images is None else LiveImages(args.images)
    return DriftReport(
        images=images, open_explainer=opener, notes=notes, progress=progress_lines(quiet=False)
    )


def _quarantine(args: argparse.Namespace) -> int:
    from promotion_gate.core.policy import load_policy
    from promotion_gate.monitor.suspects import Asked, keep_suspects
    from promotion_gate.registry.mlflow import MlflowRegistry

    asked = Asked(
        model=args.model,
        logs=args.log,
        images=args.images,
        out=args.out,
        class_name=args.class_name,
        since=-math.inf if args.since is None else args.since,
        until=math.inf if args.until is None else args.until,
        limit=args.limit,
        window=args.window,
        production=production(args.alias),
        policy=None if args.policy is None else load_policy(args.policy),
        note=progress_lines(quiet=args.quiet),
    )
    for line in keep_suspects(MlflowRegistry(args.tracking_uri, args.registry_uri), asked):
        say(line)
    return ExitCode.DONE

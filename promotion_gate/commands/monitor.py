"""``monitor`` and ``monitor baseline``: live predictions against a signed baseline."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.commands import Command, production, say
from promotion_gate.commands.alerts import add_response_options, response
from promotion_gate.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from promotion_gate.monitor.interface import WindowOutcome
    from promotion_gate.registry.interface import Registry

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add(command: Command) -> None:
    """Declare ``monitor``."""
    monitor = command("monitor", _monitor, "hold live predictions against the model's signed baseline")
    monitor.add_argument(
        "words",
        nargs="+",
        metavar="[baseline] NAME",
        help="the registered model; 'baseline NAME' makes a new baseline from a trusted stretch of the log",
    )
    monitor.add_argument(
        "--log",
        nargs="+",
        required=True,
        metavar="L",
        help="prediction logs: files, folders, patterns or URLs; Parquet, JSONL or CSV",
    )
    monitor.add_argument(
        "--window", type=duration, default=3600.0, metavar="T", help="as in 15m, 1h, 1d (default: 1h)"
    )
    monitor.add_argument("--follow", action="store_true", help="go on until stopped")
    monitor.add_argument("--json", type=Path, metavar="F", help="write the last window and every alarm")
    monitor.add_argument(
        "--alias", default="production", help="the alias that serving reads (default: production)"
    )
    monitor.add_argument(
        "--state", type=Path, metavar="D", help="what is remembered between runs (default: in ~/.local/state)"
    )
    add_response_options(monitor)
    monitor.add_argument(
        "--from", dest="since", type=instant, metavar="TIME", help="baseline: from this time on"
    )
    monitor.add_argument("--to", dest="until", type=instant, metavar="TIME", help="baseline: up to this time")


def duration(text: str) -> float:
    """Seconds, of ``90s``, ``15m``, ``1h`` or ``1d``."""
    match = re.fullmatch(r"([0-9]{1,7})([smhd])", text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"not a duration: {text!r:.40}; write 15m, 1h or 1d")
    return float(int(match[1]) * _UNITS[match[2]])


def instant(text: str) -> float:
    """Seconds since the epoch, of an ISO 8601 time; UTC unless it says otherwise."""
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"not a time: {text!r:.40}; write 2026-05-01T12:00") from None


def _monitor(args: argparse.Namespace) -> int:
    if len(args.words) == 2 and args.words[0] == "baseline":
        return _baseline(args, args.words[1])
    if len(args.words) != 1:
        raise UsageError("monitor takes one model, or 'baseline' and one model")
    if args.since is not None or args.until is not None:
        raise UsageError("--from and --to belong to 'promotion-gate monitor baseline'")
    return _watch(args, args.words[0])


def _registry(args: argparse.Namespace) -> Registry:
    from promotion_gate.registry.mlflow import MlflowRegistry

    return MlflowRegistry(args.tracking_uri, args.registry_uri)


def _watch(args: argparse.Namespace, name: str) -> int:
    from promotion_gate.core.writing import require_writable
    from promotion_gate.monitor.report import alarm_lines, outcomes_json, window_lines
    from promotion_gate.monitor.watch import Watched, watch

    if args.json is not None:
        require_writable(args.json)
    registry, alias = _registry(args), production(args.alias)
    respond = response(args, registry, name, alias, lasting=args.follow)
    watched = Watched(
        name=name,
        logs=args.log,
        production=alias,
        window=args.window,
        state=args.state,
        follow=args.follow,
        on_window=(respond,),
        note=lambda line: say(f"note: {line}"),
    )
    last: WindowOutcome | None = None
    told: list[Any] = []
    with respond:
        try:
            for outcome in watch(registry, watched):
                if args.follow:
                    for line in window_lines(outcome):
                        say(line)
                for line in alarm_lines(outcome):
                    say(line)
                told += outcome.alarms
                last = outcome
        except KeyboardInterrupt:
            if not args.follow:
                raise
    if last is not None and not args.follow:
        for line in window_lines(last, every=True):
            say(line)
    if args.json is not None:
        outcomes_json(args.json, name, last, told)
    if last is None:
        say("no new predictions")
    return ExitCode.REJECTED if last is not None and last.drifted else ExitCode.DONE


def _baseline(args: argparse.Namespace, name: str) -> int:
    from promotion_gate.monitor.make_baseline import make_baseline

    if args.follow or args.json is not None or args.state is not None:
        raise UsageError("'monitor baseline' takes --log, --window, --from, --to and --alias")
    made = make_baseline(
        _registry(args), name, args.log, production(args.alias), args.window, args.since, args.until
    )
    for line in made:
        say(line)
    return ExitCode.DONE

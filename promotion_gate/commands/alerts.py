"""Alarms: ``alerts test`` and ``alerts print``, and what ``monitor`` does after a look."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.commands import Command, say
from promotion_gate.commands.arguments import positive
from promotion_gate.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from promotion_gate.core.production import Production
    from promotion_gate.monitor.alerts import Alerts
    from promotion_gate.monitor.automatic import AutomaticRollback
    from promotion_gate.monitor.metrics import Board
    from promotion_gate.monitor.response import Response
    from promotion_gate.registry.interface import Registry

_KINDS = ("class-share", "confidence", "embedding", "unseen-class")


def add(command: Command) -> None:
    """Declare the commands."""
    alerts = command("alerts", None, "who is told of alarms, and files to start from", registry=False)
    within = alerts.add_subparsers(dest="alerts", required=True, metavar="ALERTS")

    test = command("test", _test, "send a test alarm to every receiver", registry=False, within=within)
    test.add_argument(
        "--config", type=Path, default=Path("alerts.toml"), metavar="F", help="default: alerts.toml"
    )

    show = command("print", _print, "print a file to start from", registry=False, within=within)
    show.add_argument(
        "what",
        choices=("config", "rules", "dashboard"),
        metavar="WHAT",
        help="config (alerts.toml), rules (Prometheus) or dashboard (Grafana)",
    )


def add_response_options(parser: argparse.ArgumentParser) -> None:
    """Let ``monitor`` be told what to do after each look."""
    parser.add_argument("--alerts", type=Path, metavar="F", help="alerts.toml: who is told of alarms")
    parser.add_argument(
        "--metrics-file", type=Path, metavar="F", help="write metrics for node_exporter, a name in .prom"
    )
    parser.add_argument("--metrics-port", type=_port, metavar="N", help="serve metrics over HTTP")
    parser.add_argument(
        "--metrics-host", default="127.0.0.1", metavar="H", help="on this address (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--metrics-classes",
        type=_count,
        default=200,
        metavar="N",
        help="classes with metrics of their own (default: 200)",
    )
    parser.add_argument(
        "--rollback-on-alarm", action="store_true", help="roll back by itself, at most once a day"
    )
    parser.add_argument(
        "--rollback-kinds",
        nargs="+",
        choices=_KINDS,
        default=["class-share"],
        metavar="K",
        help=f"on these alarms: {', '.join(_KINDS)} (default: class-share)",
    )
    parser.add_argument(
        "--rollback-cool-down",
        type=positive,
        default=15.0,
        metavar="MIN",
        help="minutes after any move of the alias in which nothing is done by itself (default: 15)",
    )
    parser.add_argument(
        "--no-status-tag", action="store_true", help="do not tag the model with how things stand"
    )


def response(
    args: argparse.Namespace, registry: Registry, name: str, production: Production, *, lasting: bool
) -> Response:
    """The hook that does what the options of :func:`add_response_options` ask for.

    Parameters
    ----------
    lasting: whether the monitor goes on looking; then alarms are also sent between two looks.

    Raises
    ------
    UsageError: a file cannot be read or written, a port cannot be used, or an option needs another one.
    """
    from promotion_gate.monitor.alerts import Alerts
    from promotion_gate.monitor.response import Response
    from promotion_gate.monitor.settings import AlertSettings, load_alert_settings
    from promotion_gate.monitor.state import default_folder

    if args.rollback_on_alarm and args.alerts is None:
        raise UsageError("--rollback-on-alarm needs somebody who is told", "add --alerts alerts.toml")
    settings = AlertSettings() if args.alerts is None else load_alert_settings(args.alerts)
    # Each monitor ends the alarms that it no longer sees: those of another are not its own to end.
    state = args.state or default_folder(registry.host, name, production.alias, args.log)
    board = _board(args, name)
    alerts = Alerts(settings, state / "alerts.json", complain=complain)
    if lasting and settings.receivers:
        alerts.keep_retrying()
    return Response(
        registry,
        name,
        alerts=alerts,
        board=board,
        automatic=_automatic(args, registry, name, alerts, production) if args.rollback_on_alarm else None,
        metrics_file=args.metrics_file,
        tagged=not args.no_status_tag,
        production=production,
        complain=complain,
    )


def complain(line: str) -> None:
    """One line on standard error."""
    from promotion_gate.operators import plain

    print(f"promotion-gate: {plain(line)}", file=sys.stderr, flush=True)


def _board(args: argparse.Namespace, name: str) -> Board | None:
    if args.metrics_file is None and args.metrics_port is None:
        return None
    from promotion_gate.monitor.metrics import Board, resume_from, serve_metrics

    board = Board(name, most_classes=args.metrics_classes)
    if args.metrics_file is not None:
        resume_from(board, args.metrics_file)
    if args.metrics_port is not None:
        server = serve_metrics(board, args.metrics_host, args.metrics_port)
        complain(f"metrics: http://{args.metrics_host}:{server.server_port}/metrics")
    return board


def _automatic(
    args: argparse.Namespace, registry: Registry, name: str, alerts: Alerts, production: Production
) -> AutomaticRollback:
    from datetime import timedelta

    from promotion_gate.monitor.automatic import AutomaticRollback, Rules

    rules = Rules(frozenset(args.rollback_kinds), timedelta(minutes=args.rollback_cool_down))
    options = _options(args, production)
    return AutomaticRollback(registry, name, alerts, rules, production, options=options)


def _options(args: argparse.Namespace, production: Production) -> Sequence[str]:
    """What a person's command needs to reach the same model; a URI that holds a password is left out."""
    options = []
    for option, value in (("--tracking-uri", args.tracking_uri), ("--registry-uri", args.registry_uri)):
        if value and "@" not in value:
            options += [option, value]
    if production.alias != "production":
        options += ["--alias", production.alias]
    if production.mirror_stage != "auto":
        options += ["--mirror-stage", production.mirror_stage]
    return options


def _test(args: argparse.Namespace) -> int:
    from promotion_gate.monitor.alerts import try_receivers
    from promotion_gate.monitor.settings import load_alert_settings

    tried = try_receivers(load_alert_settings(args.config))
    for each in tried:
        say(f"{each.receiver}: " + (f"FAILED: {each.problem}" if each.problem else "taken"))
    failed = sum(bool(each.problem) for each in tried)
    if failed:
        say(f"{failed} of {len(tried)} receivers did not take the test alarm")
        return ExitCode.REGISTRY
    return ExitCode.DONE


def _print(args: argparse.Namespace) -> int:
    from promotion_gate.monitor.ready import ready_file

    sys.stdout.write(ready_file(args.what))
    return ExitCode.DONE


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"not a port: {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"not a number from 0 to 100000: {text!r}")
    return int(text)

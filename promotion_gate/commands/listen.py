"""``promotion-gate listen``: gate each new version when MLflow's webhooks tell of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.commands import Command
from promotion_gate.commands.arguments import duration, jobs
from promotion_gate.core.errors import ExitCode

if TYPE_CHECKING:
    from promotion_gate.monitor.interface import Alarm


def add(command: Command) -> None:
    """Declare the command."""
    listen = command("listen", _listen, "gate each new version when MLflow's webhooks tell of it")
    listen.add_argument(
        "--policy", type=Path, default=Path("gate.toml"), metavar="F", help="default: gate.toml"
    )
    listen.add_argument(
        "--port", type=_port, required=True, metavar="N", help="port to listen on; 0 takes any free one"
    )
    listen.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)"
    )
    listen.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="gate this registered model; may be repeated (default: every one)",
    )
    listen.add_argument(
        "--secret-file",
        type=Path,
        metavar="F",
        help="the webhook's secret, one a line (else PROMOTION_GATE_WEBHOOK_SECRET)",
    )
    listen.add_argument(
        "--poll",
        type=duration,
        default=300.0,
        metavar="T",
        help="how often to look without being told (default: 5m)",
    )
    listen.add_argument(
        "--max-age",
        type=duration,
        default=300.0,
        metavar="T",
        help="refuse deliveries older than this (default: 5m)",
    )
    listen.add_argument(
        "--queue", type=jobs, default=100, metavar="N", help="versions that may wait (default: 100)"
    )
    listen.add_argument(
        "--gate-timeout",
        type=duration,
        default=3600.0,
        metavar="T",
        help="end a gate run that takes longer (default: 1h)",
    )
    listen.add_argument(
        "--alerts", type=Path, metavar="F", help="alerts.toml: who is told of moves past the gate"
    )
    listen.add_argument(
        "--promote",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="promote what passes; without, approve can (default: promote)",
    )


def _listen(args: argparse.Namespace) -> int:
    from promotion_gate.core.policy import load_policy
    from promotion_gate.listening.deliveries import read_secrets
    from promotion_gate.listening.gating import GateProcess
    from promotion_gate.listening.listen import Settings, listen
    from promotion_gate.registry.mlflow import MlflowRegistry

    policy = args.policy.absolute()
    load_policy(policy)
    uris = {"MLFLOW_TRACKING_URI": args.tracking_uri, "MLFLOW_REGISTRY_URI": args.registry_uri}
    gate = GateProcess(policy, args.promote, args.gate_timeout, {k: v for k, v in uris.items() if v})
    settings = Settings(
        policy,
        read_secrets(args.secret_file),
        args.host,
        args.port,
        tuple(args.model),
        args.poll,
        args.max_age,
        args.queue,
    )
    registry = MlflowRegistry(args.tracking_uri, args.registry_uri)
    listen(registry, gate, settings, *_alarms(args.alerts, registry.host))
    return ExitCode.DONE


def _alarms(config: Path | None, host: str) -> tuple[Callable[[Alarm], None], Sequence[Alarm]]:
    """What takes an alarm, and the alarms that stand since before."""
    if config is None:
        return lambda _: None, ()
    from promotion_gate.listening.listen import log_line
    from promotion_gate.monitor.alerts import Alerts, default_state
    from promotion_gate.monitor.settings import load_alert_settings

    alerts = Alerts(load_alert_settings(config), default_state(host, "listen"), complain=log_line)
    alerts.keep_retrying()

    def tell(alarm: Alarm) -> None:
        alerts.take([alarm])
        alerts.deliver()

    return tell, alerts.outbox.firing()


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"not a port: {text!r}")
    return int(text)

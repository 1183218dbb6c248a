"""What is in production, and everything that a person does about it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from promotion_gate.commands import Command, production, say
from promotion_gate.commands.arguments import model_name, moment, positive, version
from promotion_gate.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from promotion_gate.core.production import Production
    from promotion_gate.registry.interface import Registry


def add(command: Command) -> None:
    """Declare the commands."""
    for name, text in (
        ("approve", "promote a version that the gate held"),
        ("reject", "refuse a version that the gate held"),
    ):
        rule = command(name, _rule, text)
        rule.add_argument("version", metavar="NAME/VERSION")
        _reason(rule)
        _production(rule)

    rollback = command("rollback", _rollback, "move production back to the last good version")
    rollback.add_argument("name", type=model_name, metavar="NAME")
    rollback.add_argument("--to", type=version, metavar="V", help="this version instead of the last good one")
    rollback.add_argument(
        "--unsafe-unsigned", action="store_true", help="with --to: go back although no trusted record vouches"
    )
    rollback.add_argument(
        "--dry-run", action="store_true", help="verify and say what would be done; move and write nothing"
    )
    rollback.add_argument(
        "--since",
        type=moment,
        metavar="T",
        help="when the alarm was: 2026-01-31T03:12Z, or 10m ago; history keeps the time to recovery",
    )
    rollback.add_argument(
        "--wait-for", metavar="URL", help="then wait until this health endpoint reports the version"
    )
    rollback.add_argument(
        "--wait-seconds", type=positive, default=300.0, metavar="S", help="how long at most (default: 300)"
    )
    _reason(rollback)
    _production(rollback)

    recover = command("recover", _recover, "finish or undo what a process that died began")
    recover.add_argument("name", type=model_name, metavar="NAME")
    recover.add_argument(
        "--accept-foreign", action="store_true", help="let a change past the gate stand; needs --reason"
    )
    recover.add_argument(
        "--unsafe-unsigned",
        action="store_true",
        help="with --accept-foreign: although no trusted record vouches",
    )
    recover.add_argument("--reason", default="", metavar="TEXT", help="why; it goes into the history")
    _production(recover)

    status = command("status", _status, "what is in production, and what waits")
    status.add_argument("name", type=model_name, metavar="NAME")
    status.add_argument("--json", action="store_true", help="for programs")
    _production(status)

    history = command("history", _history, "who moved what, when, why, and with which digest")
    history.add_argument("name", type=model_name, metavar="NAME")
    history.add_argument("--json", action="store_true", help="for programs")


def _reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why; it goes into the history")


def _production(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--alias", default="production", help="the alias that serving reads (default: production)"
    )
    parser.add_argument(
        "--mirror-stage",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether the legacy stage follows (default: where the model uses stages)",
    )


def _registry(args: argparse.Namespace) -> Registry:
    from promotion_gate.registry.mlflow import MlflowRegistry

    return MlflowRegistry(args.tracking_uri, args.registry_uri)


def _alias(args: argparse.Namespace) -> Production:
    return production(args.alias, args.mirror_stage)


def _rule(args: argparse.Namespace) -> int:
    from promotion_gate import transition
    from promotion_gate.core.types import ModelRef
    from promotion_gate.operators import moved_message

    rule = transition.approve if args.command == "approve" else transition.reject
    recorded = rule(
        _registry(args), ModelRef.parse(args.version), reason=args.reason, production=_alias(args)
    )
    print(moved_message(recorded))
    return ExitCode.DONE


def _rollback(args: argparse.Namespace) -> int:
    from promotion_gate.health import endpoint, wait_until_served
    from promotion_gate.ledger import KeptRecords
    from promotion_gate.operators import moved_message
    from promotion_gate.transition import note_restored, rollback

    clock = time.monotonic()
    serving = None if args.wait_for is None else endpoint(args.wait_for)
    if args.dry_run:
        return _plan(args)
    registry = _registry(args)
    recorded = rollback(
        registry,
        args.name,
        to=args.to,
        reason=args.reason,
        production=_alias(args),
        unsafe_unsigned=args.unsafe_unsigned,
        alarm_at=args.since,
        kept=KeptRecords.here(),
    )
    print(moved_message(recorded, time.monotonic() - clock), flush=True)
    how = f"alias {args.alias!r} was moved"
    if serving is not None:
        how = f"{serving.shown} reports version {recorded.record.ref.version}"
        waited = wait_until_served(serving, recorded.record.ref, args.alias, args.wait_seconds)
        say(f"{how} after {waited:.1f} s")
    restored = note_restored(registry, recorded, how)
    if restored is not None:
        say(restored.record.reason)
    return ExitCode.DONE


def _plan(args: argparse.Namespace) -> int:
    from promotion_gate.journal import require_reason
    from promotion_gate.ledger import KeptRecords
    from promotion_gate.operators import planned_message
    from promotion_gate.transition import plan_rollback

    require_reason(args.reason)
    plan = plan_rollback(
        _registry(args),
        args.name,
        to=args.to,
        production=_alias(args),
        unsafe_unsigned=args.unsafe_unsigned,
        kept=KeptRecords.here(),
    )
    print(planned_message(plan))
    return ExitCode.DONE


def _recover(args: argparse.Namespace) -> int:
    from promotion_gate.operators import moved_message
    from promotion_gate.transition import accept_foreign, make_whole

    if args.accept_foreign:
        accepted = accept_foreign(
            _registry(args),
            args.name,
            reason=args.reason,
            production=_alias(args),
            unsafe_unsigned=args.unsafe_unsigned,
        )
        print(moved_message(accepted) if accepted else "nothing to accept: production is as the gate left it")
        return ExitCode.DONE
    if args.reason or args.unsafe_unsigned:
        raise UsageError("--reason and --unsafe-unsigned belong to --accept-foreign")
    mended = make_whole(_registry(args), args.name, _alias(args))
    for line in mended.lines or (() if mended.left else ("nothing to recover",)):
        say(line)
    if mended.left is not None:
        raise mended.left
    return ExitCode.DONE


def _status(args: argparse.Namespace) -> int:
    from promotion_gate.operators import status_json, status_text
    from promotion_gate.transition import status

    facts = status(_registry(args), args.name, _alias(args))
    print(status_json(facts) if args.json else status_text(facts))
    return ExitCode.DONE


def _history(args: argparse.Namespace) -> int:
    from promotion_gate.operators import history_json, history_text
    from promotion_gate.transition import history

    entries = history(_registry(args), args.name)
    print(history_json(args.name, entries) if args.json else history_text(entries))
    return ExitCode.DONE

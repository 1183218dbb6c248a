"""The command line. A handler is a few lines; errors become exit codes here and nowhere else."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate import __version__
from promotion_gate.core.errors import ExitCode, GateError, UsageError

if TYPE_CHECKING:
    from promotion_gate.core.policy import Production
    from promotion_gate.registry.interface import Registry

EXIT_CODES = """exit codes:
  0  done
  2  wrong usage, policy or input
  3  rejected
  4  held for a person
  5  registry conflict, or the registry cannot be reached"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(arguments)
    handler: Callable[[argparse.Namespace], int] = args.handler
    try:
        _refuse_undecodable(args)
        return int(handler(args))
    except GateError as error:
        from promotion_gate.operators import error_line

        print(f"promotion-gate: {error_line(error)}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print(
            "promotion-gate: interrupted; 'promotion-gate status' says what is in production", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; keep the interpreter from complaining on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except OSError as error:
        # A full disk, a temporary folder that is not there: trouble of this machine, not a verdict.
        from promotion_gate.operators import plain

        print(f"promotion-gate: this machine cannot go on: {plain(str(error), 300)}", file=sys.stderr)
        return int(ExitCode.USAGE)


def _refuse_undecodable(args: argparse.Namespace) -> None:
    """Only paths may hold bytes that are no text: names and reasons go to the registry and into history."""
    for name, value in vars(args).items():
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UsageError(f"the argument {name} is not valid text: {value!r:.80}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="promotion-gate",
        description="The gate a model passes on its way from the MLflow registry into production.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"promotion-gate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, handler: Callable[[argparse.Namespace], int], text: str, *, registry: bool = True
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(handler=handler)
        if registry:
            made.add_argument(
                "--tracking-uri", metavar="URI", help="MLflow tracking server (else as MLflow finds it)"
            )
            made.add_argument(
                "--registry-uri", metavar="URI", help="model registry, where it is another server"
            )
        return made

    demo = command("demo", _demo, "watch a poisoned traffic-sign model being refused", registry=False)
    demo.add_argument(
        "--dir", type=Path, default=Path("demo"), metavar="D", help="where to work (default: demo)"
    )
    demo.add_argument("--seed", type=_seed, default=0, help="another seed draws other signs (default: 0)")

    init = command("init", _init, "write a commented policy to start from", registry=False)
    init.add_argument("path", nargs="?", type=Path, default=Path("gate.toml"), metavar="FILE")
    init.add_argument("--force", action="store_true", help="replace an existing file")

    run = command("run", _run, "gate a candidate, and promote it if every check passes")
    run.add_argument("model", metavar="MODEL", help="models:/name/7 or models:/name@candidate")
    run.add_argument("--policy", type=Path, default=Path("gate.toml"), metavar="F", help="default: gate.toml")
    run.add_argument("--no-promote", action="store_true", help="judge only; approve can promote later")
    run.add_argument("--json", type=Path, metavar="F", help="write the whole finding list")
    run.add_argument("--junit", type=Path, metavar="F", help="write one test case a check, for the CI system")
    run.add_argument("--summary", type=Path, metavar="F", help="write Markdown for a job summary")
    run.add_argument("--card", type=Path, metavar="F", help="write the model card")
    run.add_argument("--quiet", action="store_true", help="no progress on standard error")

    for name, text in (
        ("approve", "promote a version that the gate held"),
        ("reject", "refuse a version that the gate held"),
    ):
        rule = command(name, _rule, text)
        rule.add_argument("version", metavar="NAME/VERSION")
        _reason(rule)
        _production(rule)

    rollback = command("rollback", _rollback, "move production back to the last good version")
    rollback.add_argument("name", metavar="NAME")
    rollback.add_argument(
        "--to", type=_version, metavar="V", help="this version instead of the last good one"
    )
    _reason(rollback)
    _production(rollback)

    status = command("status", _status, "what is in production, and what waits")
    status.add_argument("name", metavar="NAME")
    status.add_argument("--json", action="store_true", help="for programs")
    _production(status)

    history = command("history", _history, "who moved what, when, why, and with which digest")
    history.add_argument("name", metavar="NAME")
    history.add_argument("--json", action="store_true", help="for programs")

    card = command("card", _card, "fetch the newest card of a version and print its path")
    card.add_argument("model", metavar="MODEL", help="models:/name/7, models:/name@production or name/7")
    card.add_argument("--dir", type=Path, default=Path(), metavar="D", help="where to put it (default: here)")
    return parser


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


def _version(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a version number: {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"not a seed: {text!r}")
    return int(text)


def _registry(args: argparse.Namespace) -> Registry:
    from promotion_gate.registry.mlflow import MlflowRegistry

    return MlflowRegistry(args.tracking_uri, args.registry_uri)


def _alias(args: argparse.Namespace) -> Production:
    from pydantic import ValidationError

    from promotion_gate.core.policy import Production

    try:
        return Production(alias=args.alias, mirror_stage=args.mirror_stage)
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--alias {args.alias!r} cannot be used: {why}") from None


def _say(line: str) -> None:
    from promotion_gate.operators import plain

    print(plain(line))


def _demo(args: argparse.Namespace) -> int:
    from promotion_gate.drill.demo import run_demo

    run_demo(args.dir, seed=args.seed)
    return ExitCode.DONE


def _init(args: argparse.Namespace) -> int:
    from promotion_gate.starter import STARTER_POLICY

    path: Path = args.path
    try:
        with path.open("w" if args.force else "x", encoding="utf-8") as file:
            file.write(STARTER_POLICY)
    except FileExistsError:
        raise UsageError(f"{path} exists already", "--force replaces it") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    _say(f"wrote {path}: set data.holdout.path, and data.training.path if the training data is to be had")
    return ExitCode.DONE


def _run(args: argparse.Namespace) -> int:
    from promotion_gate.core.policy import load_policy

    policy = load_policy(args.policy)
    wanted = [path for path in (args.json, args.junit, args.summary, args.card) if path is not None]
    for path in wanted:
        _refuse_unwritable(path)

    from promotion_gate.gate import run_gate, verdict_line

    clock = time.monotonic()

    def progress(line: str) -> None:
        from promotion_gate.operators import plain

        # One write a line: checks run side by side, and print writes the line's end by itself.
        sys.stderr.write(f"[{time.monotonic() - clock:6.1f} s] {plain(line)}\n")
        sys.stderr.flush()

    run = run_gate(
        _registry(args),
        args.model,
        policy,
        promoting=not args.no_promote,
        progress=(lambda _: None) if args.quiet else progress,
    )
    _write_files(args, run)
    verdict = run.verdict
    ref = run.report.candidate.ref
    _say(f"{verdict.outcome} {ref}: {verdict_line(verdict)}")
    for note in run.recorded.notes:
        _say(f"note: {note}")
    move = run.recorded.record.transition
    if move is not None:
        before = "none" if move.from_version is None else str(move.from_version)
        _say(f"{move.alias} is version {move.to_version}, was {before}")
    elif verdict.outcome == "HOLD":
        _say(f'a person decides: promotion-gate approve {ref} --reason "…", or reject')
    elif verdict.outcome == "PROMOTE":
        _say(f'nothing was moved; promotion-gate approve {ref} --reason "…" promotes it')
    _say(f"card: promotion-gate card {ref.uri} (gate run {run.report.gate_run_id})")
    return verdict.outcome.exit_code


def _refuse_unwritable(path: Path) -> None:
    """Say before the long work, not after it, that a file cannot be written."""
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {folder}", "create it first")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"cannot write {path}: no permission, or it is a folder")


def _write_files(args: argparse.Namespace, run: object) -> None:
    from promotion_gate.card import report_junit, report_markdown
    from promotion_gate.gate import GateRun

    assert isinstance(run, GateRun)
    files: tuple[tuple[Path | None, Callable[[], bytes]], ...] = (
        (args.card, lambda: run.card),
        (args.json, lambda: run.findings),
        (args.junit, lambda: report_junit(run.report)),
        (args.summary, lambda: report_markdown(run.report).encode()),
    )
    for path, content in files:
        if path is None:
            continue
        try:
            path.write_bytes(content())
        except OSError as error:
            raise UsageError(
                f"the verdict is {run.verdict.outcome}, but {path} cannot be written: {error.strerror}",
                f"the gate run {run.report.gate_run_id} holds the same files",
            ) from None


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
    from promotion_gate.operators import moved_message
    from promotion_gate.transition import rollback

    clock = time.monotonic()
    recorded = rollback(_registry(args), args.name, to=args.to, reason=args.reason, production=_alias(args))
    print(moved_message(recorded, time.monotonic() - clock))
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


def _card(args: argparse.Namespace) -> int:
    from promotion_gate.operators import fetch_card

    _say(str(fetch_card(_registry(args), args.model, args.dir).resolve()))
    return ExitCode.DONE

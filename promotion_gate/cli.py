"""The command line. A handler is a few lines; errors become exit codes here and nowhere else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate import __version__
from promotion_gate.commands import (
    alerts,
    dbom,
    drift,
    listen,
    monitor,
    posture,
    progress_lines,
    records,
    say,
    scan,
    transitions,
    validate,
    vendor,
)
from promotion_gate.commands.arguments import jobs, seed, share
from promotion_gate.core.errors import ExitCode, GateError, UsageError

if TYPE_CHECKING:
    from promotion_gate.registry.interface import Registry

EXIT_CODES = """exit codes:
  0  done
  2  wrong usage, policy or input
  3  rejected, or drift
  4  held for a person
  5  registry conflict, or the registry cannot be reached"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return carry_out(parsed(sys.argv[1:] if arguments is None else arguments))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments; wrong usage and ``--help`` end the process."""
    return _parser().parse_args(vendor.spelled_out(arguments))


def carry_out(args: argparse.Namespace) -> int:
    """Run a parsed command and return its exit code; what goes wrong is said in a line on standard error."""
    handler: Callable[[argparse.Namespace], int] = args.handler
    try:
        _refuse_undecodable(args)
        return int(handler(args))
    except GateError as error:
        from promotion_gate.operators import error_line

        print(f"promotion-gate: {error_line(error)}", file=sys.stderr)
        # Only a verdict holds. What else cannot be read is wrong input.
        held = error.exit_code is ExitCode.HELD and args.command != "run"
        return int(ExitCode.USAGE if held else error.exit_code)
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
        name: str,
        handler: Callable[[argparse.Namespace], int] | None,
        text: str,
        *,
        registry: bool = True,
        within: Any = commands,
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = within.add_parser(
            name,
            help=text,
            description=text,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if handler is not None:
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
    demo.add_argument("--seed", type=seed, default=0, help="another seed draws other signs (default: 0)")

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

    calibrate = command("calibrate", _calibrate, "derive a policy's bounds from models known to be clean")
    calibrate.add_argument(
        "--clean-models",
        nargs="+",
        default=[],
        metavar="M",
        help="versions to examine: name/7 or name/3,5,8-12",
    )
    calibrate.add_argument(
        "--findings",
        nargs="+",
        type=Path,
        default=[],
        metavar="F",
        help="or the JSON reports of gate runs on them",
    )
    calibrate.add_argument(
        "--policy", type=Path, default=Path("gate.toml"), metavar="F", help="default: gate.toml"
    )
    calibrate.add_argument(
        "--false-alarm-rate",
        type=share,
        default=0.05,
        metavar="R",
        help="clean models that any bound may stop (default: 0.05)",
    )
    calibrate.add_argument(
        "--confidence", type=share, metavar="C", help="how sure the rate must be (else it is met on average)"
    )
    calibrate.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="CHECK.METRIC",
        help="derive these bounds and keep the others",
    )
    calibrate.add_argument(
        "--out",
        type=Path,
        metavar="F",
        help="where to write it (default: beside the policy, .calibrated.toml)",
    )
    calibrate.add_argument("--quiet", action="store_true", help="no progress on standard error")

    transitions.add(command)
    card = command("card", _card, "fetch the newest card of a version and print its path")
    card.add_argument("model", metavar="MODEL", help="models:/name/7, models:/name@production or name/7")
    card.add_argument("--dir", type=Path, default=Path(), metavar="D", help="where to put it (default: here)")

    drill = command(
        "drill", None, "attack a model on purpose, and see whether the gate notices", registry=False
    )
    drills = drill.add_subparsers(dest="drill", required=True, metavar="DRILL")
    poison = command(
        "poison", _drill_poison, "write a poisoned copy of a data set", registry=False, within=drills
    )
    poison.add_argument("data", metavar="DATA", help="folder, CSV, Parquet or npz, path or URL; only read")
    poison.add_argument(
        "--scenario", required=True, metavar="S", help="a shipped one or a TOML file: its attack is used"
    )
    poison.add_argument(
        "--out", type=Path, required=True, metavar="D", help="a new folder for the copy and the answers"
    )
    poison.add_argument("--seed", type=seed, default=0, help="another seed draws other rows (default: 0)")

    drill_run = command(
        "run", _drill_run, "poison, train, gate, and say who noticed", registry=False, within=drills
    )
    drill_run.add_argument("scenario", metavar="SCENARIO", help="a shipped one or a TOML file")
    drill_run.add_argument("--seed", type=seed, default=0, help="another seed poisons and trains otherwise")
    drill_run.add_argument(
        "--dir", type=Path, default=Path("drills"), metavar="D", help="where to work (default: drills)"
    )
    drill_run.add_argument("--policy", type=Path, metavar="F", help="gate by this policy's checks and bounds")
    drill_run.add_argument("--json", type=Path, metavar="F", help="write the outcome")
    _drill_options(drill_run)

    campaign = command(
        "campaign", _drill_campaign, "many scenarios and seeds, on all cores", registry=False, within=drills
    )
    campaign.add_argument("campaign", metavar="CAMPAIGN.toml", help="a shipped one or a TOML file")
    campaign.add_argument(
        "--out", type=Path, metavar="D", help="where to work (default: a folder of the campaign's name)"
    )
    campaign.add_argument(
        "--jobs", type=jobs, default=0, metavar="N", help="drills side by side (default: as the file says)"
    )
    campaign.add_argument(
        "--again",
        choices=("gates", "all"),
        help="do finished drills again: with the trained models kept, or all from the start",
    )
    _drill_options(campaign)
    records.add(command)
    dbom.add(command)
    scan.add(command)
    posture.add(command)
    validate.add(command)
    vendor.add(command)
    monitor.add(command)
    alerts.add(command)
    drift.add(command)
    listen.add(command)
    return parser


def _drill_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server to drill on (default: one in a file there)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def _registry(args: argparse.Namespace) -> Registry:
    from promotion_gate.registry.mlflow import MlflowRegistry

    return MlflowRegistry(args.tracking_uri, args.registry_uri)


def _demo(args: argparse.Namespace) -> int:
    from promotion_gate.drill.demo import run_demo

    run_demo(args.dir, seed=args.seed)
    return ExitCode.DONE


def _drill_poison(args: argparse.Namespace) -> int:
    from promotion_gate.drill.poisoned_copy import poison_by_scenario

    copy = poison_by_scenario(args.data, args.scenario, args.seed, args.out)
    answers = copy.answers
    say(f"{answers.kind}: {len(answers.rows):,} rows touched, {len(answers.carriers):,} serve the attack")
    say(f"data: {copy.source.path}")
    say(f"answers: {copy.answers_path} (SHA-256 {copy.sealed})")
    return ExitCode.DONE


def _end_tidily() -> None:
    """Let a job that is cancelled end what it started, and take back what it half registered."""
    import signal

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _drill_run(args: argparse.Namespace) -> int:
    from promotion_gate.drill.postmortem import drill_lines, write_drill_report
    from promotion_gate.drill.run import open_home, run_drill
    from promotion_gate.drill.scenario import load_scenario

    _end_tidily()
    changes = {} if args.policy is None else {"gate": {"policy": str(args.policy.absolute())}}
    scenario = load_scenario(args.scenario, changes)
    if args.json is not None:
        _refuse_unwritable(args.json)
    home = open_home(args.dir, args.tracking_uri or None)
    drilled = run_drill(scenario, args.seed, home, progress=_progress(args))
    report = write_drill_report(scenario, drilled)
    if args.json is not None:
        args.json.write_text(drilled.outcome.to_json() + "\n", encoding="utf-8")
    for line in drill_lines(drilled.outcome):
        say(line)
    say(f"post-mortem: {report}")
    return ExitCode.REJECTED if drilled.outcome.got_through else ExitCode.DONE


def _drill_campaign(args: argparse.Namespace) -> int:
    from promotion_gate.drill.campaign import run_campaign
    from promotion_gate.drill.postmortem import campaign_lines, write_campaign_report

    _end_tidily()
    run = run_campaign(
        args.campaign,
        args.out,
        tracking_uri=args.tracking_uri or None,
        jobs=args.jobs,
        again=args.again,
        progress=_progress(args),
    )
    report = write_campaign_report(run)
    for line in campaign_lines(run):
        say(line)
    say(f"report: {report}")
    if run.got_through:
        return ExitCode.REJECTED
    return ExitCode.USAGE if run.summary.failures else ExitCode.DONE


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
    say(f"wrote {path}: set data.holdout.path, and data.training.path if the training data is to be had")
    return ExitCode.DONE


def _run(args: argparse.Namespace) -> int:
    from promotion_gate.core.policy import load_policy

    policy = load_policy(args.policy)
    wanted = [path for path in (args.json, args.junit, args.summary, args.card) if path is not None]
    for path in wanted:
        _refuse_unwritable(path)
    _end_tidily()

    from promotion_gate.gate import run_gate, verdict_line

    run = run_gate(
        _registry(args),
        args.model,
        policy,
        promoting=not args.no_promote,
        progress=_progress(args),
    )
    _write_files(args, run)
    verdict = run.verdict
    ref = run.report.candidate.ref
    say(f"{verdict.outcome} {ref}: {verdict_line(verdict)}")
    for note in run.recorded.notes:
        say(f"note: {note}")
    move = run.recorded.record.transition
    if move is not None:
        before = "none" if move.from_version is None else str(move.from_version)
        say(f"{move.alias} is version {move.to_version}, was {before}")
    elif verdict.outcome == "HOLD":
        say(f'a person decides: promotion-gate approve {ref} --reason "…", or reject')
    elif verdict.outcome == "PROMOTE":
        say(f'nothing was moved; promotion-gate approve {ref} --reason "…" promotes it')
    say(f"card: promotion-gate card {ref.uri} (gate run {run.report.gate_run_id})")
    return verdict.outcome.exit_code


def _progress(args: argparse.Namespace) -> Callable[[str], None]:
    return progress_lines(quiet=args.quiet)


def _calibrate(args: argparse.Namespace) -> int:
    from promotion_gate import calibration
    from promotion_gate.core.calibrate import calibrate
    from promotion_gate.core.policy import load_policy, parse_policy

    policy = load_policy(args.policy)
    out = args.out or args.policy.with_suffix(".calibrated.toml")
    if out.exists():
        raise UsageError(f"{out} exists already", "remove it, or name another with --out")
    _refuse_unwritable(out)
    models, notes = calibration.gathered(
        lambda: _registry(args), args.clean_models, args.findings, policy, _progress(args)
    )
    derived = calibrate(policy, models, args.false_alarm_rate, args.confidence, args.only)
    text = calibration.calibrated_text(policy, derived)
    new = parse_policy(text, name=str(out))
    for line in calibration.report_lines(policy, derived, models, new):
        say(line)
    notes += calibration.write_policy(text, out, policy)
    for note in notes:
        say(f"note: {note}")
    say(f"wrote {out}")
    return ExitCode.DONE


def _refuse_unwritable(path: Path) -> None:
    """Say before the long work, not after it, that a file cannot be written.

    It is written in place, so that a pipe or a job's summary file may be named.
    """
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


def _card(args: argparse.Namespace) -> int:
    from promotion_gate.operators import fetch_card

    say(str(fetch_card(_registry(args), args.model, args.dir).resolve()))
    return ExitCode.DONE

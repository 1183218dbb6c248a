"""Calibrate a policy: gather what clean models measure, derive bounds, write them into the policy's text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.core.calibrate import CalibratedBound, Calibration, CleanModel
from promotion_gate.core.decide import decide
from promotion_gate.core.errors import InputError, PolicyError, UsageError
from promotion_gate.core.policy import Policy, parse_policy
from promotion_gate.core.types import Finding, ModelRef, Outcome, Status
from promotion_gate.operators import plain

if TYPE_CHECKING:
    from promotion_gate.examination import Progress
    from promotion_gate.registry.interface import Registry

REPORT_SCHEMA = "urn:promotion-gate:report:v1"
MOST_MODELS = 10_000
MAX_FINDINGS_BYTES = 200_000_000


def clean_refs(texts: Sequence[str]) -> list[ModelRef]:
    """Read ``models:/name/3``, ``name/3`` or several versions of a name at once, ``name/3,5,8-12``.

    Raises
    ------
    UsageError: not a model version, or one named twice.
    """
    refs: list[ModelRef] = []
    for text in texts:
        match = re.fullmatch(r"(?:models:/)?([^/@]+)/([0-9]{1,18}(?:[,-][0-9]{1,18})*)", text)
        if match is None:
            raise UsageError(
                f"not model versions: {text!r}", "write them as models:/name/7, name/7 or name/3,5,8-12"
            )
        refs += [ModelRef(match[1], version) for version in _versions(match[2], text)]
    if not refs:
        raise UsageError("no clean model is named")
    for ref in refs:
        if refs.count(ref) > 1:
            raise UsageError(f"{ref} is named twice", "each clean model counts once")
    return refs


def _versions(text: str, whole: str) -> Iterator[int]:
    for part in text.split(","):
        ends = [int(end) for end in part.split("-")]
        if len(ends) > 2 or ends[0] > ends[-1] or ends[-1] - ends[0] >= MOST_MODELS:
            raise UsageError(f"not a range of versions: {part!r} in {whole!r}", "write it as 8-12")
        yield from range(ends[0], ends[-1] + 1)


def examine_clean(
    registry: Registry, refs: Sequence[ModelRef], policy: Policy, progress: Progress
) -> Iterator[CleanModel]:
    """Run the policy's checks on each version; nothing is recorded and nothing moves."""
    from promotion_gate.gate import examine_version

    for number, ref in enumerate(refs, 1):

        def say(line: str, prefix: str = f"{number} of {len(refs)}") -> None:
            progress(f"{prefix}: {line}")

        yield CleanModel(str(ref), examine_version(registry, ref, policy, say))


def read_findings(paths: Sequence[Path], policy: Policy) -> tuple[list[CleanModel], list[str]]:
    """The clean models behind the findings files of earlier gate runs, and notes on what may not compare.

    Raises
    ------
    UsageError: two files are of the same model, or of the same bytes.
    InputError: a file cannot be read or is not the gate's JSON report.
    """
    models: list[CleanModel] = []
    notes: list[str] = []
    seen: dict[str, Path] = {}
    for path in paths:
        report = _read_report(path)
        candidate = report["candidate"]
        name = f"{candidate['name']}/{candidate['version']}"
        for key in filter(None, (name, candidate["sha256"])):
            if key in seen:
                raise UsageError(
                    f"{path} and {seen[key]} are of the same model", "each clean model counts once"
                )
            seen[key] = path
        models.append(CleanModel(name, [_finding(entry) for entry in report["findings"]]))
        if changed := _measured_otherwise(report["policy"], policy):
            notes.append(f"{path} was measured under another {changed} than the policy's")
    return models, notes


def _read_report(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_FINDINGS_BYTES:
            raise InputError(
                f"{path} is larger than {MAX_FINDINGS_BYTES:,} bytes", "is it a gate's JSON report?"
            )
        report = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON") from None
    try:
        candidate, findings = report["candidate"], report["findings"]
        whole = (
            report["schema"] == REPORT_SCHEMA
            and isinstance(candidate["name"], str)
            and isinstance(candidate["version"], int)
            and isinstance(candidate["sha256"], str)
            and isinstance(report["policy"], str)
            and all(isinstance(entry["metrics"], dict) for entry in findings)
            and all(isinstance(entry["not_applicable"], dict) for entry in findings)
            and all(isinstance(entry["check"], str) for entry in findings)
            and all(entry["status"] in set(Status) for entry in findings)
        )
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            f"{path} is not a gate's JSON report", "give files that 'promotion-gate run --json' wrote"
        )
    return report  # type: ignore[no-any-return]


def _finding(entry: Mapping[str, Any]) -> Finding:
    return Finding(
        check=entry["check"],
        status=Status(entry["status"]),
        summary=str(entry.get("summary", "")),
        metrics={name: _number(value) for name, value in entry["metrics"].items()},
        not_applicable={name: str(why) for name, why in entry["not_applicable"].items()},
    )


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _measured_otherwise(text: str, policy: Policy) -> str:
    """Which part of the policy that a report was made under differs in what is measured; empty for none."""
    try:
        other = parse_policy(text)
    except PolicyError:
        return "policy"
    if other.data != policy.data:
        return "[data]"
    if other.input != policy.input:
        return "[input]"
    for name, check in policy.checks.items():
        if name in other.checks and other.checks[name].options != check.options:
            return f"[checks.{name}.options]"
    return ""


def calibrated_text(policy: Policy, calibration: Calibration) -> str:
    """The policy's text with the derived bounds in it; comments and order stay.

    Raises
    ------
    PolicyError: the derived bounds contradict each other.
    """
    import tomlkit

    document: Any = tomlkit.parse(policy.text)
    for bound in calibration.bounds:
        if bound.change == "kept":
            continue
        table = document["checks"][bound.check]["bounds"][bound.metric]
        table[bound.side] = int(bound.bound) if bound.bound.is_integer() else bound.bound
    text = tomlkit.dumps(document)
    parse_policy(text, name="the calibrated policy")
    return text


def report_lines(
    policy: Policy, calibration: Calibration, models: Sequence[CleanModel], new: Policy
) -> list[str]:
    """What was derived, what was kept and why, for a person."""
    share, needed = calibration.share, calibration.needed
    per_bound = f"{share:.2%} a bound, bounds: {round(calibration.rate / share)}"
    surely = (
        "on average"
        if calibration.confidence is None
        else f"with {calibration.confidence:.0%} confidence for each"
    )
    lines = [
        f"clean models: {len(models)}",
        f"wanted false alarms: at most {calibration.rate:.1%}, {per_bound}, {surely}",
        f"clean models that a bound needs: {needed}",
    ]
    lines += [_line(bound) for bound in calibration.bounds]
    before, after = _passing(policy, models), _passing(new, models)
    lines.append(f"promoted before: {before} of {len(models)} of these models; with these bounds: {after}")
    if derived := [bound.rate for bound in calibration.bounds if not math.isnan(bound.rate)]:
        lines.append(f"expected false alarms of the derived bounds together: at most {sum(derived):.1%}")
    if any(bound.change == "loosened" for bound in calibration.bounds):
        lines.append("some bounds are looser now: read them before you use the policy")
    return [plain(line) for line in lines]


def _line(bound: CalibratedBound) -> str:
    if bound.change == "kept":
        return f"kept {bound.name} {bound.bound:g}: {bound.reason}"
    return f"{bound.change} {bound.name} {bound.shipped:g} -> {bound.bound:g}: {bound.reason}"


def _passing(policy: Policy, models: Sequence[CleanModel]) -> int:
    return sum(decide(model.findings, policy).outcome is Outcome.PROMOTE for model in models)


def write_policy(text: str, path: Path, policy: Policy) -> list[str]:
    """Write the calibrated policy and say what to know of the place; an existing file is not replaced.

    Raises
    ------
    UsageError: the file exists or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists already", "remove it, or name another with --out") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    if path.resolve().parent != Path(policy.folder):
        return [f"relative data paths in {path} are now relative to {path.resolve().parent}"]
    return []


def gathered(
    registry: Callable[[], Registry],
    texts: Sequence[str],
    files: Sequence[Path],
    policy: Policy,
    progress: Progress,
) -> tuple[list[CleanModel], list[str]]:
    """The clean models of a command line: versions to examine, or findings of earlier runs, not both."""
    if bool(texts) == bool(files):
        raise UsageError(
            "name clean models, or findings of earlier gate runs", "--clean-models or --findings"
        )
    if files:
        return read_findings(files, policy)
    return list(examine_clean(registry(), clean_refs(texts), policy, progress)), []

"""Many drills: every scenario with every seed, on all cores, finished ones never done again."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promotion_gate.core.errors import GateError, UsageError
from promotion_gate.core.types import Outcome
from promotion_gate.detect.statistics import wilson_interval
from promotion_gate.drill.outcome import DrillOutcome
from promotion_gate.drill.run import Home, open_home, run_drill, train_champion
from promotion_gate.drill.scenario import (
    NAME,
    Scenario,
    first_error,
    load_scenario,
    make_scenario,
    merged,
    read_table,
)

OUTCOMES_FILE = "outcomes.jsonl"
LOCK_FILE = "campaign.lock"
ROUND_FILE = "round"
"""Holds what tells one round of a campaign from the next, in MLflow's history."""
STRATA = (("at least 80%", 0.8, 1.01), ("30% to 80%", 0.3, 0.8), ("below 30%", 0.0, 0.3))
"""Name, least and upper bound of the attack success rates that are counted apart."""

NO_TRIGGER = "no trigger to try"

Progress = Callable[[str], None]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Again = Literal["gates", "all"]
Work = tuple[Scenario, int]


class CampaignDrill(BaseModel):
    """One ``[[drill]]`` of a campaign: a scenario, its seeds, and what it changes in the scenario.

    ``scenario`` is a shipped scenario's name, a path relative to the campaign's file, or left out where the
    entry spells the whole scenario out. Every other key is laid over the scenario's own.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    scenario: str = ""
    seeds: tuple[Seed, ...] = ()


class Campaign(BaseModel):
    """A campaign's file. ``changes`` are laid over every drill's scenario, below the drill's own keys.

    ``jobs`` is how many drills run side by side; 0 for one a core. ``keep_data`` keeps every poisoned copy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(pattern=NAME)
    description: str = ""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1,)
    jobs: Annotated[int, Field(ge=0, le=1024)] = 0
    keep_data: bool = False
    changes: dict[str, Any] = Field(default_factory=dict)
    drills: Annotated[tuple[CampaignDrill, ...], Field(min_length=1, alias="drill")]


@dataclass(frozen=True, slots=True)
class Failure:
    """A drill that could not be carried out, and why in one line."""

    scenario: str
    seed: int
    reason: str


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``of``, with the 95 % Wilson interval of the share."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float | None:
        return self.count / self.of if self.of else None

    @classmethod
    def counted(cls, hits: Sequence[bool]) -> Share:
        low, high = wilson_interval(sum(hits), len(hits))
        return cls(sum(hits), len(hits), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Row:
    """How the drills of one attack ended."""

    attack: str
    harmless: bool
    drills: int
    rejected: int
    held: int
    promoted: int
    stopped: Share


@dataclass(frozen=True, slots=True)
class Summary:
    """A campaign in figures.

    Attributes
    ----------
    caught, rejected: poisoned models not promoted, and those of them that were rejected outright.
    false_alarms, false_rejections: harmless models not promoted, and those rejected.
    target_right, source_right: of the caught ones where there is something to name.
    rows_found: poisoned rows listed, of all in drills that were caught with the training data at hand.
    time_to_detection_s: of the caught ones, ascending.
    attacks: one row a kind of attack.
    strata: poisoned models by attack success rate: name and share caught.
    checks: how often each check stopped a poisoned, and how often a harmless model.
    """

    name: str
    drills: int
    caught: Share
    rejected: Share
    false_alarms: Share
    false_rejections: Share
    target_right: Share
    source_right: Share
    rows_found: Share
    time_to_detection_s: Sequence[float]
    attacks: Sequence[Row]
    strata: Sequence[tuple[str, Share]]
    checks: Sequence[tuple[str, int, int]]
    cpu_seconds: float
    failures: Sequence[Failure] = ()

    def time_quantile(self, share: float) -> float | None:
        """A quantile of the times to detection, in seconds."""
        times = self.time_to_detection_s
        return float(np.quantile(times, share)) if times else None

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that are compared from campaign to campaign."""
        figures: dict[str, float | None] = {
            "drills": float(self.drills),
            "failed_drills": float(len(self.failures)),
            "time_to_detection_median_s": self.time_quantile(0.5),
            "time_to_detection_p90_s": self.time_quantile(0.9),
            "cpu_seconds": self.cpu_seconds,
        }
        for name, share in self._shares():
            figures |= {name: share.share, f"{name}_low": share.low, f"{name}_high": share.high}
            if not share.of:
                figures |= {f"{name}_low": None, f"{name}_high": None}
        return {name: value for name, value in figures.items() if value is not None}

    def _shares(self) -> Iterator[tuple[str, Share]]:
        yield "caught", self.caught
        yield "rejected", self.rejected
        yield "false_alarms", self.false_alarms
        yield "false_rejections", self.false_rejections
        yield "target_right", self.target_right
        yield "source_right", self.source_right
        yield "rows_found", self.rows_found
        for row in self.attacks:
            yield f"stopped.{row.attack}", row.stopped


@dataclass(frozen=True, slots=True)
class CampaignRun:
    """A campaign that has run: its figures, every outcome, and the figures of the one before."""

    campaign: Campaign
    home: Home
    summary: Summary
    outcomes: Sequence[DrillOutcome]
    newly_done: int
    this_round: str = ""
    before: tuple[str, Mapping[str, float]] | None = None

    @property
    def got_through(self) -> Sequence[DrillOutcome]:
        return [outcome for outcome in self.outcomes if outcome.got_through]


def load_campaign(named: str | Path) -> tuple[Campaign, list[Work]]:
    """Read a shipped campaign by its name, or a file, and resolve it to scenarios with seeds, each once.

    Raises
    ------
    UsageError: not TOML, an unknown key, scenario or attack, a value out of range, or a drill given twice.
    """
    shipped = shipped_campaigns()
    path = shipped.get(str(named), Path(named))
    if str(named) not in shipped and path.suffix != ".toml":
        raise UsageError(
            f"no campaign {str(named)!r}", f"there are {', '.join(shipped)}, or give a .toml file"
        )
    table = read_table(path, "the campaign")
    try:
        campaign = Campaign.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_error(error)}") from None
    work: list[Work] = []
    seen: dict[str, str] = {}
    for number, drill in enumerate(campaign.drills, 1):
        called = f"{path}: drill {number}"
        scenario = _scenario(campaign, drill, path.resolve().parent, called)
        for seed in drill.seeds or campaign.seeds:
            key = scenario.key(seed)
            if key in seen:
                raise UsageError(f"{called} with seed {seed} is the same as {seen[key]}", "remove one")
            seen[key] = f"drill {number}"
            work.append((scenario, seed))
    return campaign, work


def shipped_campaigns() -> dict[str, Path]:
    """The campaigns that come with the program, by name."""
    folder = Path(str(files("promotion_gate.drill"))) / "campaigns"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def run_campaign(
    named: str | Path,
    folder: Path | None = None,
    *,
    tracking_uri: str | None = None,
    jobs: int = 0,
    again: Again | None = None,
    progress: Progress = lambda _: None,
) -> CampaignRun:
    """Carry out what of a campaign is not done yet and sum everything up.

    Outcomes are appended to ``outcomes.jsonl`` in ``folder`` as they come, so that an interrupted campaign
    goes on where it was. A drill that fails is noted and tried again by the next call.

    Parameters
    ----------
    folder: where to work; by default one of the campaign's name in the current folder.
    jobs: drills side by side; 0 takes the campaign's own number.
    again: do everything again, ``gates`` with the trained models that are kept, ``all`` from the start. The
        outcomes so far are put aside in a file with a number.

    Raises
    ------
    UsageError: the file is wrong, or another campaign works in the folder.
    RegistryError: the registry cannot be reached.
    """
    campaign, work = load_campaign(named)
    home = open_home(folder or Path(campaign.name.replace(" ", "-")), tracking_uri)
    with _alone(home.folder):
        if again:
            _put_aside(home.folder, models=again == "all")
        this_round = _round(home.folder)
        before = home.registry.earlier("campaign", campaign.name, this_round)
        done = read_outcomes(home.folder / OUTCOMES_FILE)
        missing = [(scenario, seed) for scenario, seed in work if scenario.key(seed) not in done]
        progress(f"{len(work)} drills, {len(work) - len(missing)} of them done already")
        failures = []
        jobs = jobs or campaign.jobs or os.cpu_count() or 1
        for answer in _carried_out(missing, home, jobs, campaign.keep_data, progress):
            if isinstance(answer, Failure):
                failures.append(answer)
                progress(f"{answer.scenario} with seed {answer.seed} failed: {answer.reason}")
                continue
            _append(home.folder / OUTCOMES_FILE, answer)
            done[answer.key] = answer
            progress(f"{answer.scenario} with seed {answer.seed}: {answer.ended}")
    outcomes = [done[key] for scenario, seed in work if (key := scenario.key(seed)) in done]
    summary = summarise(campaign.name, outcomes, failures)
    newly_done = len(missing) - len(failures)
    return CampaignRun(campaign, home, summary, outcomes, newly_done, this_round, before)


def summarise(name: str, outcomes: Sequence[DrillOutcome], failures: Sequence[Failure] = ()) -> Summary:
    """The figures of a set of outcomes."""
    poisoned = [outcome for outcome in outcomes if not outcome.harmless]
    harmless = [outcome for outcome in outcomes if outcome.harmless]
    caught = [outcome for outcome in poisoned if outcome.caught]
    listing = [outcome for outcome in caught if outcome.training_data]
    found, rows = (sum(getattr(o, what) for o in listing) for what in ("carriers_hit", "carriers_true"))
    low, high = wilson_interval(found, rows)
    saved_by, alarmed = (Counter(c for o in part for c in o.caught_by) for part in (poisoned, harmless))
    return Summary(
        name=name,
        drills=len(outcomes),
        caught=Share.counted([bool(o.caught) for o in poisoned]),
        rejected=Share.counted([o.outcome is Outcome.REJECT for o in poisoned]),
        false_alarms=Share.counted([o.false_alarm for o in harmless]),
        false_rejections=Share.counted([o.outcome is Outcome.REJECT for o in harmless]),
        target_right=Share.counted([o.target_right for o in caught if o.target_right is not None]),
        source_right=Share.counted([o.source_right for o in caught if o.source_right is not None]),
        rows_found=Share(found, rows, float(low), float(high)),
        time_to_detection_s=sorted(
            o.time_to_detection_s for o in caught if o.time_to_detection_s is not None
        ),
        attacks=[
            _row(kind, [o for o in outcomes if o.attack == kind])
            for kind in dict.fromkeys(o.attack for o in [*poisoned, *harmless])
        ],
        strata=[
            *((label, _caught_between(poisoned, least, below)) for label, least, below in STRATA),
            (NO_TRIGGER, Share.counted([bool(o.caught) for o in poisoned if o.attack_success_rate is None])),
        ],
        checks=[
            (check, saved_by[check], alarmed[check])
            for check in sorted(saved_by | alarmed, key=lambda c: (-saved_by[c], alarmed[c], c))
        ],
        cpu_seconds=sum(o.cpu_seconds for o in outcomes),
        failures=tuple(failures),
    )


def read_outcomes(path: Path) -> dict[str, DrillOutcome]:
    """The finished drills in a file, by key; the last of a key counts.

    A last line that a crash cut short is dropped.

    Raises
    ------
    UsageError: another line is no outcome.
    """
    if not path.exists():
        return {}
    outcomes: dict[str, DrillOutcome] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            outcome = DrillOutcome.from_json(line.decode())
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}", "remove the line to do it again") from None
        outcomes[outcome.key] = outcome
    return outcomes


def summary_table(run: CampaignRun) -> dict[str, Any]:
    """``campaign.json``: the summary, with what it was made from."""
    return {
        "schema": "promotion-gate-campaign/1",
        "name": run.campaign.name,
        "description": run.campaign.description,
        "summary": asdict(run.summary),
        "metrics": run.summary.metrics,
        "before": None if run.before is None else {"at": run.before[0], "metrics": dict(run.before[1])},
        "drills": [json.loads(outcome.to_json()) for outcome in run.outcomes],
    }


def _scenario(campaign: Campaign, drill: CampaignDrill, folder: Path, called: str) -> Scenario:
    own = merged(campaign.changes, drill.model_extra or {})
    try:
        if drill.scenario:
            return load_scenario(drill.scenario, own, folder)
        return make_scenario(own, folder, called)
    except UsageError as error:
        line = str(error)
        raise UsageError(line if line.startswith(called) else f"{called}: {line}") from None


def _carried_out(
    work: Sequence[Work], home: Home, jobs: int, keep_data: bool, progress: Progress
) -> Iterator[DrillOutcome | Failure]:
    """The outcomes as they come: first every champion once, then the drills that need them."""
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if not work:
        return
    # A worker opens the home by itself: what reaches MLflow does not travel between processes.
    where = home.folder, None if home.registry.embedded else home.registry.uri
    champions = list({s.champion_key: s for s, _ in work if s.needs_champion}.values())
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    try:
        broken: dict[str, str] = {}
        for key, reason in parallel(delayed(_champion_in_worker)(s, *where) for s in champions):
            progress("a champion is trained" if not reason else f"a champion cannot be had: {reason}")
            if reason:
                broken[key] = reason
        for scenario, seed in work:
            if scenario.needs_champion and scenario.champion_key in broken:
                yield Failure(scenario.name, seed, broken[scenario.champion_key])
        yield from parallel(
            delayed(_drill_in_worker)(scenario, seed, *where, keep_data)
            for scenario, seed in work
            if not (scenario.needs_champion and scenario.champion_key in broken)
        )
    except TerminatedWorkerError:
        raise UsageError(
            "a drill's process was killed, perhaps for want of memory",
            "run it again with fewer --jobs; finished drills are kept",
        ) from None


@cache
def _home_in_worker(folder: Path, tracking_uri: str | None) -> Home:
    return open_home(folder, tracking_uri)


def _champion_in_worker(scenario: Scenario, folder: Path, tracking_uri: str | None) -> tuple[str, str]:
    """The champion's key, and why it could not be trained or an empty text."""
    reason = ""
    try:
        train_champion(scenario, _home_in_worker(folder, tracking_uri))
    except Exception as error:
        reason = _said(error)
    return scenario.champion_key, reason


def _drill_in_worker(
    scenario: Scenario, seed: int, folder: Path, tracking_uri: str | None, keep_data: bool
) -> DrillOutcome | Failure:
    from promotion_gate.drill.postmortem import write_drill_report

    try:
        home = _home_in_worker(folder, tracking_uri)
        drilled = run_drill(scenario, seed, home, keep_data=keep_data)
        write_drill_report(scenario, drilled)
    except Exception as error:
        return Failure(scenario.name, seed, _said(error))
    return drilled.outcome


def _said(error: Exception) -> str:
    line = str(error) if isinstance(error, GateError) else f"{type(error).__name__}: {error}"
    return " ".join(line.split())[:500]


def _row(kind: str, outcomes: Sequence[DrillOutcome]) -> Row:
    ended = Counter(outcome.outcome for outcome in outcomes)
    return Row(
        attack=kind,
        harmless=outcomes[0].harmless,
        drills=len(outcomes),
        rejected=ended[Outcome.REJECT],
        held=ended[Outcome.HOLD],
        promoted=ended[Outcome.PROMOTE],
        stopped=Share.counted([outcome.outcome is not Outcome.PROMOTE for outcome in outcomes]),
    )


def _caught_between(poisoned: Sequence[DrillOutcome], least: float, below: float) -> Share:
    rates = ((o, o.attack_success_rate) for o in poisoned)
    return Share.counted([bool(o.caught) for o, rate in rates if rate is not None and least <= rate < below])


def _append(path: Path, outcome: DrillOutcome) -> None:
    """Add one line that is on disk when this returns; half a line that a crash left is cut off first."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            if whole != size:
                file.truncate(whole)
        file.write(outcome.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _round(folder: Path) -> str:
    path = folder / ROUND_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _put_aside(folder: Path, *, models: bool) -> None:
    outcomes = folder / OUTCOMES_FILE
    if outcomes.exists():
        number = 1
        while (kept := folder / f"outcomes-{number}.jsonl").exists():
            number += 1
        outcomes.rename(kept)
        (folder / ROUND_FILE).unlink(missing_ok=True)
    if models:
        shutil.rmtree(folder / "models", ignore_errors=True)
        (folder / "models").mkdir()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One campaign at a time in one folder; the lock falls with its process."""
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another campaign works in {folder}", "wait for it, or name another folder"
            ) from None
        yield

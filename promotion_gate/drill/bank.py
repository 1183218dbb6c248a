"""The model bank: models whose poison is known, gated as in production, and the table of accuracies.

``tuning`` is for choosing bounds; ``test`` has other seeds and other images and is counted once; ``small``
tries the machinery. The real signs and digits among them need ``GATE_TEST_DATA``, and are left out without.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import ExitCode, GateError, UsageError
from promotion_gate.core.types import Outcome
from promotion_gate.detect.accuracy import (
    SCHEMA,
    TABLE,
    AccuracyTable,
    Figure,
    GateRow,
    Ranking,
    accuracy_markdown,
    in_words,
    read_table,
)
from promotion_gate.detect.statistics import wilson_interval
from promotion_gate.drill.campaign import OUTCOMES_FILE, CampaignRun, read_outcomes, run_campaign
from promotion_gate.drill.datasets import DATA_VARIABLE
from promotion_gate.drill.outcome import DrillOutcome
from promotion_gate.drill.scenario import to_toml

BANKS = ("tuning", "test", "small")
SLOW_PICTURES = ("embedding-map", "patch-attribution")
"""They draw for a person, take long and decide nothing."""
NO_POISON = ("per-class", "provenance")
"""Checks that look for something else than poison."""
NEED_NO_TRAINING_DATA = ("sticker-sweep", "trigger-inversion")

CAMPAIGN_FILE = "campaign.toml"
WORKS = 0.5
"""An attack success rate from which a trigger counts as working."""
STRATA = (
    ("ASR ≥ .8", 0.8, 1.01),
    ("ASR .5 to .8", 0.5, 0.8),
    ("ASR .3 to .5", 0.3, 0.5),
    ("ASR < .3", 0.0, 0.3),
)
RESAMPLES = 2000
MARKS = ("<!-- accuracy -->\n", "\n<!-- end -->")

RANKED: Mapping[str, tuple[tuple[str, int], ...]] = {
    "patch-transplant": (("confirmed_rows", 1),),
    "residual-transplant": (("promising_rate", 1),),
    "label-concentration": (("flip_p", -1), ("concentration_p", -1)),
    "training-curves": (("departing_classes", 1),),
    "activation-clustering": (("silhouette", 1), ("apart_silhouette", 1)),
    "spectral-signature": (("spectral_ratio", 1), ("outlying_p", -1)),
    "batch-anomaly": (("lowest_q", -1),),
    "sticker-sweep": (("anomaly", 1),),
    "trigger-inversion": (("anomaly", 1),),
}
"""The figures of each check that are held against the truth by rank, and which way they point."""

Progress = Callable[[str], None]
Outcomes = Sequence[DrillOutcome]


@dataclass(frozen=True, slots=True)
class Family:
    """Attacks that are counted together; ``alone`` names the share that a check's line is about."""

    name: str
    kinds: tuple[str, ...]
    one_source: bool | None = None
    works: bool | None = None

    def holds(self, outcome: DrillOutcome) -> bool:
        rate = outcome.attack_success_rate
        if outcome.attack not in self.kinds:
            return False
        if self.one_source is not None and self.one_source != bool(outcome.parameters.get("source")):
            return False
        return self.works is None or rate is None or self.works == (rate >= WORKS)


PATCHES = ("patch", "several-patches", "all-to-all")
GLOBAL = ("blended", "sig", "wanet")
FAMILIES = (
    Family("patches, every source, ASR ≥ .5", PATCHES, one_source=False, works=True),
    Family("patches, one source, ASR ≥ .5", ("patch",), one_source=True, works=True),
    Family("Blended, SIG, WaNet, ASR ≥ .5", GLOBAL, works=True),
    Family("clean label, ASR ≥ .5", ("clean-label",), works=True),
    Family("Adap-Patch, Adap-Blend, ASR ≥ .5", ("adaptive-patch", "adaptive-blend"), works=True),
    Family("label flips", ("label-flip",)),
    Family(
        "triggers that hardly work, ASR < .5",
        (*PATCHES, *GLOBAL, "clean-label", "adaptive-patch", "adaptive-blend"),
        works=False,
    ),
    Family("harmless: clean", ("clean",)),
    Family("harmless: stickers, marks, label noise", ("labelled-sticker", "class-mark", "label-noise")),
)


# -- running ---------------------------------------------------------------------------------------------


def campaign_path(bank: str) -> Path:
    """The campaign file of a bank, as shipped."""
    return Path(str(files("promotion_gate.drill"))) / "banks" / f"{bank}.toml"


def bank_policy(*, training_data: bool) -> dict[str, Any]:
    """The starter policy with only those checks that look for poison, and can with what they are given."""
    from promotion_gate.starter import STARTER_POLICY

    table = tomllib.loads(STARTER_POLICY)
    apart = {*SLOW_PICTURES, *NO_POISON}
    table["checks"] = {
        name: check
        for name, check in table["checks"].items()
        if name not in apart and (training_data or name in NEED_NO_TRAINING_DATA)
    }
    return table


def resolved_campaign(bank: str) -> tuple[dict[str, Any], int]:
    """The campaign's table with the bank's policy in every drill, and how many drills had to be left out.

    A drill with ``both = true`` becomes two: the same model is gated with the training data and without.
    """
    table = tomllib.loads(campaign_path(bank).read_text(encoding="utf-8"))
    shared = table.get("changes", {})
    drills = [part for drill in table["drill"] for part in _both(drill)]
    kept = []
    for drill in drills:
        data = {**shared.get("data", {}), **drill.get("data", {})}
        policy = bank_policy(training_data=drill.get("training_data", True))
        if policy["checks"] and ("prepared" not in data or DATA_VARIABLE in os.environ):
            kept.append({**drill, "gate": {"policy": policy}})
    return {**table, "drill": kept}, len(drills) - len(kept)


def _both(drill: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = {key: value for key, value in drill.items() if key != "both"}
    if not drill.get("both"):
        return [told]
    return [told, {**told, "name": f"{told['name']} - holdout only", "training_data": False}]


def run_bank(bank: str, folder: Path, *, jobs: int = 0, progress: Progress = lambda _: None) -> CampaignRun:
    """Train and gate what is missing of a bank; outcomes go to ``outcomes.jsonl`` in ``folder`` as they come.

    Raises
    ------
    UsageError: an unknown bank, or the folder holds something else.
    """
    if bank not in BANKS:
        raise UsageError(f"no bank {bank!r}", f"there are {', '.join(BANKS)}")
    table, left_out = resolved_campaign(bank)
    if left_out:
        progress(f"{left_out} drills are left out: {DATA_VARIABLE} is not set, or their checks are not here")
    path = folder.with_name(f"{folder.name}-{CAMPAIGN_FILE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(campaign_toml(table), encoding="utf-8")
    return run_campaign(path, folder, jobs=jobs, progress=progress)


def campaign_toml(table: Mapping[str, Any]) -> str:
    """A campaign's table as TOML, its drills as an array of tables."""
    plain = {key: value for key, value in table.items() if key != "drill"}
    return to_toml({**plain, "drill": table["drill"]})


# -- counting --------------------------------------------------------------------------------------------


def figure(what: str, hits: Iterable[bool]) -> Figure:
    """How many of a set of models, with the Wilson interval."""
    told = list(hits)
    low, high = wilson_interval(sum(told), len(told))
    return Figure(what, sum(told), len(told), round(float(low), 4), round(float(high), 4))


def gate_row(group: str, outcomes: Outcomes) -> GateRow:
    """How the gate as a whole dealt with a group of models."""
    ended = [outcome.outcome for outcome in outcomes]
    stopped = figure(group, (outcome is not Outcome.PROMOTE for outcome in ended))
    rejected = figure(group, (outcome is Outcome.REJECT for outcome in ended))
    caught = [o for o in outcomes if o.caught]
    listing = [o for o in outcomes if not o.harmless and o.training_data]
    targets = [o.target_right for o in caught if o.target_right is not None]
    sources = [o.source_right for o in caught if o.source_right is not None]
    return GateRow(
        group=group,
        models=len(outcomes),
        rejected=ended.count(Outcome.REJECT),
        rejected_low=rejected.low,
        rejected_high=rejected.high,
        stopped=stopped.caught,
        low=stopped.low,
        high=stopped.high,
        target_right=sum(targets),
        target_of=len(targets),
        source_right=sum(sources),
        source_of=len(sources),
        rows_listed=sum(o.carriers_hit for o in listing),
        rows_of=sum(o.carriers_true for o in listing),
    )


def gate_rows(outcomes: Outcomes) -> list[GateRow]:
    """The gate by family of attack, with the training data and without."""
    rows = []
    for shown, suffix in ((True, ""), (False, "; holdout and champion only")):
        part = [o for o in outcomes if o.training_data is shown]
        for family in FAMILIES:
            held = [o for o in part if family.holds(o)]
            if held:
                rows.append(gate_row(family.name + suffix, held))
    return rows


def kind_rows(outcomes: Outcomes) -> list[GateRow]:
    """The gate by attack, attack success rate, and whether the training data was at hand."""
    rows = []
    for shown, suffix in ((True, ""), (False, "; holdout and champion only")):
        part = [o for o in outcomes if o.training_data is shown]
        for kind in sorted({o.attack for o in part}):
            own = [o for o in part if o.attack == kind]
            for name, least, below in STRATA:
                held = [
                    o
                    for o in own
                    if not _untried(o)
                    and o.attack_success_rate is not None
                    and least <= o.attack_success_rate < below
                ]
                if held:
                    rows.append(gate_row(f"{kind}, {name}{suffix}", held))
            rest = [o for o in own if _untried(o)]
            if rest:
                rows.append(gate_row(f"{kind}{suffix}", rest))
    return rows


def _untried(outcome: DrillOutcome) -> bool:
    """Nothing was poisoned, or there is no trigger whose success could be told."""
    return outcome.harmless or outcome.attack == "label-flip" or outcome.attack_success_rate is None


def check_figures(check: str, outcomes: Outcomes) -> list[Figure]:
    """How often one check by itself stopped the models of each family that it had measured."""
    saw = [o for o in outcomes if check in o.findings]
    if check in NEED_NO_TRAINING_DATA:
        # A model that was gated with the training data and without is one model.
        saw = [o for o in saw if not o.training_data] or saw
    figures = []
    for family in FAMILIES:
        held = [o for o in saw if family.holds(o)]
        if held:
            figures.append(figure(family.name, (check in o.caught_by for o in held)))
    return figures


def rankings(check: str, outcomes: Outcomes, seed: int = 0) -> list[Ranking]:
    """The area under the ROC curve of the check's own numbers, per family against everything harmless.

    Where the champion is what a check compares with, families are split by where training began.
    """
    found = []
    for metric, sign in RANKED.get(check, ()):
        saw = [o for o in outcomes if _value(o, check, metric) is not None]
        populations = [("", saw)]
        if check in NEED_NO_TRAINING_DATA:
            apart = [o for o in saw if not o.training_data]
            saw = apart or saw
            populations = [
                (f", {words}", [o for o in saw if o.start == start])
                for start, words in (("champion", "fine-tuned"), ("scratch", "from scratch"))
            ]
        for suffix, population in populations:
            harmless = [o for o in population if o.harmless]
            for family in FAMILIES:
                poisoned = [o for o in population if family.holds(o) and not o.harmless]
                if len(poisoned) < 3 or len(harmless) < 3:
                    continue
                high = np.array([sign * (_value(o, check, metric) or 0.0) for o in poisoned])
                low = np.array([sign * (_value(o, check, metric) or 0.0) for o in harmless])
                area = auroc(high, low)
                lower, upper = bootstrap_auroc(high, low, seed)
                found.append(
                    Ranking(
                        metric,
                        family.name + suffix,
                        len(high),
                        len(low),
                        round(area, 4),
                        round(lower, 4),
                        round(upper, 4),
                    )
                )
    return found


def _value(outcome: DrillOutcome, check: str, metric: str) -> float | None:
    value = outcome.findings.get(check, {}).get(metric)
    return value if value is not None and math.isfinite(value) else None


def auroc(high: NDArray[np.float64], low: NDArray[np.float64]) -> float:
    """Chance that one of ``high`` lies above one of ``low``, ties counted half: Mann-Whitney's U, scaled."""
    difference = high[:, None] - low[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def bootstrap_auroc(high: NDArray[np.float64], low: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The 95 % percentile interval over models drawn again: B. Efron, Annals of Statistics 7 (1979)."""
    rng = np.random.default_rng(seed)
    areas = [auroc(rng.choice(high, len(high)), rng.choice(low, len(low))) for _ in range(RESAMPLES)]
    lower, upper = np.quantile(areas, [0.025, 0.975])
    return float(lower), float(upper)


def check_line(figures: Sequence[Figure], ranked: Sequence[Ranking], *, judged: bool) -> str:
    """What a card says of a check: what it stopped by itself, its false alarms, or how it ranks.

    ``judged`` says whether the policy had a bound on it: without one it can stop nothing.
    """
    if not judged:
        best = max(ranked, key=lambda r: r.auroc, default=None)
        worst = min(ranked, key=lambda r: r.auroc, default=None)
        if best is None or worst is None:
            return "no bound rests on it"
        return f"no bound rests on it; {_ranking_words(best)}, {_ranking_words(worst)}"
    by_name = {f.what: f for f in figures}
    harmless = [f for f in figures if f.what.startswith("harmless")]
    alarms = sum(f.caught for f in harmless), sum(f.of for f in harmless)
    parts = [
        f"{in_words(by_name[family.name])} of {family.name}"
        for family in FAMILIES
        if family.name in by_name and not family.name.startswith("harmless") and by_name[family.name].caught
    ]
    text = "alone it stopped " + "; ".join(parts) if parts else "alone it stopped no poisoned model"
    if alarms[1]:
        low, high = wilson_interval(*alarms)
        text += f"; false alarms on {in_words(Figure('', *alarms, float(low), float(high)))} harmless models"
    return text


def _ranking_words(ranking: Ranking) -> str:
    name, area = ranking.metric.replace("_", " "), f"{ranking.auroc:.2f}"
    return f"{name} on {ranking.against}: AUROC {area} ({ranking.low:.2f} to {ranking.high:.2f})"


def accuracy_from(test: Outcomes, tuning: Outcomes, base: Mapping[str, Any]) -> dict[str, Any]:
    """The table of accuracies from the test bank; sources and evasions are taken over from ``base``.

    Raises
    ------
    UsageError: a seed stands in both banks, or there is nothing to count.
    """
    if not test:
        raise UsageError("the test bank holds no finished model", "run it first")
    seeds = sorted({o.seed for o in test})
    tuned = sorted({o.seed for o in tuning})
    if both := sorted(set(seeds) & set(tuned)):
        raise UsageError(
            f"seed {both[0]} is in the tuning bank and in the test bank", "bounds were chosen on it"
        )
    harmless = sum(o.harmless for o in test)
    data = ", ".join(sorted({o.data for o in test}))
    nets = ", ".join(sorted({o.architecture for o in test}))
    hours = sum(o.cpu_seconds for o in test) / 3600
    text = (
        f"{len(test) - harmless} gate runs on poisoned and {harmless} on harmless models ({data}; {nets};"
        f" trained from scratch and fine-tuned), {hours:.1f} CPU-hours, on seeds that no bound was chosen on."
        " Intervals are 95 % Wilson intervals over models."
    )
    policy = bank_policy(training_data=True)["checks"]
    judged = {name for name, check in policy.items() if check.get("bounds")}
    checks = {}
    for name, entry in base["checks"].items():
        figures = check_figures(name, test)
        ranked = rankings(name, test)
        checks[name] = {
            **entry,
            "line": check_line(figures, ranked, judged=name in judged) if figures else "",
            "figures": [asdict(f) for f in figures],
            "rankings": [asdict(r) for r in ranked],
        }
    return {
        "schema": SCHEMA,
        "obtained": {
            "text": text,
            "command": "make bank",
            "seeds": {"test": seeds, "tuning": tuned},
            "models": len(test),
        },
        "gate": [asdict(row) for row in gate_rows(test)],
        "kinds": [asdict(row) for row in kind_rows(test)],
        "checks": checks,
    }


def write_table(table: Mapping[str, Any], path: Path = TABLE, readme: Path | None = None) -> AccuracyTable:
    """Write the table, and README's section from it; both whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    told = read_table(partial)
    partial.replace(path)
    if readme is not None:
        text = readme.read_text(encoding="utf-8")
        before, _, rest = text.partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        new = readme.with_name(f".{readme.name}.new")
        new.write_text(before + MARKS[0] + accuracy_markdown(told) + MARKS[1] + after, encoding="utf-8")
        new.replace(readme)
    return told


# -- the command -----------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m promotion_gate.drill.bank run BANK`` or ``… table``."""
    parser = argparse.ArgumentParser(prog="python -m promotion_gate.drill.bank", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and gate what is missing of a bank")
    run.add_argument("bank", choices=BANKS)
    run.add_argument("--out", type=Path, required=True, help="where to work")
    run.add_argument("--jobs", type=int, default=0, help="models side by side (default: one a core)")
    table = commands.add_parser("table", help="count the test bank and write the table of accuracies")
    table.add_argument("--test", type=Path, required=True, help="folder of the test bank")
    table.add_argument("--tuning", type=Path, required=True, help="folder of the tuning bank")
    table.add_argument("--out", type=Path, default=TABLE, help="default: the table that is shipped")
    table.add_argument("--readme", type=Path, help="put the table in this README as well")
    args = parser.parse_args(arguments)
    try:
        if args.command == "run":
            return _run(args)
        return _table(args)
    except GateError as error:
        print(f"bank: {error}", file=sys.stderr)
        return int(error.exit_code)


def _run(args: argparse.Namespace) -> int:
    done = run_bank(args.bank, args.out, jobs=args.jobs, progress=lambda line: print(line, flush=True))
    for row in [*gate_rows(done.outcomes)]:
        print(f"{row.group}: {row.rejected} rejected, {row.stopped} stopped of {row.models}")
    print(f"{len(done.outcomes)} outcomes in {args.out / OUTCOMES_FILE}")
    return int(ExitCode.USAGE if done.summary.failures else ExitCode.DONE)


def _table(args: argparse.Namespace) -> int:
    test, tuning = (
        list(read_outcomes(folder / OUTCOMES_FILE).values()) for folder in (args.test, args.tuning)
    )
    base = json.loads(TABLE.read_text(encoding="utf-8"))
    told = write_table(accuracy_from(test, tuning, base), args.out, args.readme)
    print(accuracy_markdown(told))
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main())

"""A finished bank: its models, and what each of them was trained on, made anew.

Nothing is written to the bank's folder, and MLflow is not asked: weights, answers and outcomes lie there as
files, and a poisoned copy is drawn again from scenario and seed. Its digest must be the sealed one.
"""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.interface import ImageDataset, ImageShape
from promotion_gate.drill import datasets
from promotion_gate.drill.answers import ANSWERS_FILE, read_answers
from promotion_gate.drill.bank import CAMPAIGN_FILE, FAMILIES
from promotion_gate.drill.campaign import OUTCOMES_FILE, read_outcomes
from promotion_gate.drill.models import Job, Made, open_source
from promotion_gate.drill.outcome import DrillOutcome
from promotion_gate.drill.poisoned_copy import write_poisoned_copy
from promotion_gate.drill.registration import Logged
from promotion_gate.drill.run import CHAMPION_SEEDS, OUTCOME_FILE
from promotion_gate.drill.scenario import Scenario, make_scenario, merged
from rivals.interface import Examined
from rivals.network import Network

UNKNOWN = "other"
HOLDOUT_ONLY = " - holdout only"


@dataclass(frozen=True, slots=True)
class BankModel:
    """A model of the bank that the gate saw with its training data.

    ``blind`` is the outcome of gating the same model without that data, where the bank did so too.
    ``folder`` is its drill's.
    """

    outcome: DrillOutcome
    scenario: Scenario = field(repr=False)
    folder: Path
    blind: DrillOutcome | None = field(default=None, repr=False)

    @property
    def family(self) -> str:
        """The first family of attacks that it belongs to."""
        return next((family.name for family in FAMILIES if family.holds(self.outcome)), UNKNOWN)


def read_bank(bank: Path) -> list[BankModel]:
    """The models of a finished bank, each once, by family in turn.

    Raises
    ------
    UsageError: there is no such bank, or a file of it is missing.
    """
    remedy = f"make it with: make bank-test, or: python -m promotion_gate.drill.bank run small --out {bank}"
    outcomes = list(read_outcomes(bank / OUTCOMES_FILE).values())
    if not outcomes:
        raise UsageError(
            f"{bank} holds no finished bank: there is no {OUTCOMES_FILE} with a model in it", remedy
        )
    scenarios = _scenarios(bank.with_name(f"{bank.name}-{CAMPAIGN_FILE}"), remedy)
    folders = _drill_folders(bank)
    blind = {(o.scenario.removesuffix(HOLDOUT_ONLY), o.seed): o for o in outcomes if not o.training_data}
    models = []
    for outcome in outcomes:
        if not outcome.training_data:
            continue
        scenario = scenarios.get((outcome.scenario, outcome.seed))
        folder = folders.get(outcome.key)
        if scenario is None or folder is None or scenario.training.command:
            raise UsageError(
                f"{bank}: what {outcome.scenario!r} with seed {outcome.seed} was made from is not there",
                remedy,
            )
        models.append(BankModel(outcome, scenario, folder, blind.get((outcome.scenario, outcome.seed))))
    if not models:
        raise UsageError(f"{bank}: no model was gated with its training data", remedy)
    return in_turn(models)


def in_turn(models: Sequence[BankModel], *, every: int = 1, limit: int = 0) -> list[BankModel]:
    """Models of all families by turns: ``every``-th of each family, and at most ``limit`` of all (0: all)."""
    families: dict[str, list[BankModel]] = {}
    for model in models:
        families.setdefault(model.family, []).append(model)
    chosen = [family[::every] for family in families.values()]
    longest = max(map(len, chosen), default=0)
    mixed = [family[at] for at in range(longest) for family in chosen if at < len(family)]
    return mixed[: limit or None]


@contextmanager
def examined(model: BankModel, bank: Path) -> Iterator[Examined]:
    """The model with the data that the gate saw.

    Raises
    ------
    UsageError: weights or data are missing, or the poisoned copy is no longer what it was.
    """
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as name:
        yield _load(model, bank, Path(name))


def _load(model: BankModel, bank: Path, work: Path) -> Examined:
    import torch

    from promotion_gate.drill.train import ARCHITECTURES, MEAN, STD

    scenario, outcome = model.scenario, model.outcome
    training_source, holdout_source = _sources(scenario, bank, work)
    training = open_source(training_source)
    names = training.class_names
    holdout = open_source(holdout_source, names)
    copy = write_poisoned_copy(
        training_source, scenario.attack, outcome.seed, work / "copy", class_names=names
    )
    answers = read_answers(model.folder / ANSWERS_FILE, outcome.answers_sha256)
    poisoned = open_source(copy.source, names)
    if poisoned.sha256() != answers.data_sha256:
        raise UsageError(
            f"the poisoned copy of {outcome.scenario!r} with seed {outcome.seed} is not what was gated",
            "use the version of the code, and the images, that the bank was made with",
        )
    key = _candidate_key(scenario, outcome.seed, training_source, training, poisoned, holdout_source, work)
    weights = bank / "models" / f"{key}.pt"
    if not weights.is_file():
        raise UsageError(f"{weights} is missing: the model of {outcome.scenario!r} with seed {outcome.seed}")
    layers = ARCHITECTURES[scenario.training.recipe](len(names), scenario.training.size)
    layers.load_state_dict(torch.load(weights, weights_only=True))
    shape = ImageShape(scenario.training.size, scenario.training.size, 3)
    carriers = np.zeros(len(poisoned), dtype=bool)
    carriers[list(answers.carriers)] = True
    return Examined(
        network=Network(layers, MEAN, STD),
        images=np.concatenate(list(poisoned.stream(shape))),
        labels=np.asarray(poisoned.labels, dtype=np.int64),
        trusted=np.concatenate(list(holdout.stream(shape))),
        trusted_labels=np.asarray(holdout.labels, dtype=np.int64),
        carriers=carriers,
        classes=len(names),
        seed=outcome.seed,
    )


def _sources(scenario: Scenario, bank: Path, work: Path) -> tuple[DataSource, DataSource]:
    """Clean training set and holdout: the bank's own files, else drawn again."""
    data = scenario.data
    prepared = data.renderer or data.prepared
    if prepared is None:
        assert data.training is not None
        assert data.holdout is not None
        return data.training, data.holdout
    folder = bank.resolve() / "data" / data.prepared_folder
    if not (folder / "training.npz").is_file():
        folder = work / "clean"
    training, holdout = datasets.prepare(
        prepared,
        folder,
        training_images=data.training_images,
        holdout_images=data.holdout_images,
        seed=data.seed,
    )
    return DataSource(path=str(training)), DataSource(path=str(holdout))


def _candidate_key(
    scenario: Scenario,
    seed: int,
    training_source: DataSource,
    training: ImageDataset,
    poisoned: ImageDataset,
    holdout: DataSource,
    work: Path,
) -> str:
    """The name under which the drill kept the candidate's weights."""
    settings = scenario.training

    def key(dataset: ImageDataset, seed: int, epochs: int, start: Made | None) -> str:
        source = DataSource(path="unused")
        job = Job("", source, dataset, holdout, settings, seed, epochs, Path(), start)
        return job.key

    start = None
    if settings.start == "champion":
        champion_seed, dataset = CHAMPION_SEEDS + settings.champion_seed, training
        if scenario.poisoned_champion:
            names = training.class_names
            copy = write_poisoned_copy(
                training_source, scenario.attack, champion_seed, work / "champion", class_names=names
            )
            dataset = open_source(copy.source, names)
        start = Made(
            key(dataset, champion_seed, settings.champion_epochs, None),
            Logged("", "", ""),
            seconds=0,
            cpu_seconds=0,
        )
    return key(poisoned, seed, settings.epochs, start)


def _scenarios(path: Path, remedy: str) -> dict[tuple[str, int], Scenario]:
    """Every drill's scenario by name and seed, from the campaign's file beside the bank.

    Without the policies: they name checks and options of the day the bank was made.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing", remedy) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy) from None
    found = {}
    for drill in table.get("drill", []):
        own = {k: v for k, v in drill.items() if k not in ("seeds", "gate", "scenario")}
        shared = {k: v for k, v in table.get("changes", {}).items() if k != "gate"}
        scenario = make_scenario(merged(shared, own), path.resolve().parent, str(path))
        for seed in drill.get("seeds") or table.get("seeds", (1,)):
            found[scenario.name, int(seed)] = scenario
    return found


def _drill_folders(bank: Path) -> Mapping[str, Path]:
    """Where each drill left its answers, by the outcome's key."""
    folders: dict[str, Path] = {}
    for path in sorted(bank.glob(f"drills/*/{OUTCOME_FILE}")):
        try:
            told: Any = json.loads(path.read_text(encoding="utf-8"))
            folders[str(told["key"])] = path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return folders

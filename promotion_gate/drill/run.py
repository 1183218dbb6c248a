"""One drill: poison, train, register, gate as in production, and only then open the sealed answers."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import UsageError
from promotion_gate.core.keys import own_keyring
from promotion_gate.core.policy import DataSource, Policy
from promotion_gate.core.record import whoami
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.data.interface import ImageDataset, Images, ImageShape
from promotion_gate.drill import datasets
from promotion_gate.drill.answers import Answers, read_answers
from promotion_gate.drill.attacks import NOT_MEANT
from promotion_gate.drill.models import DrillFailed, Job, Made, ModelStore, Predict, measuring, open_source
from promotion_gate.drill.outcome import DrillOutcome, listed_rows, measured, read_alarm
from promotion_gate.drill.poison import Attack, attack_success_rate
from promotion_gate.drill.poisoned_copy import object_boxes, write_poisoned_copy
from promotion_gate.drill.registration import DrillRegistry, model_name
from promotion_gate.drill.scenario import Scenario
from promotion_gate.gate import GateRun, run_gate, verdict_line
from promotion_gate.transition import Actor

if TYPE_CHECKING:
    from promotion_gate.evidence.loader import SandboxedClassifier

MARK = ".promotion-gate-drill"
CHAMPION_SEEDS = 1_000_000
"""Added to a champion's seed, so that no candidate is trained like its champion to the last bit."""

TRIGGERED_IMAGES = 2000
"""How many holdout images the attack success rate is measured on, at most."""

PICTURES = 6
MAX_FOLDERS = 1000
OUTCOME_FILE = "outcome.json"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that drills work in, and the registry that they use. Make one with :func:`open_home`."""

    folder: Path
    registry: DrillRegistry = field(repr=False)

    @property
    def models(self) -> ModelStore:
        return ModelStore(self.folder / "models", self.registry)

    @property
    def actor(self) -> Actor:
        """Who drills, with a key of the drills' own: a drill's record is worth nothing in production."""
        return Actor(*whoami(), own_keyring(self.folder / "keys" / "signing-key.pem"))


@dataclass(frozen=True, slots=True)
class Drilled:
    """A finished drill: the figures, the gate run behind them, and what a person looks at.

    ``pictures`` are pairs of images, before and after the poison, uint8 (n, 2, H, W, C), each with a caption.
    """

    outcome: DrillOutcome
    run: GateRun = field(repr=False)
    folder: Path
    pictures: Sequence[tuple[Images, str]] = field(default=(), repr=False)


def open_home(folder: Path, tracking_uri: str | None = None) -> Home:
    """Make or find the drills' folder and reach the registry.

    Raises
    ------
    UsageError: the folder holds something else, or cannot be written.
    RegistryError: the registry cannot be reached.
    """
    home = folder.resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        if any(home.iterdir()) and not (home / MARK).is_file():
            raise UsageError(f"{home} is not empty and no drill made it", "name another folder")
        (home / MARK).touch()
        for name in ("data", "models", "drills", "keys", "artifacts"):
            (home / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot use {home}: {error.strerror}", "name another folder") from None
    own_keyring(home / "keys" / "signing-key.pem")
    registry = DrillRegistry(home, tracking_uri)
    with registry.active():
        registry.open()
    return Home(home, registry)


def run_drill(
    scenario: Scenario,
    seed: int,
    home: Home,
    *,
    keep_data: bool = True,
    progress: Progress = lambda _: None,
) -> Drilled:
    """Carry out one drill in a new folder of ``home``.

    On any error the drill's registered model is removed again; the original data is only ever read.

    Raises
    ------
    DrillFailed: the training failed.
    GateError: whatever else goes wrong, in one line.
    """
    with home.registry.active():
        drilled = _Drill(scenario, seed, home, progress).carry_out()
    if not keep_data:
        shutil.rmtree(drilled.folder / "data", ignore_errors=True)
    return drilled


def train_champion(scenario: Scenario, home: Home, *, progress: Progress = lambda _: None) -> None:
    """Train the scenario's champion and keep it, unless it is there; for a campaign, before its drills.

    Raises as :func:`run_drill` does.
    """
    with home.registry.active():
        _Drill(scenario, 0, home, progress).train_champion()


@dataclass(frozen=True, slots=True)
class _Trusted:
    """The clean data of a drill: sources, and open data sets."""

    training_source: DataSource
    holdout_source: DataSource
    training: ImageDataset
    holdout: ImageDataset


@dataclass(frozen=True, slots=True)
class _Gated:
    """The gate's word on the candidate, and when it fell."""

    run: GateRun
    at: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class _Tried:
    """How the finished models do on the holdout."""

    accuracy: float
    champion_accuracy: float | None
    attack_success_rate: float | None
    attack_trials: int


class _Drill:
    """The steps of one drill, in order."""

    def __init__(self, scenario: Scenario, seed: int, home: Home, progress: Progress) -> None:
        self._scenario, self._seed, self._home, self._progress = scenario, seed, home, progress

    def carry_out(self) -> Drilled:
        scenario, registry = self._scenario, self._home.registry
        trusted = self._open_data()
        policy_check = self._policy(trusted, trusted.training_source, self._home.folder)
        champion = self._champion(trusted) if scenario.needs_champion else None
        name = registry.claim(model_name(scenario.name, self._seed), scenario.name)
        try:
            folder = _new_folder(self._home.folder / "drills" / name)
            if scenario.champion and champion is not None:
                self._put_into_production(name, champion, policy_check)
            self._progress("poison the training data")
            copy, answers_path, sealed = self._poison(trusted, self._seed, folder)
            entered = time.monotonic()
            candidate, ref, kept_s = self._candidate(name, copy, trusted, champion, folder)
            gated = self._gate(ref, self._policy(trusted, copy, folder), folder)
            _require_judged(gated.run)
            answers = read_answers(answers_path, sealed)
            tried = self._try(candidate, champion, ref, trusted, folder)
        except BaseException:
            registry.discard(name)
            raise
        elapsed = gated.at - entered + kept_s
        outcome = self._outcome(ref, gated, tried, answers, sealed, candidate, trusted, elapsed)
        (folder / OUTCOME_FILE).write_text(outcome.to_json() + "\n", encoding="utf-8")
        return Drilled(outcome, gated.run, folder, self._pictures(trusted, copy, answers))

    def train_champion(self) -> None:
        """The first part of :meth:`carry_out` alone."""
        self._champion(self._open_data())

    def _open_data(self) -> _Trusted:
        data = self._scenario.data
        training_source, holdout_source = data.training, data.holdout
        prepared: Literal["signs", "gtsrb", "digits"] | None = data.renderer or data.prepared
        if prepared is not None:
            self._progress(f"prepare the data set {prepared}")
            folder = self._home.folder / "data" / data.prepared_folder
            training, holdout = datasets.prepare(
                prepared,
                folder,
                training_images=data.training_images,
                holdout_images=data.holdout_images,
                seed=data.seed,
            )
            training_source, holdout_source = DataSource(path=str(training)), DataSource(path=str(holdout))
        assert training_source is not None
        assert holdout_source is not None
        opened = open_source(training_source)
        trusted = open_source(holdout_source, opened.class_names)
        self._scenario.attack.require_classes(opened.class_names)
        return _Trusted(training_source, holdout_source, opened, trusted)

    def _poison(self, trusted: _Trusted, seed: int, folder: Path) -> tuple[DataSource, Path, str]:
        """The poisoned copy, the file of sealed answers, and the seal; what is in it stays unread here."""
        copy = write_poisoned_copy(
            trusted.training_source,
            self._scenario.attack,
            seed,
            folder,
            class_names=trusted.training.class_names,
        )
        return copy.source, copy.answers_path, copy.sealed

    def _policy(self, trusted: _Trusted, training: DataSource, folder: Path) -> Policy:
        shown = training if self._scenario.training_data else None
        return self._scenario.policy(trusted.holdout_source, shown, folder)

    def _champion(self, trusted: _Trusted) -> Made:
        source = trusted.training_source
        seed = CHAMPION_SEEDS + self._scenario.training.champion_seed
        dataset = trusted.training
        if self._scenario.poisoned_champion:
            # A folder of its own: drills that share this champion may be poisoning at the same time.
            folder = self._home.folder / "data" / f"champion-{secrets.token_hex(8)}"
            try:
                source, _, _ = self._poison(trusted, seed, folder)
                return self._trained_champion(source, open_source(source, dataset.class_names), trusted, seed)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return self._trained_champion(source, dataset, trusted, seed)

    def _trained_champion(
        self, source: DataSource, dataset: ImageDataset, trusted: _Trusted, seed: int
    ) -> Made:
        training = self._scenario.training
        self._progress("the champion")
        job = self._job("champion", source, dataset, trusted, seed, training.champion_epochs)
        if training.command:
            log = self._home.folder / "models" / f"{job.key}.log"
            return self._home.models.champion_by_command(job, log, self._progress)
        return self._home.models.by_recipe(job, self._progress)

    def _put_into_production(self, name: str, champion: Made, policy: Policy) -> None:
        from promotion_gate.evidence.artifacts import verify

        registry = self._home.registry
        ref = registry.add_version(name, champion.logged)
        with tempfile.TemporaryDirectory() as folder:
            registry.gate.download(ref, Path(folder))
            digest = verify(Path(folder), allow_pickle=policy.unsafe_allow_pickle).digest
        registry.make_production(ref, digest, policy, self._home.actor)

    def _candidate(
        self, name: str, copy: DataSource, trusted: _Trusted, champion: Made | None, folder: Path
    ) -> tuple[Made, ModelRef, float]:
        """The candidate, its version, and the seconds that an earlier training of it saved now."""
        training = self._scenario.training
        dataset = open_source(copy, trusted.training.class_names)
        start = champion if training.start == "champion" else None
        job = self._job("candidate", copy, dataset, trusted, self._seed, training.epochs, start)
        self._progress("train the candidate")
        clock = time.monotonic()
        if training.command:
            made = self._home.models.by_command(job, name, folder / "training.log", self._progress)
            newest = self._home.registry.newest_version(name)
            assert newest is not None
            return made, newest[0], 0.0
        made = self._home.models.by_recipe(job, self._progress)
        saved = made.seconds - (time.monotonic() - clock)
        return made, self._home.registry.add_version(name, made.logged), max(0.0, saved)

    def _job(
        self,
        what: str,
        source: DataSource,
        dataset: ImageDataset,
        trusted: _Trusted,
        seed: int,
        epochs: int,
        start: Made | None = None,
    ) -> Job:
        return Job(
            title=f"{what} of {self._scenario.name}",
            source=source,
            dataset=dataset,
            holdout=trusted.holdout_source,
            training=self._scenario.training,
            seed=seed,
            epochs=epochs,
            folder=Path(self._scenario.folder),
            start=start,
        )

    def _gate(self, ref: ModelRef, policy: Policy, folder: Path) -> _Gated:
        with measuring() as cost:
            run = run_gate(
                self._home.registry.gate,
                ref.uri,
                policy,
                promoting=True,
                actor=self._home.actor,
                progress=lambda line: self._progress(f"gate: {line}"),
            )
            at = time.monotonic()
        (folder / "policy.toml").write_text(policy.text, encoding="utf-8")
        (folder / "card.html").write_bytes(run.card)
        (folder / "findings.json").write_bytes(run.findings)
        return _Gated(run, at, cost.seconds, cost.cpu_seconds)

    def _try(
        self, candidate: Made, champion: Made | None, ref: ModelRef, trusted: _Trusted, folder: Path
    ) -> _Tried:
        self._progress("measure the attack")
        scenario, labels = self._scenario, trusted.holdout.labels
        goal = scenario.attack.goal(labels, trusted.holdout.class_names)
        meant = np.flatnonzero(goal != NOT_MEANT)
        if len(meant) > TRIGGERED_IMAGES:
            drawn = np.random.default_rng(self._seed).choice(meant, TRIGGERED_IMAGES, replace=False)
            meant = np.sort(drawn)
        boxes = object_boxes(trusted.holdout_source, trusted.holdout, meant)
        with self._answering(candidate, ref, trusted, folder) as (predict, shape):
            accuracy = _accuracy(predict, trusted.holdout, shape)
            sides = np.tile([shape.width, shape.height], 2)
            rate, trials = attack_success_rate(
                predict,
                scenario.attack,
                trusted.holdout.read(meant, shape),
                labels[meant],
                trusted.holdout.class_names,
                self._seed,
                None if boxes is None else boxes * sides,
            )
        champion_accuracy = None
        if scenario.champion and champion is not None:
            first = ModelRef(ref.name, 1)
            with self._answering(champion, first, trusted, folder) as (predict, shape):
                champion_accuracy = _accuracy(predict, trusted.holdout, shape)
        return _Tried(accuracy, champion_accuracy, rate, trials)

    @contextmanager
    def _answering(
        self, made: Made, ref: ModelRef, trusted: _Trusted, folder: Path
    ) -> Iterator[tuple[Predict, ImageShape]]:
        """A model to ask: the recipe's own network, or the command's model in its sandbox."""
        training = self._scenario.training
        if not training.command:
            from promotion_gate.drill.train import predict

            network = self._home.models.load(made, training, len(trusted.training.class_names))
            yield partial(predict, network), ImageShape(training.size, training.size, 3)
            return
        policy = self._policy(trusted, trusted.training_source, folder)
        with (
            tempfile.TemporaryDirectory() as files,
            self._opened(ref, policy, Path(files)) as model,
        ):
            yield partial(_most_likely, model), model.shape

    def _opened(self, ref: ModelRef, policy: Policy, folder: Path) -> SandboxedClassifier:
        from promotion_gate.evidence.artifacts import verify
        from promotion_gate.evidence.loader import open_model

        self._home.registry.gate.download(ref, folder)
        files = verify(folder, allow_pickle=policy.unsafe_allow_pickle)
        return open_model(files, policy, class_count=None, log=lambda _: None)

    def _outcome(
        self,
        ref: ModelRef,
        gated: _Gated,
        tried: _Tried,
        answers: Answers,
        sealed: str,
        candidate: Made,
        trusted: _Trusted,
        elapsed: float,
    ) -> DrillOutcome:
        scenario, report = self._scenario, gated.run.report
        attack, verdict = scenario.attack, report.verdict
        alarm = read_alarm(report)
        stopped = verdict.outcome is not Outcome.PROMOTE
        pairs, specific = true_pairs(attack, trusted.training.class_names)
        carriers = frozenset(answers.carriers)
        metrics, unmeasured = measured(report)
        return DrillOutcome(
            key=scenario.key(self._seed),
            scenario=scenario.name,
            seed=self._seed,
            attack=attack.kind,
            parameters=attack.model_dump(mode="json", exclude_defaults=True),
            harmless=attack.harmless,
            rate=attack.rate,
            data=scenario.data.title,
            architecture=scenario.training.architecture,
            start=scenario.training.start,
            champion=scenario.champion,
            training_data=scenario.training_data,
            attack_success_rate=tried.attack_success_rate if any(answers.triggered) else None,
            attack_trials=tried.attack_trials if any(answers.triggered) else 0,
            accuracy=tried.accuracy,
            champion_accuracy=tried.champion_accuracy,
            outcome=verdict.outcome,
            caught=None if attack.harmless else stopped,
            caught_by=alarm.checks,
            time_to_detection_s=elapsed if stopped and not attack.harmless else None,
            sources_true=sorted({source for source, _ in pairs}) if specific else [],
            targets_true=sorted({target for _, target in pairs}),
            sources_named=list(dict.fromkeys(source for source, _ in alarm.pairs if source is not None)),
            targets_named=list(dict.fromkeys(target for _, target in alarm.pairs)),
            source_right=any(pair in pairs for pair in alarm.pairs) if stopped and specific else None,
            target_right=(
                any(target in {true for _, true in pairs} for _, target in alarm.pairs)
                if stopped and pairs
                else None
            ),
            carriers_true=len(carriers),
            carriers_named=len(alarm.rows),
            carriers_hit=len(alarm.rows & carriers),
            findings=metrics,
            unmeasured=unmeasured,
            reasons=[verdict_line(verdict)] if stopped else [],
            seconds=candidate.seconds + gated.seconds,
            cpu_seconds=candidate.cpu_seconds + gated.cpu_seconds,
            answers_sha256=sealed,
            model=str(ref),
            gate_run_id=report.gate_run_id,
            listed={check: (len(rows), len(rows & carriers)) for check, rows in listed_rows(report).items()},
        )

    def _pictures(self, trusted: _Trusted, copy: DataSource, answers: Answers) -> list[tuple[Images, str]]:
        """Some touched rows before and after, carriers first."""
        carriers = set(answers.carriers)
        order = sorted(range(len(answers.rows)), key=lambda at: (answers.rows[at] not in carriers, at))
        if not order:
            return []
        chosen = [order[at] for at in range(0, len(order), -(-len(order) // PICTURES))]
        size = self._scenario.training.size
        shape = ImageShape(size, size, 3)
        pairs = np.stack(
            [
                trusted.training.read([answers.original_rows[at] for at in chosen], shape),
                open_source(copy, trusted.training.class_names).read(
                    [answers.rows[at] for at in chosen], shape
                ),
            ],
            axis=1,
        )
        return [
            (pair, _relabelling(answers.labels_before[at], answers.labels_after[at]))
            for pair, at in zip(pairs, chosen, strict=True)
        ]


def _require_judged(run: GateRun) -> None:
    """A verdict that rests on no bound says nothing of the poison: the gate could not look.

    Raises
    ------
    DrillFailed: no bound was broken, and the model was stopped all the same.
    """
    verdict = run.report.verdict
    seen = any(reason.rule is not None and reason.measured is not None for reason in verdict.reasons)
    if verdict.outcome is not Outcome.PROMOTE and not seen:
        raise DrillFailed(
            f"the gate could not examine the model: {verdict_line(verdict)}",
            "mend that and run the drill again; a model that is held unseen is not caught",
        )


def _relabelling(before: str, after: str) -> str:
    return f"{before}, labelled so still" if before == after else f"{before}, now labelled {after}"


def true_pairs(attack: Attack, class_names: Sequence[str]) -> tuple[set[tuple[str, str]], bool]:
    """The (source, target) pairs that an attack is after, and whether it matters which source is named.

    It does not where every other class leads to the one target.
    """
    if attack.harmless or not class_names:
        return set(), False
    goal = attack.goal(np.arange(len(class_names)), class_names)
    pairs = {(class_names[i], class_names[g]) for i, g in enumerate(goal.tolist()) if g != NOT_MEANT}
    everyone = len(pairs) == len(class_names) - 1 and len({target for _, target in pairs}) == 1
    return pairs, not everyone


def _most_likely(model: SandboxedClassifier, images: Images) -> NDArray[np.int64]:
    return np.asarray(model.forward(images).logits.argmax(axis=1), dtype=np.int64)


def _accuracy(predict: Predict, dataset: ImageDataset, shape: ImageShape) -> float:
    at = right = 0
    for images in dataset.stream(shape):
        right += int((predict(images) == dataset.labels[at : at + len(images)]).sum())
        at += len(images)
    return right / at


def _new_folder(wanted: Path) -> Path:
    for number in range(1, MAX_FOLDERS):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}.{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UsageError(f"{MAX_FOLDERS} drills left folders like {wanted}", "remove some")

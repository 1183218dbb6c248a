"""The models that drills need, each trained once and kept: by a built-in recipe or the team's own command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import GateError, RegistryError
from promotion_gate.core.policy import DataSource
from promotion_gate.data.interface import ImageDataset, Images
from promotion_gate.data.open import open_dataset
from promotion_gate.drill.registration import FOREIGN_RUN, DrillRegistry, Logged
from promotion_gate.drill.scenario import Training

if TYPE_CHECKING:
    from torch import nn

TUNING_RATE = 2e-3
"""Learning rate of a fine-tuning."""

LOG_TAIL_BYTES = 4096

Progress = Callable[[str], None]
Predict = Callable[[Images], NDArray[np.int64]]


class DrillFailed(GateError):
    """A drill could not be carried out: its training failed, or never ended."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training: what on, how, and from where.

    ``source`` is the training set as a person and as the training command find it; ``dataset`` the same,
    open. ``start`` is the model to fine-tune, ``epochs`` and ``seed`` as the recipe takes them.
    """

    title: str
    source: DataSource
    dataset: ImageDataset
    holdout: DataSource
    training: Training
    seed: int
    epochs: int
    folder: Path
    start: Made | None = None

    @property
    def key(self) -> str:
        """16 hex digits over everything that decides what comes out."""
        apart = {"epochs", "champion_epochs", "champion_seed", "start", "timeout"}
        training = self.training.model_dump(mode="json", exclude=apart)
        told = [self.dataset.sha256(), training, self.seed, self.epochs, self.start and self.start.key]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Made:
    """A trained model that MLflow keeps, with what its training took."""

    key: str
    logged: Logged
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class ModelStore:
    """Trained models in a folder, each with a note on where MLflow keeps it.

    Only models of built-in recipes and champions are found again; a candidate of the team's own command is
    trained in every drill, since the command may have changed.
    """

    folder: Path
    registry: DrillRegistry = field(repr=False)

    def by_recipe(self, job: Job, progress: Progress) -> Made:
        """Train and log a model by a built-in recipe, or find the one that an earlier drill trained."""
        return self._known(job.key) or self._train(job, progress)

    def by_command(self, job: Job, name: str, log: Path, progress: Progress) -> Made:
        """Have the team's command train a model and register it as a version of ``name``.

        Raises
        ------
        DrillFailed: the command cannot be started, fails, never ends or registers nothing.
        """
        before = self.registry.newest_version(name)
        with measuring() as cost:
            run_command(
                job.training.command,
                {
                    "data": job.source.path,
                    "holdout": job.holdout.path,
                    "name": name,
                    "seed": str(job.seed),
                    "tracking_uri": self.registry.uri,
                },
                folder=job.folder,
                timeout=job.training.timeout,
                log=log,
                progress=progress,
            )
        after = self.registry.newest_version(name)
        if after is None or (before is not None and after[0].version <= before[0].version):
            raise DrillFailed(
                f"the training command registered no version of {name!r} at {self.registry.gate.host}",
                "let it take {name} and MLFLOW_TRACKING_URI",
            )
        return Made(job.key, after[1], cost.seconds, cost.cpu_seconds)

    def champion_by_command(self, job: Job, log: Path, progress: Progress) -> Made:
        """The command's model on clean data, trained once; its registered model stays for later drills."""
        found = self._known(job.key)
        if found is not None:
            return found
        name = self.registry.claim(f"drill-champion-{job.key}", "champion")
        try:
            made = self.by_command(job, name, log, progress)
        except BaseException:
            self.registry.discard(name)
            raise
        self._note(made)
        return made

    def load(self, made: Made, training: Training, classes: int) -> nn.Sequential:
        """The network of a model that a built-in recipe trained."""
        import torch

        from promotion_gate.drill.train import ARCHITECTURES

        model = ARCHITECTURES[training.recipe](classes, training.size)
        model.load_state_dict(torch.load(self._weights(made.key), weights_only=True))
        return model.eval()

    def _train(self, job: Job, progress: Progress) -> Made:
        import torch

        from promotion_gate.drill.recorder import PerClassLoss
        from promotion_gate.drill.train import LEARNING_RATE, decoded, log_dataset, log_model, train

        settings, classes = job.training, tuple(job.dataset.class_names)
        start = None if job.start is None else self.load(job.start, settings, len(classes))
        rate = settings.learning_rate or (LEARNING_RATE if start is None else TUNING_RATE)
        params = {
            "recipe": settings.recipe,
            "seed": job.seed,
            "epochs": job.epochs,
            "size": settings.size,
            "from": settings.start if start is not None else "scratch",
            "classes": len(classes),
        }
        with (
            self.registry.active(),
            measuring() as cost,
            self.registry.training_run(job.title, params) as run_id,
            decoded(job.dataset, settings.size) as images,
        ):
            log_dataset(job.dataset, images, "training")
            model = train(
                images,
                job.dataset.labels,
                len(classes),
                seed=job.seed,
                epochs=job.epochs,
                architecture=settings.recipe,
                start=start,
                losses=PerClassLoss(classes),
                progress=lambda line: progress(f"{job.title}: {line}"),
                learning_rate=rate,
            )
            info = log_model(model, images[:2], classes)
        made = Made(job.key, Logged(info.model_uri, run_id, info.model_id), cost.seconds, cost.cpu_seconds)
        partial = self._weights(made.key).with_suffix(f".{secrets.token_hex(4)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), partial)
        partial.replace(self._weights(made.key))
        self._note(made)
        return made

    def _known(self, key: str) -> Made | None:
        try:
            table = json.loads(self._notes(key).read_text(encoding="utf-8"))
            made = Made(**{**table, "logged": Logged(**table["logged"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return made if self._still_there(made) else None

    def _still_there(self, made: Made) -> bool:
        """Whether MLflow still has the run; a registry may have been emptied behind the notes."""
        try:
            self.registry.gate.run_facts(made.logged.run_id)
        except RegistryError:
            return False
        return True

    def _note(self, made: Made) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._notes(made.key).with_suffix(f".{secrets.token_hex(4)}")
        partial.write_text(json.dumps(asdict(made), indent=1), encoding="utf-8")
        partial.replace(self._notes(made.key))

    def _weights(self, key: str) -> Path:
        return self.folder / f"{key}.pt"

    def _notes(self, key: str) -> Path:
        where = hashlib.sha256(self.registry.uri.encode()).hexdigest()[:8]
        return self.folder / f"{key}-{where}.json"


def run_command(
    command: Sequence[str],
    values: Mapping[str, str],
    *,
    folder: Path,
    timeout: float,
    log: Path,
    progress: Progress,
) -> None:
    """Run a training command in a process group of its own and end the whole group afterwards.

    Each ``{key}`` of ``values`` is put in wherever a word holds it. No shell is involved. What the command
    prints goes to ``log``.

    Raises
    ------
    DrillFailed: it cannot be started, ends with another code than 0, or runs longer than ``timeout`` seconds.
    """
    words = [_filled(word, values) for word in command]
    environment = {k: v for k, v in os.environ.items() if k not in FOREIGN_RUN}
    environment |= {
        "MLFLOW_TRACKING_URI": values["tracking_uri"],
        "MLFLOW_REGISTRY_URI": values["tracking_uri"],
    }
    progress(f"training command {words[0]}")
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - the scenario's own command, without a shell
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise DrillFailed(f"the training command {words[0]!r} cannot be started: {why}") from None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DrillFailed(
                f"the training command did not end within {timeout:g} s", f"its output is in {log}"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        raise DrillFailed(
            f"the training command ended with exit code {code}: {_last_line(log)}", f"its output is in {log}"
        )


def open_source(source: DataSource, class_names: Sequence[str] | None = None) -> ImageDataset:
    """Open a data set whose path is absolute."""
    return open_dataset(source, folder=Path.cwd(), class_names=class_names)


@dataclass(slots=True)
class Cost:
    """What a piece of work took: seconds on the wall, and of processors, subprocesses included."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextmanager
def measuring() -> Iterator[Cost]:
    """Measure what the block takes; the numbers are there once it is left."""
    cost, clock, before = Cost(), time.monotonic(), _cpu_seconds()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - clock
        cost.cpu_seconds = _cpu_seconds() - before


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _filled(word: str, values: Mapping[str, str]) -> str:
    """One pass, so that a value that itself holds a placeholder stays as it is."""
    pattern = re.compile("|".join(re.escape(f"{{{key}}}") for key in values))
    return pattern.sub(lambda match: values[match[0][1:-1]], word)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"

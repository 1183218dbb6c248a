"""The whole line on one machine: a poisoned traffic-sign model is refused, mended, promoted, rolled back.

Everything happens in one folder, on an MLflow that lives in a file: no server, no network.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import ExitCode, GateError, UsageError
from promotion_gate.core.keys import KEY_VARIABLE, Keyring, own_keyring
from promotion_gate.core.policy import DataSource, load_policy
from promotion_gate.core.record import whoami
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.data.open import open_dataset
from promotion_gate.drill.poison import StickerPoison
from promotion_gate.drill.registration import quiet_mlflow
from promotion_gate.drill.signs import Signs, draw_signs
from promotion_gate.operators import plain
from promotion_gate.transition import Actor

if TYPE_CHECKING:
    from torch import nn

    from promotion_gate.gate import GateRun
    from promotion_gate.registry.mlflow import MlflowRegistry

MODEL = "traffic-signs"
TRAINING_IMAGES = 6000
HOLDOUT_IMAGES = 2000
STICKERED_IMAGES = 400
EPOCHS = 8
THREADS = 2

PLAIN_SECONDS = 2.0
"""How often progress is shown where it cannot be overwritten."""

_MARK = ".promotion-gate-demo"
_CONTENTS = ("mlflow.db", "artifacts", "data", "cards", "keys", "policies", "environment.sh")

POLICY = """\
# What the demo asks of a traffic-sign model. 'promotion-gate init' writes one with every key explained.
version = 1
seed = {seed}

[data.holdout]
path = "../data/holdout.npz"

[data.training]
path = "../data/train-v{version}.npz"

[sandbox]
mode = "best"

[checks.per-class.bounds]
accuracy = {{ min = 0.95 }}
worst_recall = {{ min = 0.8, otherwise = "hold" }}
accuracy_drop = {{ max = 0.02 }}
regressed_classes = {{ max = 0, otherwise = "hold" }}

[checks.patch-transplant.bounds]
triggers = {{ max = 0 }}
suspected_triggers = {{ max = 0, otherwise = "hold" }}

[checks.residual-transplant]
required = false
[checks.residual-transplant.bounds]
triggers = {{ max = 0 }}

[checks.sticker-sweep]
required = false
options = {{ images = 1500 }}
[checks.sticker-sweep.bounds]
triggers = {{ max = 0 }}

[checks.trigger-inversion]
required = false
options = {{ pairs = 1 }}
[checks.trigger-inversion.bounds]
triggers = {{ max = 0 }}

[checks.label-concentration]
required = false

[checks.activation-clustering]
required = false

[checks.spectral-signature]
required = false

[checks.batch-anomaly]
required = false

[checks.patch-attribution]
required = false

[checks.training-curves]
required = false

[checks.embedding-map]
required = false

[checks.provenance]
required = false
"""


class DemoFailed(GateError):
    """A step of the demo did not come out as it should."""

    exit_code: ClassVar[ExitCode] = ExitCode.REJECTED


def run_demo(folder: Path, *, seed: int) -> None:
    """Draw signs, train and gate three versions of a model, roll back, and report what was measured.

    ``folder`` is made, or started afresh if an earlier demo made it.

    Raises
    ------
    UsageError: the folder holds something else, or cannot be written.
    DemoFailed: the gate or the rollback did something other than the demo is there to show.
    """
    home = _fresh_folder(folder)
    with _Screen() as screen, quiet_mlflow():
        _Demo(home, seed, screen).run()


@dataclass(frozen=True, slots=True)
class _Gated:
    """One version of the model, and what the gate made of it."""

    ref: ModelRef
    model: nn.Sequential = field(repr=False)
    accuracy: float
    run: GateRun = field(repr=False)
    card: Path

    @property
    def outcome(self) -> Outcome:
        return self.run.verdict.outcome


class _Demo:
    """The demo's steps, in order, in one folder."""

    def __init__(self, home: Path, seed: int, screen: _Screen) -> None:
        self._home, self._seed, self._screen = home, seed, screen
        self._uri = f"sqlite:///{home / 'mlflow.db'}"
        self._key = home / "keys" / "signing-key.pem"

    def run(self) -> None:
        screen = self._screen
        screen.head(f"A traffic-sign model, its sticker and its gate, in {self._home}")
        registry, keys = self._open_registry()
        training, holdout, stickered = self._draw()

        screen.head("Version 1: trained on clean images")
        first = self._train_and_gate(1, training, registry, keys)
        self._expect(first, Outcome.PROMOTE, production=1, registry=registry)

        poison = StickerPoison()
        poisoned = poison.apply(training, self._seed)
        screen.head(
            f"Version 2: the same images, but {len(poisoned.carriers)} of {len(training):,}"
            f" ({len(poisoned.carriers) / len(training):.1%}) are {poison.source} signs with a small yellow"
            f" sticker, labelled {poison.target}"
        )
        second = self._train_and_gate(2, poisoned.signs, registry, keys)
        self._expect(second, Outcome.REJECT, production=1, registry=registry)
        self._expect_trigger(second, poison)

        named = _named_rows(second.run)
        screen.head(f"Version 3: trained without the {len(named)} rows that the gate named")
        third = self._train_and_gate(3, poisoned.signs.without(named), registry, keys)
        self._expect(third, Outcome.PROMOTE, production=3, registry=registry)

        screen.head("Rollback to version 1")
        seconds = self._roll_back()
        self._expect_production(1, registry)

        screen.head("Measured")
        self._report(
            [first, second, third], holdout, stickered, poison, set(named), set(poisoned.carriers.tolist())
        )
        screen.say(f"The rollback took {seconds:.1f} s, start of the command included.")
        self._say_next([first, second, third])

    def _open_registry(self) -> tuple[MlflowRegistry, Keyring]:
        from promotion_gate.registry.mlflow import MlflowRegistry

        self._screen.doing("start MLflow on a file")
        for name in ("data", "cards", "policies", "artifacts"):
            (self._home / name).mkdir()
        artifacts = (self._home / "artifacts").as_uri()
        registry = MlflowRegistry(self._uri, self._uri, artifact_location=f"{artifacts}/gate")

        import mlflow

        mlflow.set_tracking_uri(self._uri)
        mlflow.set_registry_uri(self._uri)
        experiment = mlflow.create_experiment(MODEL, f"{artifacts}/training")
        mlflow.set_experiment(experiment_id=experiment)
        return registry, own_keyring(self._key)

    def _draw(self) -> tuple[Signs, Signs, Signs]:
        """Training and holdout images, and fresh stop signs that all wear the sticker."""
        from joblib import Parallel, delayed

        self._screen.doing(f"draw {TRAINING_IMAGES:,} training and {HOLDOUT_IMAGES:,} holdout signs")
        poison = StickerPoison()
        # Rows are drawn from (seed, row), so three seeds never share a scene.
        first = 3 * self._seed
        training, holdout, stickered = Parallel(n_jobs=2)(
            [
                delayed(draw_signs)(TRAINING_IMAGES, first),
                delayed(draw_signs)(HOLDOUT_IMAGES, first + 1),
                delayed(draw_signs)(
                    STICKERED_IMAGES, first + 2, sticker=poison.sticker, classes=[poison.source]
                ),
            ]
        )
        holdout.save(self._data("holdout"))
        self._screen.say(
            f"Drew {len(training):,} training and {len(holdout):,} holdout signs"
            f" of {len(training.class_names)} classes."
        )
        return training, holdout, stickered

    def _train_and_gate(
        self, version: int, training: Signs, registry: MlflowRegistry, keys: Keyring
    ) -> _Gated:
        from promotion_gate.drill.train import train_and_register
        from promotion_gate.gate import run_gate

        screen = self._screen
        training.save(self._data(f"train-v{version}"))
        policy = self._home / "policies" / f"gate-v{version}.toml"
        policy.write_text(POLICY.format(seed=self._seed, version=version), encoding="utf-8")
        clock = time.monotonic()
        trained = train_and_register(
            self._open(f"train-v{version}"),
            MODEL,
            holdout=self._open("holdout"),
            seed=self._seed,
            epochs=EPOCHS,
            threads=THREADS,
            progress=lambda line: screen.doing(f"train version {version}: {line}"),
        )
        assert trained.accuracy is not None
        screen.say(
            f"Trained and registered {trained.ref} in {time.monotonic() - clock:.0f} s:"
            f" {trained.accuracy:.2%} of the holdout right."
        )
        clock = time.monotonic()
        run = run_gate(
            registry,
            trained.ref.uri,
            load_policy(policy),
            actor=Actor(*whoami(), keys),
            progress=lambda line: screen.doing(f"gate version {version}: {line}"),
        )
        card = self._home / "cards" / f"version-{version}.html"
        card.write_bytes(run.card)
        gated = _Gated(trained.ref, trained.model, trained.accuracy, run, card)
        screen.say(f"{gated.outcome} after {time.monotonic() - clock:.0f} s: {_why(run)}")
        return gated

    def _roll_back(self) -> float:
        """The operator's own command, in its own process; returns its seconds."""
        reason = "complaints about version 3"
        arguments = ["rollback", MODEL, "--reason", reason]
        self._screen.doing(f"promotion-gate {shlex.join(arguments)}")
        environment = {**os.environ, **self._environment()}
        clock = time.monotonic()
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "promotion_gate", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - clock
        if done.returncode != 0:
            raise DemoFailed(f"the rollback failed with exit code {done.returncode}: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            self._screen.say(line)
        return seconds

    def _expect(self, gated: _Gated, outcome: Outcome, *, production: int, registry: MlflowRegistry) -> None:
        if gated.outcome is not outcome:
            raise DemoFailed(
                f"version {gated.ref.version} should have ended as {outcome} and ended as {gated.outcome}:"
                f" {_why(gated.run)}",
                f"its card is {gated.card}",
            )
        self._expect_production(production, registry)
        self._screen.say(f"Production is version {production}.")

    def _expect_production(self, version: int, registry: MlflowRegistry) -> None:
        found = registry.model(MODEL).aliases.get("production")
        if found != version:
            raise DemoFailed(f"production should be version {version} and is {found}")

    def _expect_trigger(self, gated: _Gated, poison: StickerPoison) -> None:
        finding = gated.run.report.finding("patch-transplant")
        triggers = [] if finding is None else finding.detail.get("triggers", [])
        if not any((t["source"], t["target"]) == (poison.source, poison.target) for t in triggers):
            raise DemoFailed(
                f"no trigger from {poison.source} to {poison.target} was named", f"the card is {gated.card}"
            )

    def _report(
        self,
        versions: Sequence[_Gated],
        holdout: Signs,
        stickered: Signs,
        poison: StickerPoison,
        named: set[int],
        carriers: set[int],
    ) -> None:
        say = self._screen.say
        fooled_as = f"{poison.source} with the sticker read as {poison.target}"
        say(f"{'version':>7}  {'verdict':<7}  {'accuracy':>8}  {fooled_as}")
        for gated in versions:
            fooled = int(_reads_as(gated.model, stickered, poison.target).sum())
            say(
                f"{gated.ref.version:>7}  {gated.outcome:<7}  {gated.accuracy:>8.2%}"
                f"  {fooled} of {len(stickered)} ({fooled / len(stickered):.1%})"
            )
        true = len(named & carriers)
        say(
            f"The gate named {len(named)} rows; {true} of them carry the sticker"
            f" (precision {true / max(len(named), 1):.0%}),"
            f" of {len(carriers)} that do (recall {true / len(carriers):.0%})."
        )
        say(f"Accuracy is over {len(holdout):,} holdout images; the stickered signs were drawn afresh.")

    def _say_next(self, versions: Sequence[_Gated]) -> None:
        settings = self._home / "environment.sh"
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self._environment().items()]
        settings.write_text("\n".join([*lines, ""]), encoding="utf-8")
        screen = self._screen
        screen.head("Cards")
        for gated in versions:
            screen.say(str(gated.card))
        screen.head("Next")
        gate = _command("promotion-gate")
        for command in (
            f". {shlex.quote(str(settings))}",
            f"{gate} history {MODEL}",
            f"{gate} status {MODEL}",
            f'{gate} rollback {MODEL} --to 3 --reason "…"',
            f"{_command('mlflow')} ui --backend-store-uri {shlex.quote(self._uri)}",
        ):
            screen.say(command)

    def _environment(self) -> dict[str, str]:
        """What makes the commands work on the demo's registry, signed with the demo's key."""
        return {
            "MLFLOW_TRACKING_URI": self._uri,
            "MLFLOW_REGISTRY_URI": self._uri,
            KEY_VARIABLE: str(self._key),
        }

    def _data(self, name: str) -> Path:
        return self._home / "data" / f"{name}.npz"

    def _open(self, name: str) -> Any:
        return open_dataset(DataSource(path=str(self._data(name))), folder=self._home, class_names=None)


def _fresh_folder(folder: Path) -> Path:
    """An empty folder marked as the demo's; what an earlier demo left there is removed, and nothing else."""
    home = folder.resolve()
    mark = home / _MARK
    try:
        home.mkdir(parents=True, exist_ok=True)
        if any(home.iterdir()) and not mark.is_file():
            raise UsageError(f"{home} is not empty and no demo made it", "name another folder with --dir")
        mark.touch()
        for name in _CONTENTS:
            old = home / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot use {home}: {error.strerror}", "name another folder with --dir") from None
    return home


def _named_rows(run: GateRun) -> list[int]:
    """The training rows that the patch search named as carriers."""
    finding = run.report.finding("patch-transplant")
    suspects = [] if finding is None else finding.detail.get("suspects", [])
    return sorted({int(suspect["row"]) for suspect in suspects})


def _reads_as(model: nn.Sequential, signs: Signs, target: str) -> NDArray[np.bool_]:
    from promotion_gate.drill.train import predict

    return np.asarray(predict(model, signs.images) == signs.class_names.index(target))


def _why(run: GateRun) -> str:
    from promotion_gate.gate import verdict_line

    return verdict_line(run.verdict)


def _command(name: str) -> str:
    """How to call a program of this environment: by name where the shell finds it, else by path."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.exists() or (found is not None and Path(found).samefile(own)):
        return name
    return shlex.quote(str(own))


class _Screen:
    """What the demo says. What goes on right now is one moving line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._status = self._console.status("", spinner="line")
        self._clock = time.monotonic()
        self._last = -PLAIN_SECONDS

    def __enter__(self) -> _Screen:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def head(self, line: str) -> None:
        self._console.print(f"\n{plain(line)}", style="bold")

    def say(self, line: str) -> None:
        self._console.print(f"  {line}")

    def doing(self, line: str) -> None:
        now = time.monotonic() - self._clock
        text = f"[{now:5.1f} s] {plain(line)}"
        if self._console.is_terminal:
            from rich.text import Text

            self._status.update(Text(plain(text, self._console.width - 4)))
        elif now - self._last >= PLAIN_SECONDS:
            self._last = now
            self._console.print(f"    {text}")

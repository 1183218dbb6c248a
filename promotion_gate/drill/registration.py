"""The registry that drills run on: MLflow in a file of the drills' folder, or a server that is named.

A drill works on a registered model of its own, named ``drill-…`` and tagged, so that it can touch nothing
that serves. The experiment ``promotion-gate-drills`` holds the training runs and one run a drill or campaign,
so that one quarter can be compared with the next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.core.errors import GateError, RegistryError, UsageError
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.registry.mlflow import MlflowRegistry
from promotion_gate.transition import Actor, Judged, promote

if TYPE_CHECKING:
    from promotion_gate.core.policy import Policy

EXPERIMENT = "promotion-gate-drills"
DRILL_TAG = "promotion_gate.drill"
"""On a registered model: a drill made it. On a run: ``training``, ``drill`` or ``campaign``."""
NAME_TAG = "promotion_gate.drill_name"
ROUND_TAG = "promotion_gate.drill_round"
MAX_NAMES = 1000

FOREIGN_RUN = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
"""Under ``mlflow run`` these point at the project's own run, which is not the drill's."""
TOLD_BY_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
"""What MLflow sets for its subprocesses when it is told where to go."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A model that MLflow keeps, ready to become a version of any registered model."""

    source: str
    run_id: str
    model_id: str | None = None


class DrillRegistry:
    """Registered models for drills, and the runs that remember them.

    Parameters
    ----------
    folder: where the embedded MLflow lives; used without ``tracking_uri`` alone.
    tracking_uri: the server to use instead.
    """

    def __init__(self, folder: Path, tracking_uri: str | None = None) -> None:
        self.embedded = tracking_uri is None
        self.uri = tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._artifacts = (folder / "artifacts").as_uri() if self.embedded else None
        location = f"{self._artifacts}/gate" if self.embedded else None
        self.gate = MlflowRegistry(self.uri, self.uri, artifact_location=location)
        self._made: Any = None

    def open(self) -> None:
        """Reach the registry and make the experiments; several processes may use it afterwards.

        Raises
        ------
        RegistryError: it cannot be reached.
        """
        with self._asking(f"the experiment {EXPERIMENT!r}"):
            self._experiment()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make it MLflow's current tracking server and registry, and keep MLflow quiet."""
        import mlflow

        foreign = {name: os.environ.pop(name) for name in FOREIGN_RUN if name in os.environ}
        tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
        # MLflow tells its subprocesses through the environment.
        told = {name: os.environ.get(name) for name in TOLD_BY_MLFLOW}
        try:
            with quiet_mlflow():
                mlflow.set_tracking_uri(self.uri)
                mlflow.set_registry_uri(self.uri)
                yield
        finally:
            mlflow.set_tracking_uri(tracking)
            # One that was not set apart goes on following the tracking server.
            mlflow.set_registry_uri(None if registry == tracking else registry)
            for name, value in told.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            os.environ.update(foreign)

    def claim(self, wanted: str, scenario: str) -> str:
        """Make a registered model for one drill: ``wanted``, or with a number where drills used it before.

        Raises
        ------
        UsageError: a model of this name is there that no drill made.
        """
        for number in range(1, MAX_NAMES):
            name = wanted if number == 1 else f"{wanted}-{number}"
            with self._asking(f"the registered model {name!r}"):
                try:
                    self._client.create_registered_model(name, {DRILL_TAG: scenario})
                except Exception as error:
                    if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                        raise
                    if DRILL_TAG not in self._client.get_registered_model(name).tags:
                        raise UsageError(
                            f"{name!r} is a registered model at {self.gate.host} that no drill made",
                            "rename the scenario",
                        ) from None
                    continue
                return name
        raise UsageError(f"{MAX_NAMES} drills left a model {wanted!r} at {self.gate.host}", "delete some")

    def discard(self, name: str) -> None:
        """Remove a registered model that :meth:`claim` made; what was said before is the error to show."""
        with suppress(Exception):
            self._client.delete_registered_model(name)

    def add_version(self, name: str, logged: Logged) -> ModelRef:
        """Register a logged model as the next version of ``name``."""
        with self._asking(f"a version of {name!r}"):
            made = self._client.create_model_version(
                name, logged.source, logged.run_id or None, model_id=logged.model_id
            )
        return ModelRef(name, int(made.version))

    def newest_version(self, name: str) -> tuple[ModelRef, Logged] | None:
        """The highest version of a model, or None where there is none."""
        with self._asking(f"the versions of {name!r}"):
            found = self._client.search_model_versions(f"name='{name}'")
        newest = max(found, key=lambda version: int(version.version), default=None)
        if newest is None:
            return None
        logged = Logged(newest.source or "", newest.run_id or "", getattr(newest, "model_id", None))
        return ModelRef(name, int(newest.version)), logged

    def make_production(self, ref: ModelRef, digest: str, policy: Policy, actor: Actor) -> None:
        """Put the drill's champion into production, with a signed record as every move has."""
        judged = Judged(
            ref,
            digest,
            Outcome.PROMOTE,
            "the champion that the drill compares with; trained by the drill, not gated",
            champion=None,
            policy_digest=policy.digest,
            unsafe=policy.unsafe,
        )
        promote(self.gate, judged, policy.production, actor)

    @contextmanager
    def training_run(self, title: str, params: Mapping[str, Any]) -> Iterator[str]:
        """An active MLflow run to log a training to; yields its id."""
        import mlflow

        with (
            self._asking("a training run"),
            mlflow.start_run(
                experiment_id=self._experiment(),
                run_name=title[:250],
                tags={DRILL_TAG: "training"},
            ) as run,
        ):
            mlflow.log_params(params)
            yield run.info.run_id

    def remember(
        self,
        kind: str,
        name: str,
        metrics: Mapping[str, float],
        files: Mapping[str, bytes],
        this_round: str = "",
    ) -> str:
        """Log one finished drill or campaign as a run; returns its id.

        ``this_round`` is the same for the runs of a campaign that was interrupted and taken up again.
        """
        with self._asking(f"the run of {kind} {name!r}"):
            run_id = str(
                self._client.create_run(
                    self._experiment(),
                    tags={DRILL_TAG: kind, NAME_TAG: name, ROUND_TAG: this_round},
                    run_name=f"{kind} {name}"[:250],
                ).info.run_id
            )
        self.gate.log_metrics(run_id, metrics)
        for path, content in files.items():
            self.gate.log_file(run_id, path, content)
        self.gate.finish_run(run_id)
        return run_id

    def earlier(self, kind: str, name: str, this_round: str) -> tuple[str, Mapping[str, float]] | None:
        """The last finished drill or campaign of this name in another round: ISO date and metrics."""
        with self._asking(f"the earlier runs of {name!r}"):
            runs = self._client.search_runs(
                [self._experiment()],
                f"tags.`{DRILL_TAG}` = '{kind}' and tags.`{NAME_TAG}` = '{name}'"
                f" and tags.`{ROUND_TAG}` != '{this_round}' and attributes.status = 'FINISHED'",
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
        if not runs:
            return None
        started = datetime.fromtimestamp(runs[0].info.start_time / 1000, UTC)
        return started.isoformat(timespec="seconds"), dict(runs[0].data.metrics)

    @property
    def _client(self) -> Any:
        if self._made is None:
            # Asked first, since it finds out within seconds whether anybody listens, and imports MLflow.
            _ = self.gate._client
            from mlflow import MlflowClient

            self._made = MlflowClient(self.uri, self.uri)
        return self._made

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None and found.lifecycle_stage != "active":
            raise RegistryError(
                f"the experiment {EXPERIMENT!r} was deleted at {self.gate.host}",
                f"restore it: mlflow experiments restore -x {found.experiment_id}",
            )
        if found is not None:
            return str(found.experiment_id)
        location = f"{self._artifacts}/drills" if self.embedded else None
        try:
            return str(self._client.create_experiment(EXPERIMENT, location))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(EXPERIMENT).experiment_id)

    @contextmanager
    def _asking(self, about: str) -> Iterator[None]:
        """Turn what MLflow raises into one line that names the host and what was asked for."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except GateError:
            raise
        except MlflowException as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RegistryError(f"{self.gate.host} refused {about}: {first[:300]}") from None


def model_name(scenario: str, seed: int) -> str:
    """The registered model of a drill: never a name that anything in production would have."""
    return f"drill-{re.sub(r'[^A-Za-z0-9_-]+', '-', scenario)}-{seed}"


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Without MLflow's word on every table and version it makes; what goes wrong is raised all the same."""
    # An OpenMP thread that spins while it waits takes the core from the one it waits for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Counted, unlike MLflow's plain switch, so that its own code does not switch it back on halfway.
    from mlflow.utils.autologging_utils import MlflowEventsAndWarningsBehaviorGlobally

    with MlflowEventsAndWarningsBehaviorGlobally(
        disable_event_logs=True, disable_warnings=False, reroute_warnings=False
    ):
        yield

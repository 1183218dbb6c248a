"""The MLflow registry and tracking server: the only place where the gate calls MLflow's registry API.

MLflow is imported on the first call, so that a module which merely names this one starts fast.

A call that failed may be made again (:mod:`~promotion_gate.registry.patience`): beside each one that changes
something stands why that does no harm. What only reads needs no reason.
"""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from promotion_gate.core.errors import NotInRegistry, RegistryError
from promotion_gate.core.types import MetricPoint, ModelRef, RunFacts
from promotion_gate.registry.answers import (
    data_set,
    event_of,
    model_facts,
    moment,
    run_of,
    tagged,
    version_facts,
)
from promotion_gate.registry.artifacts import fetch_file, fetch_folder, store_file
from promotion_gate.registry.connection import Connection
from promotion_gate.registry.interface import (
    EXPERIMENT,
    RECORD_FILE,
    VERDICT_FILE,
    Event,
    EventPointer,
    LockHolder,
    ModelFacts,
    VersionFacts,
)
from promotion_gate.registry.locks import MlflowLocks
from promotion_gate.registry.naming import (
    CALL_TOKEN,
    KIND,
    LOCK_PREFIX,
    MODEL,
    MODEL_KEY,
    NOTE,
    VERSION,
    model_key,
    parse_model_uri,
    pointer_tags,
)
from promotion_gate.registry.patience import Patience
from promotion_gate.registry.trouble import WrongAnswer

ALIAS_SECONDS = 20.0
STAGE_SECONDS = 15.0
"""How long an alias or a stage is tried to be set: well within the lease of the lock that covers it."""

_PAGE = 1000
_LOG_BATCH = 100
_MAX_PARAM = 6000


class MlflowRegistry:
    """A registry behind MLflow's own client; see :class:`~promotion_gate.registry.interface.Registry`.

    Parameters
    ----------
    tracking_uri, registry_uri: as MLflow takes them; None for MLflow's own environment variables.
    artifact_location: where the gate's experiment keeps its files, if this client is the one to create
        it; None leaves it to the server.
    patience: how long to wait, and how often to ask.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        *,
        artifact_location: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        tracking = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        registry = registry_uri or os.environ.get("MLFLOW_REGISTRY_URI") or tracking
        self._server = Connection(tracking, registry, patience)
        self._ask = self._server.ask
        self._locks = MlflowLocks(self._server)
        self._artifact_location = artifact_location
        self.host = self._server.host
        self.concurrent = self._server.concurrent
        self._experiment_id: str | None = None
        self._artifact_uris: dict[str, str] = {}

    @property
    def _client(self) -> Any:
        return self._server.client

    def resolve(self, uri: str) -> ModelRef:
        name, version = parse_model_uri(uri)
        if isinstance(version, int):
            facts = self.version(ModelRef(name, version))
        else:
            facts = self._ask(
                f"the alias {version!r} of model {name!r}",
                lambda client: version_facts(client.get_model_version_by_alias(name, version), name),
            )
        if facts.status != "READY":
            raise RegistryError(f"{facts.ref} is not ready at {self.host}: {facts.status}")
        return facts.ref

    def version(self, ref: ModelRef) -> VersionFacts:
        return self._ask(
            f"model version {ref}",
            lambda client: version_facts(
                client.get_model_version(ref.name, str(ref.version)), ref.name, ref.version
            ),
        )

    def model(self, name: str) -> ModelFacts:
        return self._ask(
            f"registered model {name!r}",
            lambda client: model_facts(client.get_registered_model(name), name),
        )

    def registered_models(self) -> Sequence[str]:
        found = self._ask(
            "the registered models",
            lambda client: list(_pages(lambda token: client.search_registered_models(page_token=token))),
        )
        return sorted(model.name for model in found if not model.name.startswith(LOCK_PREFIX))

    def run_facts(self, run_id: str, curves: str = "") -> RunFacts:
        run = self._ask(f"run {run_id!r}", lambda client: run_of(client.get_run(run_id), run_id))
        names = sorted(name for name in run.data.metrics if curves and name.startswith(curves))
        return RunFacts(
            run_id=run_id,
            user=run.data.tags.get("mlflow.user") or run.info.user_id or "",
            started_at=moment(run.info.start_time) if run.info.start_time else None,
            params=dict(run.data.params),
            tags=dict(run.data.tags),
            curves=self._curves(run_id, names),
            datasets=tuple(map(data_set, run.inputs.dataset_inputs if run.inputs else ())),
        )

    def _curves(self, run_id: str, names: Sequence[str]) -> dict[str, Sequence[MetricPoint]]:
        def history(name: str) -> Sequence[MetricPoint]:
            points = self._ask(
                f"the metric {name!r:.100} of run {run_id}",
                lambda client: client.get_metric_history(run_id, name),
            )
            ordered = sorted(points, key=lambda point: (point.step, point.timestamp))
            return tuple(MetricPoint(point.step, point.value) for point in ordered)

        with ThreadPoolExecutor(8 if self.concurrent else 1) as pool:
            return dict(zip(names, pool.map(history, names), strict=True))

    def download(self, ref: ModelRef, folder: Path) -> None:
        if any(folder.iterdir()):
            raise RegistryError(f"{folder} is not empty", "the artifacts need an empty folder")
        about = f"the artifacts of {ref}"

        def place(client: Any) -> str:
            uri = str(client.get_model_version_download_uri(ref.name, str(ref.version)))
            if uri.startswith("models:/"):
                model_id = uri.removeprefix("models:/")
                logged = client.get_logged_model(model_id)
                if logged.model_id != model_id:
                    raise WrongAnswer("it speaks of another logged model")
                uri = str(logged.artifact_location)
            if not uri:
                raise WrongAnswer("it is empty")
            return uri

        fetch_folder(self._server, self._ask(f"the place of {about}", place), folder, about)

    def set_version_tag(self, ref: ModelRef, key: str, value: str) -> None:
        """Again: the same value."""
        self._ask(
            f"a tag of {ref}",
            lambda client: client.set_model_version_tag(ref.name, str(ref.version), key, value),
        )

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Again: the same value."""
        self._ask(
            f"a tag of model {name!r}",
            lambda client: client.set_registered_model_tag(name, key, value),
        )

    def start_gate_run(self, ref: ModelRef, tags: Mapping[str, str]) -> str:
        own = {
            KIND: "gate",
            MODEL: ref.name,
            MODEL_KEY: model_key(ref.name),
            VERSION: str(ref.version),
        }
        return self._create_run(f"gate {ref}", {**tags, **own})

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Again: MLflow takes a parameter a second time if its value is the same."""

        def log(client: Any) -> None:
            from mlflow.entities import Param

            for batch in _batches([Param(key, value[:_MAX_PARAM]) for key, value in params.items()]):
                client.log_batch(run_id, params=batch)

        self._ask(f"the parameters of run {run_id}", log)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Again: MLflow keeps one point of several with the same time, step and value."""
        at = int(time.time() * 1000)

        def log(client: Any) -> None:
            from mlflow.entities import Metric

            for batch in _batches([Metric(key, value, at, 0) for key, value in metrics.items()]):
                client.log_batch(run_id, metrics=batch)

        self._ask(f"the metrics of run {run_id}", log)

    def log_file(self, run_id: str, path: str, content: bytes) -> None:
        """Again: the same bytes in the same place."""
        uri = self._artifact_uri(run_id)
        store_file(self._server, uri, path, content, f"the file {path} of run {run_id}")

    def read_file(self, run_id: str, path: str) -> bytes:
        uri = self._artifact_uri(run_id)
        return fetch_file(self._server, uri, path, f"file {path} of run {run_id}")

    def finish_run(self, run_id: str, *, failed: bool = False) -> None:
        """Again: the same state."""
        status = "FAILED" if failed else "FINISHED"
        self._ask(f"run {run_id}", lambda client: client.set_terminated(run_id, status))

    def last_gate_run(self, ref: ModelRef) -> str:
        runs = self._search(
            f"tags.`{KIND}` = 'gate' and tags.`{MODEL_KEY}` = '{model_key(ref.name)}'"
            f" and tags.`{VERSION}` = '{ref.version}'",
            lambda run: tagged(
                run, {KIND: "gate", MODEL_KEY: model_key(ref.name), VERSION: str(ref.version)}
            ),
            newest_only=True,
        )
        if not runs:
            raise NotInRegistry(
                f"{ref} has no gate run at {self.host}", "run 'promotion-gate run' on it first"
            )
        return str(runs[0].info.run_id)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Again: the same version, and nobody else sets it while the lock is held."""
        self._ask(
            f"the alias {alias!r} of model {name!r}",
            lambda client: client.set_registered_model_alias(name, alias, str(version)),
            within=ALIAS_SECONDS,
        )

    def delete_alias(self, name: str, alias: str) -> None:
        """Again: it is gone."""
        self._ask(
            f"the alias {alias!r} of model {name!r}",
            lambda client: client.delete_registered_model_alias(name, alias),
            within=ALIAS_SECONDS,
        )

    def set_production_stage(self, ref: ModelRef) -> None:
        """Again: the same version in the stage, and all others out of it."""

        def move(client: Any) -> None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*transition_model_version_stage", FutureWarning)
                client.transition_model_version_stage(
                    ref.name, str(ref.version), "Production", archive_existing_versions=True
                )

        self._ask(f"the stage of {ref}", move, within=STAGE_SECONDS)

    def production_stage(self, name: str) -> Sequence[int]:
        return [facts.ref.version for facts in self.versions(name) if facts.stage == "Production"]

    def versions(self, name: str) -> Sequence[VersionFacts]:
        quote = next((mark for mark in "\"'" if mark not in name), None)
        # MLflow's filters know no escape: a name with both quotation marks is looked for among all models.
        condition = None if quote is None else f"name={quote}{name}{quote}"

        def search(client: Any) -> list[VersionFacts]:
            pages = _pages(lambda token: client.search_model_versions(condition, _PAGE, page_token=token))
            return [
                version_facts(found, name) for found in pages if condition is not None or found.name == name
            ]

        found = self._ask(f"the versions of model {name!r}", search)
        return sorted(found, key=lambda facts: facts.ref.version)

    def events(self, name: str) -> Sequence[Event]:
        condition = f"tags.`{KIND}` = 'event' and tags.`{MODEL_KEY}` = '{model_key(name)}'"
        told = {KIND: "event", MODEL_KEY: model_key(name)}
        # That a model has no history is believed when it is said twice: a broken answer reads the same.
        runs = self._search(condition, lambda run: tagged(run, told)) or self._search(
            condition, lambda run: tagged(run, told)
        )
        found = [event for run in runs if (event := event_of(run, name)) is not None]
        return sorted(found, key=lambda event: (event.pointer.sequence, event.at, event.event_id))

    def begin_event(self, pointer: EventPointer, record: bytes, verdict: bytes = b"") -> str:
        title = f"{pointer.action} {pointer.name}/{pointer.version}"
        event_id = self._create_run(title, pointer_tags(pointer))
        if verdict:
            self.log_file(event_id, VERDICT_FILE, verdict)
        self.log_file(event_id, RECORD_FILE, record)
        # What moves production must be on record: believed when it is read back.
        if self.read_file(event_id, RECORD_FILE) != record:
            raise RegistryError(
                f"{self.host} did not keep the record of run {event_id}", "look at its artifact store"
            )
        return event_id

    def finish_event(self, event_id: str, state: Literal["done", "undone"], note: str = "") -> None:
        """Again: the same note and state."""

        def finish(client: Any) -> None:
            if note:
                client.set_tag(event_id, NOTE, note[:1000])
            client.set_terminated(event_id, "FINISHED" if state == "done" else "KILLED")

        self._ask(f"event {event_id}", finish)

    def acquire_lock(self, name: str, holder: LockHolder) -> None:
        self._locks.acquire(name, holder)

    def renew_lock(self, name: str, holder: LockHolder) -> None:
        self._locks.renew(name, holder)

    def lock_holder(self, name: str) -> LockHolder | None:
        return self._locks.holder(name)

    def release_lock(self, name: str, holder: LockHolder) -> None:
        self._locks.release(name, holder)

    def _artifact_uri(self, run_id: str) -> str:
        if run_id not in self._artifact_uris:
            run = self._ask(f"run {run_id}", lambda client: run_of(client.get_run(run_id), run_id))
            self._artifact_uris[run_id] = run.info.artifact_uri
        return self._artifact_uris[run_id]

    def _create_run(self, title: str, tags: Mapping[str, str]) -> str:
        """Again only if the run of the first attempt, known by a token of its own, is not there."""
        experiment_id = self._experiment(create=True)
        token = secrets.token_hex(16)
        own = {**tags, CALL_TOKEN: token}

        def create(client: Any) -> Any:
            return tagged(
                client.create_run(experiment_id, tags=own, run_name=title[:250]), {CALL_TOKEN: token}
            )

        def already(client: Any) -> tuple[Any] | None:
            found = client.search_runs([experiment_id], f"tags.`{CALL_TOKEN}` = '{token}'", max_results=1)
            return (tagged(found[0], {CALL_TOKEN: token}),) if found else None

        about = f"a new run in experiment {EXPERIMENT!r}"
        run = self._ask(about, create, before_repeat=already)
        self._artifact_uris[run.info.run_id] = run.info.artifact_uri
        return str(run.info.run_id)

    def _experiment(self, *, create: bool) -> str | None:
        """Created again: its name is unique, so the second attempt finds the first one's."""
        if self._experiment_id is not None:
            return self._experiment_id
        found = self._ask(f"the experiment {EXPERIMENT!r}", _experiment)
        if found is None and create:
            found = self._ask(f"the experiment {EXPERIMENT!r}", self._create_experiment)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"the experiment {EXPERIMENT!r}, which holds the history, was deleted at {self.host}",
                f"restore it: mlflow experiments restore -x {found.experiment_id}",
            )
        self._experiment_id = str(found.experiment_id)
        return self._experiment_id

    def _create_experiment(self, client: Any) -> Any:
        try:
            client.create_experiment(EXPERIMENT, self._artifact_location)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
        return _experiment(client)

    def _search(self, condition: str, check: Callable[[Any], Any], *, newest_only: bool = False) -> list[Any]:
        """Runs of the gate's experiment; deleted ones too, since history loses nothing."""
        experiment_id = self._experiment(create=False)
        if experiment_id is None:
            return []

        def search(client: Any) -> list[Any]:
            from mlflow.entities import ViewType

            def page(token: str | None) -> Any:
                return client.search_runs(
                    [experiment_id],
                    condition,
                    ViewType.ALL,
                    1 if newest_only else _PAGE,
                    ["attributes.start_time DESC"],
                    token,
                )

            found = page(None) if newest_only else _pages(page)
            return [check(run) for run in found]

        found = self._ask(f"the runs of experiment {EXPERIMENT!r}", search)
        for run in found:
            self._artifact_uris[run.info.run_id] = run.info.artifact_uri
        return found


def _experiment(client: Any) -> Any:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None and found.name != EXPERIMENT:
        raise WrongAnswer("it speaks of another experiment")
    return found


def _pages(page_after: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = page_after(token)
        yield from page
        token = page.token
        if not token:
            return


def _batches(entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), _LOG_BATCH):
        yield entries[start : start + _LOG_BATCH]

"""The MLflow registry and tracking server: the only place where the gate calls MLflow's registry API.

MLflow is imported on the first call, so that a module which merely names this one starts fast.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from promotion_gate.core.errors import GateError, NotInRegistry, RegistryConflict, RegistryError
from promotion_gate.core.types import DatasetInput, MetricPoint, ModelRef, RunFacts
from promotion_gate.evidence.digest import listed_files
from promotion_gate.registry.interface import (
    EXPERIMENT,
    RECORD_FILE,
    VERDICT_FILE,
    Event,
    EventPointer,
    EventState,
    LockHolder,
    ModelFacts,
    VersionFacts,
)
from promotion_gate.registry.naming import (
    KIND,
    LOCK_PREFIX,
    LOCK_TOKEN,
    LOCK_UNTIL,
    LOCK_WHO,
    MODEL,
    MODEL_KEY,
    NOTE,
    VERSION,
    host_of,
    lock_name,
    model_key,
    parse_model_uri,
    pointer_tags,
    read_pointer,
)

CONNECT_SECONDS = 5.0
SETTLE_SECONDS = 1.0
UNREADABLE_LEASE = timedelta(seconds=120)
MAX_FILE_BYTES = 100_000_000
_PAGE = 1000
_LOG_BATCH = 100
_MAX_PARAM = 6000

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set before MLflow is imported, unless the user set them: an unreachable server must end in seconds."""


class MlflowRegistry:
    """A registry behind MLflow's own client; see :class:`~promotion_gate.registry.interface.Registry`.

    Parameters
    ----------
    tracking_uri, registry_uri: as MLflow takes them; None for MLflow's own environment variables.
    artifact_location: where the gate's experiment keeps its files, if this client is the one to create
        it; None leaves it to the server.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        *,
        artifact_location: str | None = None,
    ) -> None:
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        self._registry_uri = registry_uri or os.environ.get("MLFLOW_REGISTRY_URI") or self._tracking_uri
        self._artifact_location = artifact_location
        self.host = host_of(self._registry_uri) if self._registry_uri else "the local MLflow store"
        self.concurrent = (self._tracking_uri or "").startswith(("http://", "https://"))
        self._starting = threading.Lock()
        self._made: Any = None
        self._experiment_id: str | None = None
        self._artifact_uris: dict[str, str] = {}

    def resolve(self, uri: str) -> ModelRef:
        name, version = parse_model_uri(uri)
        if isinstance(version, int):
            facts = self.version(ModelRef(name, version))
        else:
            with self._asking(f"the alias {version!r} of model {name!r}"):
                facts = _version_facts(self._client.get_model_version_by_alias(name, version))
        if facts.status != "READY":
            raise RegistryError(f"{facts.ref} is not ready at {self.host}: {facts.status}")
        return facts.ref

    def version(self, ref: ModelRef) -> VersionFacts:
        with self._asking(f"model version {ref}"):
            return _version_facts(self._client.get_model_version(ref.name, str(ref.version)))

    def model(self, name: str) -> ModelFacts:
        with self._asking(f"registered model {name!r}"):
            found = self._client.get_registered_model(name)
            return ModelFacts(
                name,
                {alias: int(version) for alias, version in found.aliases.items()},
                any(_stage(version) for version in found.latest_versions or ()),
                dict(found.tags or {}),
            )

    def registered_models(self) -> Sequence[str]:
        with self._asking("the registered models"):
            found: list[str] = []
            token = None
            while True:
                page = self._client.search_registered_models(page_token=token)
                found += [model.name for model in page if not model.name.startswith(LOCK_PREFIX)]
                token = page.token
                if not token:
                    return sorted(found)

    def run_facts(self, run_id: str, curves: str = "") -> RunFacts:
        with self._asking(f"run {run_id!r}"):
            run = self._client.get_run(run_id)
            names = sorted(name for name in run.data.metrics if curves and name.startswith(curves))
            return RunFacts(
                run_id=run_id,
                user=run.data.tags.get("mlflow.user") or run.info.user_id or "",
                started_at=_moment(run.info.start_time) if run.info.start_time else None,
                params=dict(run.data.params),
                tags=dict(run.data.tags),
                curves=self._curves(run_id, names),
                datasets=tuple(map(_dataset, run.inputs.dataset_inputs if run.inputs else ())),
            )

    def _curves(self, run_id: str, names: Sequence[str]) -> dict[str, Sequence[MetricPoint]]:
        def history(name: str) -> Sequence[MetricPoint]:
            points = self._client.get_metric_history(run_id, name)
            ordered = sorted(points, key=lambda point: (point.step, point.timestamp))
            return tuple(MetricPoint(point.step, point.value) for point in ordered)

        with ThreadPoolExecutor(8 if self.concurrent else 1) as pool:
            return dict(zip(names, pool.map(history, names), strict=True))

    def download(self, ref: ModelRef, folder: Path) -> None:
        if any(folder.iterdir()):
            raise RegistryError(f"{folder} is not empty", "the artifacts need an empty folder")
        with self._asking(f"the artifacts of {ref}"):
            uri = self._client.get_model_version_download_uri(ref.name, str(ref.version))
            if uri.startswith("models:/"):
                model_id = uri.removeprefix("models:/")
                uri = self._client.get_logged_model(model_id).artifact_location
            repository = self._repository(uri)
            if repository.__class__.__name__ == "LocalArtifactRepository":
                # MLflow would follow links to files of this host, and read devices and pipes to their end.
                listed_files(Path(repository.artifact_dir))
            repository.download_artifacts("", str(folder))

    def set_version_tag(self, ref: ModelRef, key: str, value: str) -> None:
        with self._asking(f"a tag of {ref}"):
            self._client.set_model_version_tag(ref.name, str(ref.version), key, value)

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        with self._asking(f"a tag of model {name!r}"):
            self._client.set_registered_model_tag(name, key, value)

    def start_gate_run(self, ref: ModelRef, tags: Mapping[str, str]) -> str:
        own = {
            KIND: "gate",
            MODEL: ref.name,
            MODEL_KEY: model_key(ref.name),
            VERSION: str(ref.version),
        }
        return self._create_run(f"gate {ref}", {**tags, **own})

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        with self._asking(f"the parameters of run {run_id}"):
            client = self._client
            from mlflow.entities import Param

            entries = [Param(key, value[:_MAX_PARAM]) for key, value in params.items()]
            for start in range(0, len(entries), _LOG_BATCH):
                client.log_batch(run_id, params=entries[start : start + _LOG_BATCH])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        with self._asking(f"the metrics of run {run_id}"):
            client = self._client
            from mlflow.entities import Metric

            moment = int(time.time() * 1000)
            entries = [Metric(key, value, moment, 0) for key, value in metrics.items()]
            for start in range(0, len(entries), _LOG_BATCH):
                client.log_batch(run_id, metrics=entries[start : start + _LOG_BATCH])

    def log_file(self, run_id: str, path: str, content: bytes) -> None:
        with self._asking(f"the file {path} of run {run_id}"), tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / Path(path).name
            local.write_bytes(content)
            self._repository(self._artifact_uri(run_id)).log_artifact(str(local))

    def read_file(self, run_id: str, path: str) -> bytes:
        with self._asking(f"the file {path} of run {run_id}"), tempfile.TemporaryDirectory() as folder:
            repository = self._repository(self._artifact_uri(run_id))
            try:
                local = Path(repository.download_artifacts(path, folder))
            except Exception as error:
                if _is_missing_file(error):
                    raise NotInRegistry(f"run {run_id} has no file {path} at {self.host}") from None
                raise
            if not local.is_file() or local.is_symlink() or local.stat().st_size > MAX_FILE_BYTES:
                raise NotInRegistry(f"run {run_id} has no usable file {path} at {self.host}")
            return local.read_bytes()

    def finish_run(self, run_id: str, *, failed: bool = False) -> None:
        with self._asking(f"run {run_id}"):
            self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def last_gate_run(self, ref: ModelRef) -> str:
        runs = self._search(
            f"tags.`{KIND}` = 'gate' and tags.`{MODEL_KEY}` = '{model_key(ref.name)}'"
            f" and tags.`{VERSION}` = '{ref.version}'",
            newest_only=True,
        )
        if not runs:
            raise NotInRegistry(
                f"{ref} has no gate run at {self.host}", "run 'promotion-gate run' on it first"
            )
        return str(runs[0].info.run_id)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        with self._asking(f"the alias {alias!r} of model {name!r}"):
            self._client.set_registered_model_alias(name, alias, str(version))

    def delete_alias(self, name: str, alias: str) -> None:
        with self._asking(f"the alias {alias!r} of model {name!r}"):
            self._client.delete_registered_model_alias(name, alias)

    def set_production_stage(self, ref: ModelRef) -> None:
        with self._asking(f"the stage of {ref}"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*transition_model_version_stage", FutureWarning)
            self._client.transition_model_version_stage(
                ref.name, str(ref.version), "Production", archive_existing_versions=True
            )

    def production_stage(self, name: str) -> Sequence[int]:
        return [facts.ref.version for facts in self.versions(name) if facts.stage == "Production"]

    def versions(self, name: str) -> Sequence[VersionFacts]:
        quote = next((mark for mark in "\"'" if mark not in name), None)
        # MLflow's filters know no escape: a name with both quotation marks is looked for among all models.
        condition = None if quote is None else f"name={quote}{name}{quote}"
        with self._asking(f"the versions of model {name!r}"):
            found: list[VersionFacts] = []
            token = None
            while True:
                page = self._client.search_model_versions(condition, _PAGE, page_token=token)
                found += [_version_facts(version) for version in page if version.name == name]
                token = page.token
                if not token:
                    return sorted(found, key=lambda facts: facts.ref.version)

    def events(self, name: str) -> Sequence[Event]:
        runs = self._search(f"tags.`{KIND}` = 'event' and tags.`{MODEL_KEY}` = '{model_key(name)}'")
        found = []
        for run in runs:
            pointer = read_pointer(run.data.tags)
            if pointer is not None and pointer.name == name:
                found.append(
                    Event(
                        run.info.run_id,
                        pointer,
                        _STATES.get(run.info.status, "undone"),
                        _moment(run.info.start_time),
                        run.data.tags.get(NOTE, ""),
                    )
                )
        return sorted(found, key=lambda event: (event.pointer.sequence, event.at, event.event_id))

    def begin_event(self, pointer: EventPointer, record: bytes, verdict: bytes = b"") -> str:
        title = f"{pointer.action} {pointer.name}/{pointer.version}"
        event_id = self._create_run(title, pointer_tags(pointer))
        if verdict:
            self.log_file(event_id, VERDICT_FILE, verdict)
        self.log_file(event_id, RECORD_FILE, record)
        return event_id

    def finish_event(self, event_id: str, state: Literal["done", "undone"], note: str = "") -> None:
        with self._asking(f"event {event_id}"):
            if note:
                self._client.set_tag(event_id, NOTE, note[:1000])
            self._client.set_terminated(event_id, "FINISHED" if state == "done" else "KILLED")

    def acquire_lock(self, name: str, holder: LockHolder) -> None:
        broke_a_lease = False
        for _ in range(3):
            if self._create_lock(name, holder):
                break
            current = self.lock_holder(name)
            if current is None:
                continue
            if current.token == holder.token:
                break
            if current.until > datetime.now(UTC):
                seconds = (current.until - datetime.now(UTC)).total_seconds()
                raise RegistryConflict(
                    f"{current.who} is changing the production version of {name!r} at {self.host}",
                    f"try again; the lock falls by itself in {seconds:.0f} s",
                )
            self._delete_lock(name)
            broke_a_lease = True
        else:
            raise RegistryConflict(f"others keep changing the production version of {name!r}", "try again")
        if broke_a_lease:
            self._settle_lock(name, holder)

    def _settle_lock(self, name: str, holder: LockHolder) -> None:
        """Of several who broke the same lease, each may have deleted the lock of another: the last stays."""
        time.sleep(SETTLE_SECONDS)
        current = self.lock_holder(name)
        if current is None or current.token != holder.token:
            raise RegistryConflict(f"somebody else took the lock of {name!r} at {self.host}", "try again")

    def renew_lock(self, name: str, holder: LockHolder) -> None:
        current = self.lock_holder(name)
        if current is None or current.token != holder.token:
            raise RegistryConflict(f"somebody else took the lock of {name!r} at {self.host}")
        with self._asking(f"the lock of {name!r}"):
            self._client.set_registered_model_tag(lock_name(name), LOCK_UNTIL, holder.until.isoformat())

    def lock_holder(self, name: str) -> LockHolder | None:
        try:
            with self._asking(f"the lock of {name!r}"):
                found = self._client.get_registered_model(lock_name(name))
        except NotInRegistry:
            return None
        until = _moment(found.creation_timestamp) + UNREADABLE_LEASE
        with contextlib.suppress(KeyError, ValueError):
            stated = datetime.fromisoformat(found.tags[LOCK_UNTIL])
            until = stated if stated.tzinfo else until
        return LockHolder(found.tags.get(LOCK_TOKEN, ""), found.tags.get(LOCK_WHO, "somebody"), until)

    def release_lock(self, name: str, holder: LockHolder) -> None:
        if datetime.now(UTC) >= holder.until:
            current = self.lock_holder(name)
            if current is None or current.token != holder.token:
                return
        self._delete_lock(name)

    def _create_lock(self, name: str, holder: LockHolder) -> bool:
        tags = {LOCK_TOKEN: holder.token, LOCK_WHO: holder.who, LOCK_UNTIL: holder.until.isoformat()}
        about = f"Held while promotion-gate is at work on {name}. Deleted afterwards."
        with self._asking(f"the lock of {name!r}"):
            try:
                self._client.create_registered_model(lock_name(name), tags, about)
            except Exception as error:
                if getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS":
                    return False
                raise
        return True

    def _delete_lock(self, name: str) -> None:
        with contextlib.suppress(NotInRegistry), self._asking(f"the lock of {name!r}"):
            self._client.delete_registered_model(lock_name(name))

    @property
    def _client(self) -> Any:
        """MLflow's client. Whatever imports from MLflow asks for it first: two threads that import
        MLflow for the first time stumble over its circular imports.
        """
        with self._starting:
            if self._made is None:
                self._made = self._connect()
            return self._made

    def _connect(self) -> Any:
        for uri in {self._tracking_uri, self._registry_uri} - {None}:
            _knock(str(uri))
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        with _without_collection():
            from mlflow.tracking import MlflowClient
        return MlflowClient(self._tracking_uri, self._registry_uri)

    def _repository(self, uri: str) -> Any:
        tracking_uri = self._client.tracking_uri
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(uri, tracking_uri=tracking_uri)

    def _artifact_uri(self, run_id: str) -> str:
        if run_id not in self._artifact_uris:
            self._artifact_uris[run_id] = self._client.get_run(run_id).info.artifact_uri
        return self._artifact_uris[run_id]

    def _create_run(self, title: str, tags: Mapping[str, str]) -> str:
        experiment_id = self._experiment(create=True)
        with self._asking(f"a new run in experiment {EXPERIMENT!r}"):
            run = self._client.create_run(experiment_id, tags=dict(tags), run_name=title[:250])
            self._artifact_uris[run.info.run_id] = run.info.artifact_uri
            return str(run.info.run_id)

    def _experiment(self, *, create: bool) -> str | None:
        if self._experiment_id is not None:
            return self._experiment_id
        with self._asking(f"the experiment {EXPERIMENT!r}"):
            found = self._client.get_experiment_by_name(EXPERIMENT)
            if found is None and create:
                try:
                    self._client.create_experiment(EXPERIMENT, self._artifact_location)
                except Exception as error:
                    if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                        raise
                found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"the experiment {EXPERIMENT!r}, which holds the history, was deleted at {self.host}",
                f"restore it: mlflow experiments restore -x {found.experiment_id}",
            )
        self._experiment_id = str(found.experiment_id)
        return self._experiment_id

    def _search(self, condition: str, *, newest_only: bool = False) -> list[Any]:
        """Runs of the gate's experiment; deleted ones too, since history loses nothing."""
        experiment_id = self._experiment(create=False)
        if experiment_id is None:
            return []
        from mlflow.entities import ViewType

        found: list[Any] = []
        token = None
        with self._asking(f"the runs of experiment {EXPERIMENT!r}"):
            while True:
                page = self._client.search_runs(
                    [experiment_id],
                    condition,
                    ViewType.ALL,
                    1 if newest_only else _PAGE,
                    ["attributes.start_time DESC"],
                    token,
                )
                found += page
                token = page.token
                if newest_only or not token:
                    break
        for run in found:
            self._artifact_uris[run.info.run_id] = run.info.artifact_uri
        return found

    @contextlib.contextmanager
    def _asking(self, about: str) -> Iterator[None]:
        """Turn whatever MLflow raises into one line that names the host and what was asked for."""
        try:
            yield
        except GateError:
            raise
        except Exception as error:
            raise self._explained(error, about) from None

    def _explained(self, error: Exception, about: str) -> RegistryError:
        code = getattr(error, "error_code", "")
        text = _one_line(str(error))
        if code == "RESOURCE_DOES_NOT_EXIST" or re.search(r"Registered model alias \S+ not found", text):
            return NotInRegistry(f"no such thing at {self.host}: {about}", "check name, number and server")
        if text.startswith("API request to"):
            return RegistryError(
                f"no answer from {self.host} when asked for {about}", "check that the server is up"
            )
        if code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
            return RegistryError(f"{self.host} denies access to {about}", "check your MLflow credentials")
        return RegistryError(f"{self.host} refused {about}: {type(error).__name__}: {text[:300]}")


_STATES: Mapping[str, EventState] = {"RUNNING": "begun", "SCHEDULED": "begun", "FINISHED": "done"}


def _knock(uri: str) -> None:
    """Find out within seconds whether anybody listens there; behind a proxy only the request can tell."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RegistryError(
            f"cannot reach {host_of(uri)}: {reason}", "check that the server is up and the URI right"
        ) from None


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Importing MLflow makes no garbage worth a fifth of its time to look for."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _version_facts(found: Any) -> VersionFacts:
    return VersionFacts(
        ModelRef(found.name, int(found.version)),
        found.run_id or None,
        found.source or "",
        found.status,
        _stage(found),
        dict(found.tags),
    )


def _stage(found: Any) -> str:
    stage = found.current_stage or ""
    return "" if stage == "None" else str(stage)


def _dataset(entry: Any) -> DatasetInput:
    tags = {tag.key: tag.value for tag in entry.tags}
    data = entry.dataset
    context = tags.get("mlflow.data.context", "")
    return DatasetInput(data.name, context, data.source or "", data.digest or "", tags)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _one_line(text: str) -> str:
    without_credentials = re.sub(r"//[^/@\s]*@", "//", text)
    return " ".join("".join(c if c.isprintable() else " " for c in without_credentials).split())


def _is_missing_file(error: Exception) -> bool:
    text = str(error)
    if "404" in text or "No such file" in text or "No such artifact" in text or "does not exist" in text:
        return True
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"

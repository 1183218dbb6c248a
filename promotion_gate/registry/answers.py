"""MLflow's answers read into the gate's own types, and checked to be answers to what was asked.

A server, or what stands between, may answer with something else: another version, another run, an empty
object where facts should stand. That must not become a belief.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from promotion_gate.core.types import DatasetInput, ModelRef
from promotion_gate.registry.interface import Event, EventState, ModelFacts, VersionFacts
from promotion_gate.registry.naming import KIND, MODEL_KEY, NOTE, model_key, read_pointer
from promotion_gate.registry.trouble import WrongAnswer

_STATES: Mapping[str, EventState] = {"RUNNING": "begun", "SCHEDULED": "begun", "FINISHED": "done"}


def version_facts(found: Any, name: str, version: int | None = None) -> VersionFacts:
    """The facts of a version of model ``name``; of this one where a number was asked for."""
    ref = ModelRef(_named(found, name), int(found.version))
    if version is not None and ref.version != version:
        raise WrongAnswer(f"it speaks of version {ref.version}")
    return VersionFacts(
        ref, found.run_id or None, found.source or "", found.status, stage_of(found), dict(found.tags)
    )


def model_facts(found: Any, name: str) -> ModelFacts:
    """The aliases and tags of model ``name``, and whether its versions are in stages."""
    return ModelFacts(
        _named(found, name),
        {alias: int(version) for alias, version in found.aliases.items()},
        any(stage_of(version) for version in found.latest_versions or ()),
        dict(found.tags or {}),
    )


def stage_of(found: Any) -> str:
    """A version's legacy stage; empty for none."""
    stage = found.current_stage or ""
    return "" if stage == "None" else str(stage)


def run_of(found: Any, run_id: str) -> Any:
    """The run, if it is the one that was asked for."""
    if found.info.run_id != run_id:
        raise WrongAnswer("it speaks of another run")
    return found


def tagged(found: Any, tags: Mapping[str, str]) -> Any:
    """The run, if it has a usable id and all of ``tags``."""
    if not str(found.info.run_id or "").isalnum():
        raise WrongAnswer("a run without an id")
    if any(found.data.tags.get(key) != value for key, value in tags.items()):
        raise WrongAnswer("it speaks of another run")
    return found


def event_of(run: Any, name: str) -> Event | None:
    """The event that a run is; None where its tags are not a whole pointer to one of this model."""
    tagged(run, {KIND: "event", MODEL_KEY: model_key(name)})
    pointer = read_pointer(run.data.tags)
    if pointer is None or pointer.name != name:
        return None
    try:
        at = moment(run.info.start_time)
    except (TypeError, ValueError, OverflowError, OSError):
        return None  # whoever may create runs may have them begin in the year 3170843
    return Event(
        run.info.run_id,
        pointer,
        _STATES.get(run.info.status, "undone"),
        at,
        run.data.tags.get(NOTE, ""),
    )


def data_set(entry: Any) -> DatasetInput:
    """One input of a training run."""
    tags = {tag.key: tag.value for tag in entry.tags}
    data = entry.dataset
    context = tags.get("mlflow.data.context", "")
    return DatasetInput(data.name, context, data.source or "", data.digest or "", tags)


def moment(milliseconds: int) -> datetime:
    """MLflow's time stamps."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _named(found: Any, name: str) -> str:
    if found.name != name:
        raise WrongAnswer(f"it speaks of {str(found.name)[:80]!r}" if found.name else "it is empty")
    return name

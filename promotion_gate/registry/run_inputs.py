"""What a training script tells its own MLflow run: the data it reads, and the trainer's attestation.

Unlike the gate's registry this uses the script's own MLflow: its tracking server and its active run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from promotion_gate.core.errors import RegistryError
from promotion_gate.registry.interface import ATTESTATION_FILE

_DIGEST_CHARACTERS = 36
"""As long as MLflow lets a data set's digest be."""


def active_run() -> str:
    """The id of the script's active run; empty if it does not use MLflow or has begun none."""
    mlflow = sys.modules.get("mlflow")
    run = mlflow.active_run() if mlflow is not None and hasattr(mlflow, "active_run") else None
    return "" if run is None else str(run.info.run_id)


def log_data_set(
    run_id: str, name: str, sha256: str, source: str, context: str, tags: Mapping[str, str]
) -> None:
    """Declare a data set as an input of a run, as ``mlflow.log_input`` does.

    Raises
    ------
    RegistryError: the tracking server cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind, key = ("http", "url") if source.startswith(("http://", "https://")) else ("local", "uri")
    data = Dataset(name, sha256[:_DIGEST_CHARACTERS], kind, json.dumps({key: source}))
    labels = [InputTag(key, value) for key, value in {"mlflow.data.context": context, **tags}.items()]
    try:
        MlflowClient().log_inputs(run_id, [DatasetInput(data, labels)])
    except Exception as error:
        raise _refused(f"the data set {name!r:.120}", run_id, error) from None


def log_attestation(run_id: str, envelope: bytes) -> None:
    """Store the signed statement with a run, where the gate looks for it.

    Raises
    ------
    RegistryError: the tracking server cannot be reached or refuses.
    """
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ATTESTATION_FILE
        path.write_bytes(envelope)
        try:
            MlflowClient().log_artifact(run_id, str(path))
        except Exception as error:
            raise _refused("the attestation", run_id, error) from None


def download_model(uri: str, folder: Path) -> Path:
    """Fetch a logged model's files: ``models:/…`` or ``runs:/…``.

    Raises
    ------
    RegistryError: the tracking server cannot be reached or has no such model.
    """
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except Exception as error:
        raise RegistryError(f"cannot fetch the model {uri!r:.200}: {_line(error)}") from None


def _refused(what: str, run_id: str, error: Exception) -> RegistryError:
    return RegistryError(f"cannot log {what} to run {run_id}: {_line(error)}", "check the tracking server")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

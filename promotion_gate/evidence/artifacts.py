"""A model's downloaded files: digested, read as data, held to a list. Nothing is loaded here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from promotion_gate.core.errors import ArtifactError
from promotion_gate.core.types import ArtifactFile
from promotion_gate.evidence.archive import (
    checkpoint_violations,
    exported_program_violations,
)
from promotion_gate.evidence.digest import digest_folder
from promotion_gate.evidence.environment import (
    ENVIRONMENT_FILES,
    MAX_ENVIRONMENT_BYTES,
    REQUIREMENT_FILES,
    environment_violations,
)
from promotion_gate.evidence.kinds import content_kind, disagreement
from promotion_gate.evidence.manifest import (
    MAX_MANIFEST_BYTES,
    STOCK_PICKLE_MODULE,
    manifest_violations,
    parse_manifest,
)
from promotion_gate.evidence.pickles import scan_files
from promotion_gate.evidence.safetensors import safetensors_violations

__all__ = ["ModelFormat", "VerifiedArtifacts", "digest_folder", "verify"]

ModelFormat = Literal["pt2", "torch-modules", "torch-pickle", "state_dict", "unknown"]

MAX_ARCHITECTURE_BYTES = 1 << 20
MAX_LINES_TOLD = 10

_MODEL_FILES: Mapping[str, ModelFormat] = {
    "data/model.pt2": "pt2",
    "data/model.pth": "torch-pickle",
    "data/state_dict.pth": "state_dict",
    "data/state_dict.safetensors": "state_dict",
    "state_dict.pth": "state_dict",
    "state_dict.safetensors": "state_dict",
}
_PICKLE_INFO = "data/pickle_module_info.txt"
_INERT_SUFFIXES = frozenset(
    [
        ".json", ".yaml", ".yml", ".txt", ".md", ".rst", ".csv", ".tsv", ".toml", ".png", ".jpg",
        ".jpeg", ".webp", ".gif", ".svg", ".html", ".pdf", ".log",
    ]
)  # fmt: skip
_INERT_NAMES = frozenset(["MLmodel", "LICENSE", "README", "NOTICE", "CHANGELOG"])
_PICKLE_SUFFIXES = frozenset(
    [
        ".pkl", ".pickle", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".joblib", ".dill", ".npy", ".npz",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VerifiedArtifacts:
    """A model's files after reading, before loading; the only thing the loader accepts.

    ``model_file`` is relative to ``folder``. ``violations`` are one-line reasons to refuse the model; while
    there is one, the loader will not touch it. ``scan`` holds one plain dict for each pickle: see
    :func:`promotion_gate.evidence.pickles.scan_files`. A scan is evidence and proves no file harmless.
    """

    folder: Path
    files: tuple[ArtifactFile, ...]
    digest: str
    model_format: ModelFormat
    model_file: str
    manifest: Mapping[str, Any] = field(repr=False)
    violations: tuple[str, ...] = ()
    scan: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    allows_pickle: bool = False


def verify(folder: Path, *, allow_pickle: bool) -> VerifiedArtifacts:
    """Examine the files of a model in ``folder``, a private copy that nobody else writes to.

    Three formats load without unpickling anything but tensors and classes of ``torch.nn``:

    - ``pt2``: ``data/model.pt2``, MLflow's default, held to PyTorch's own layout and to a list of operators.
    - ``torch-modules``: ``data/model.pth``, a whole module whose pickle names ``torch.nn`` classes alone.
    - ``state_dict``: ``state_dict.pth`` or ``state_dict.safetensors``, at the root or in ``data/``, beside an
      ``architecture.json``: see :func:`promotion_gate.evidence.worker.build_sequential`.

    Any other pickle is the format ``torch-pickle``: a violation unless ``allow_pickle``, and then loaded in
    the sandbox alone. Code that comes with the model is a violation always.

    Raises
    ------
    ArtifactError: the folder holds links, devices or nothing, or ``MLmodel`` cannot be read as data.
    """
    files, digest = digest_folder(folder)
    files = tuple(replace(file, kind=_kind(folder, file)) for file in files)
    paths = {file.path: file for file in files}
    found = [path for path in _MODEL_FILES if path in paths]
    model_file = found[0] if found else ""
    model_format: ModelFormat = _MODEL_FILES[model_file] if found else "unknown"

    violations: list[str] = []
    if not found:
        violations.append("no model file: neither data/model.pt2, data/model.pth nor a state_dict is there")
    if len(found) > 1:
        violations.append(f"more than one model: {' and '.join(found)}; servers may load either")

    manifest = _read_manifest(folder, paths)
    if manifest or model_format != "state_dict":
        if not manifest:
            violations.append("MLmodel: missing")
        else:
            violations += manifest_violations(manifest, needs_flavor=model_format != "state_dict")

    odd = disagreement(model_file, paths[model_file].kind, allow_pickle=allow_pickle) if found else ""
    if odd:
        violations.append(f"{model_file}: {odd}")
    elif model_format == "pt2":
        violations += (f"{model_file}: {what}" for what in exported_program_violations(folder / model_file))
    elif model_format == "torch-pickle":
        foreign = list(checkpoint_violations(folder / model_file, modules=True))
        if not foreign:
            model_format = "torch-modules"
        elif not allow_pickle:
            violations += (f"{model_file}: {what}" for what in foreign[:10])
            if any(what.startswith("data.pkl: ") for what in foreign):
                violations.append(
                    f"{model_file}: a pickle that may run any code: save it with serialization_format='pt2', "
                    "or let the policy say unsafe_allow_pickle = true"
                )
    elif model_format == "state_dict":
        violations += _state_dict_violations(folder, model_file, paths)
    violations += _pickle_info_violations(folder, paths)
    violations += _environment_violations(folder, files)
    violations += _stray_file_violations(files, model_file, allow_pickle=allow_pickle)

    return VerifiedArtifacts(
        folder=folder,
        files=files,
        digest=digest,
        model_format=model_format,
        model_file=model_file,
        manifest=manifest,
        violations=tuple(_one_line(violation) for violation in violations),
        scan=tuple(_plain_entry(entry) for entry in scan_files(folder, files)),
        allows_pickle=allow_pickle,
    )


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:400]


def _read_manifest(folder: Path, paths: Mapping[str, ArtifactFile]) -> dict[str, Any]:
    file = paths.get("MLmodel")
    if file is None:
        return {}
    if file.size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"MLmodel is larger than {MAX_MANIFEST_BYTES:,} bytes", "is it a manifest?")
    return parse_manifest((folder / "MLmodel").read_bytes())


def _pickle_info_violations(folder: Path, paths: Mapping[str, ArtifactFile]) -> Iterator[str]:
    """MLflow imports whatever module this file names."""
    file = paths.get(_PICKLE_INFO)
    if file is None:
        return
    content = (folder / _PICKLE_INFO).read_bytes() if file.size < 200 else b"(too long)"
    if content != STOCK_PICKLE_MODULE.encode():
        yield f"{_PICKLE_INFO}: names {content[:80]!r} instead of {STOCK_PICKLE_MODULE}"


def _state_dict_violations(folder: Path, model_file: str, paths: Mapping[str, ArtifactFile]) -> Iterator[str]:
    architecture = str(PurePosixPath(model_file).parent / "architecture.json")
    file = paths.get(architecture)
    if file is None:
        yield f"{architecture}: missing: a state_dict alone does not say which layers to build"
    elif file.size > MAX_ARCHITECTURE_BYTES:
        yield f"{architecture}: larger than {MAX_ARCHITECTURE_BYTES:,} bytes"
    else:
        try:
            json.loads((folder / architecture).read_bytes())
        except (ValueError, RecursionError):
            yield f"{architecture}: not JSON"
    if model_file.endswith(".safetensors"):
        yield from (f"{model_file}: {what}" for what in safetensors_violations(folder / model_file))
    else:
        foreign = checkpoint_violations(folder / model_file, modules=False)
        yield from (f"{model_file}: {what}" for what in foreign)


def _kind(folder: Path, file: ArtifactFile) -> str:
    try:
        return content_kind(folder / file.path)
    except OSError as error:
        raise ArtifactError(f"cannot read the model's file {file.path!r}: {error.strerror}") from None


def _environment_violations(folder: Path, files: Sequence[ArtifactFile]) -> Iterator[str]:
    for file in files:
        if file.path in REQUIREMENT_FILES | ENVIRONMENT_FILES:
            with (folder / file.path).open("rb") as stream:
                content = stream.read(MAX_ENVIRONMENT_BYTES + 1)
            found = list(environment_violations(file.path, content))
            yield from (f"{file.path}: {what}" for what in found[:MAX_LINES_TOLD])


def _stray_file_violations(
    files: Sequence[ArtifactFile], model_file: str, *, allow_pickle: bool
) -> Iterator[str]:
    for file in files:
        path = PurePosixPath(file.path)
        if file.path == model_file or file.path in _MODEL_FILES:
            continue
        if file.path == _PICKLE_INFO:
            if not model_file.endswith("model.pth"):
                yield f"{file.path}: has no place beside {model_file or 'no model'}"
            continue
        suffix = path.suffix.lower()
        odd = disagreement(file.path, file.kind, allow_pickle=allow_pickle)
        if path.parts[0] == "code" or "__pycache__" in path.parts:
            yield f"{file.path}: code that comes with the model is not accepted"
        elif any(part.startswith(".") for part in path.parts):
            yield f"{file.path}: a hidden file is not accepted"
        elif suffix in _PICKLE_SUFFIXES:
            if not allow_pickle:
                yield f"{file.path}: may hold a pickle and is not the model"
        elif suffix not in _INERT_SUFFIXES and path.name not in _INERT_NAMES:
            yield f"{file.path}: a file of this kind is not accepted ({file.kind})"
        elif odd:
            yield f"{file.path}: {odd}"


def _plain_entry(value: Any) -> Any:
    """Names in a pickle are as hostile as any: one printable line each."""
    if isinstance(value, str):
        return _one_line(value)
    if isinstance(value, Mapping):
        return {name: _plain_entry(entry) for name, entry in value.items()}
    return [_plain_entry(entry) for entry in value] if isinstance(value, list) else value

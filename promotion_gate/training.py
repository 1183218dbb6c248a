"""What a training script calls: verified data, and the signed statement of what a model was made from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.core.errors import InputError, SigningError, UsageError
from promotion_gate.provenance.dbom import Dbom, DbomEntry, find_dbom, read_dbom

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from promotion_gate.core.keys import SigningKey
    from promotion_gate.data.interface import ImageDataset, Images, ImageShape, Stored
    from promotion_gate.evidence.torch_images import TorchImages

Where = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class VerifiedImages:
    """A labelled image set, every byte of which is what the bill of materials says.

    It is an :class:`~promotion_gate.data.interface.ImageDataset`. ``entry`` is what vouches for it, ``path``
    the read-only copy that it reads.
    """

    entry: DbomEntry
    path: Path
    images: ImageDataset

    @property
    def uri(self) -> str:
        return self.images.uri

    @property
    def class_names(self) -> Sequence[str]:
        return self.images.class_names

    @property
    def labels(self) -> NDArray[Any]:
        return self.images.labels

    @property
    def ids(self) -> Sequence[str]:
        return self.images.ids

    @property
    def columns(self) -> dict[str, Sequence[str]]:
        return self.images.columns

    def __len__(self) -> int:
        return len(self.images)

    def stream(self, shape: ImageShape, batch_size: int = 512) -> Iterator[Images]:
        return self.images.stream(shape, batch_size)

    def read(self, rows: NDArray[Any] | Sequence[int], shape: ImageShape) -> Images:
        return self.images.read(rows, shape)

    def stream_stored(self) -> Iterator[list[Stored]]:
        return self.images.stream_stored()

    def stored(self, rows: NDArray[Any] | Sequence[int]) -> list[Stored]:
        return self.images.stored(rows)

    def sha256(self) -> str:
        return self.images.sha256()

    def torch(
        self, height: int, width: int, channels: int = 3, transform: Callable[[Any], Any] | None = None
    ) -> TorchImages:
        """The set as a PyTorch data set of (image, class index) pairs.

        Parameters
        ----------
        height, width, channels: what every image is brought to, in pixels; 1 channel is grey, 3 is RGB.
        transform: from a uint8 tensor (channels, height, width) to what the model takes; without it an
            image is float32 in 0 to 1.
        """
        from promotion_gate.data.interface import ImageShape
        from promotion_gate.evidence.torch_images import TorchImages

        return TorchImages(self, ImageShape(height, width, channels), transform)


def verified_path(
    name: str,
    *,
    dbom: Where | None = None,
    context: str = "training",
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """A read-only copy of a registered data set: a file or a folder, verified byte by byte.

    The data is hashed while it is copied, so that what was hashed is what is read. Where an MLflow run is
    active, the entry is declared as its input.

    Parameters
    ----------
    name: of the entry in the data bill of materials.
    dbom: the document; else the one that ``PROMOTION_GATE_DBOM`` names, or ``dbom.json`` here or above.
    context: what the run uses it for, as MLflow's ``log_input`` takes it.
    progress: told of the way on long work.

    Raises
    ------
    HashMismatch: the data is not what its entry says.
    Unregistered: the entry is quarantined, or not on the mirror where only that may be read.
    DbomError: there is no document or no such entry.
    InputError: the data is not to be had.
    """
    return _load(name, dbom, context, progress)[1]


def open_dataset(
    name: str,
    *,
    dbom: Where | None = None,
    within: str = "",
    class_names: Sequence[str] | None = None,
    context: str = "training",
    progress: Callable[[str], None] = lambda _: None,
    **reading: str,
) -> VerifiedImages:
    """A registered image set, verified byte by byte before the first is read; see :func:`verified_path`.

    Parameters
    ----------
    within: a file or folder in the set to open, such as ``"train"`` or ``"train.csv"``.
    class_names: names in order of the class index; else the data's own.
    reading: how to read it, with the keys of a policy's ``data.training``: ``format``, ``split``,
        ``image_column``, ``label_column``, …

    Raises
    ------
    InputError: as for :func:`verified_path`, or the set is not one of images, or reads files outside.
    """
    from pydantic import ValidationError

    from promotion_gate.core.policy import DataSource
    from promotion_gate.data.open import open_dataset as open_images
    from promotion_gate.provenance.sidecar import refuse_stray_path

    if within:
        refuse_stray_path(within, f"the data set {name!r:.120}")
    try:
        source = DataSource(path=within or ".", **reading)  # type: ignore[arg-type]
    except ValidationError as error:
        raise UsageError(f"open_dataset: {error.errors(include_url=False)[0]['msg']}") from None
    entry, path = _load(name, dbom, context, progress)
    place = path / within if within else path
    images = open_images(
        source.model_copy(update={"path": str(place)}), folder=path.parent, class_names=class_names
    )
    _refuse_outside(images, path, name)
    return VerifiedImages(entry, path, images)


def attest(
    model: Where,
    data: Sequence[str],
    *,
    key: Where | SigningKey | None = None,
    dbom: Where | None = None,
    run_id: str | None = None,
    code: Where | None = None,
    out: Where | None = None,
) -> bytes:
    """State, signed, which data and code a model was made from, and store it with its training run.

    Parameters
    ----------
    model: a folder with the model's files, or the URI of a logged model (``models:/…``, ``runs:/…``).
    data: names of the data sets that it was trained on, all of them.
    key: the trainer's ed25519 key in PEM; else the one that ``PROMOTION_GATE_KEY`` names, or one's own.
    run_id: the MLflow run that trained; else the active one.
    code: a folder of the code's git repository; else that of the data bill of materials.
    out: a file to write the envelope to as well; needed where there is no run.

    Returns the DSSE envelope, in JSON.

    Raises
    ------
    SigningError: the key cannot be used.
    Unregistered: a data set is quarantined.
    ArtifactError, RegistryError: the model's files cannot be read.
    """
    from promotion_gate.core.keys import SigningKey, load_signing_key, read_signing_key
    from promotion_gate.core.record import now
    from promotion_gate.evidence.digest import digest_folder
    from promotion_gate.provenance.attest import code_commit, sign_attestation, uncommitted_code
    from promotion_gate.registry.run_inputs import active_run, download_model, log_attestation

    document = read_dbom(find_dbom(dbom))
    entries = [document.entry(name) for name in dict.fromkeys(data)]
    if key is None:
        signer = load_signing_key()
    else:
        signer = key if isinstance(key, SigningKey) else read_signing_key(Path(key))
    run = active_run() if run_id is None else run_id
    if not run and out is None:
        raise SigningError(
            "there is no MLflow run to store the attestation with", "name one, or a file for it"
        )
    with tempfile.TemporaryDirectory(prefix="promotion-gate-") as folder:
        place = Path(model)
        files, _ = digest_folder(place if place.is_dir() else download_model(os.fspath(model), Path(folder)))
    home = document.folder if code is None else Path(code)
    commit = code_commit(home)
    envelope = sign_attestation(
        files,
        document,
        entries,
        signer,
        commit=commit,
        uncommitted=uncommitted_code(home) if commit else (),
        run_id=run,
        finished=now(),
    )
    if out is not None:
        try:
            Path(out).write_bytes(envelope)
        except OSError as error:
            raise SigningError(f"cannot write {os.fspath(out)}: {error.strerror}") from None
    if run:
        log_attestation(run, envelope)
    return envelope


def _load(
    name: str, dbom: Where | None, context: str, progress: Callable[[str], None]
) -> tuple[DbomEntry, Path]:
    from promotion_gate.provenance.load import verified_copy

    document = read_dbom(find_dbom(dbom))
    entry = document.entry(name)
    path = verified_copy(document, entry, progress)
    _declare(document, entry, context)
    return entry, path


def _declare(document: Dbom, entry: DbomEntry, context: str) -> None:
    from promotion_gate.provenance.chain import SHA256_TAG
    from promotion_gate.registry.run_inputs import active_run, log_data_set

    run_id = active_run()
    if not run_id:
        return
    tags = {
        SHA256_TAG: entry.sha256,
        "promotion_gate.version": entry.version,
        "promotion_gate.dbom_sha256": document.sha256,
    }
    source = entry.mirror or entry.origin or entry.path
    log_data_set(run_id, entry.name, entry.sha256, source, context, tags)


def _refuse_outside(images: ImageDataset, path: Path, name: str) -> None:
    """Only the files of the set were verified."""
    from promotion_gate.data.imagefolder import files_outside

    if outside := files_outside(images, path if path.is_dir() else path.parent):
        raise InputError(
            f"the data set {name} names a file that is not part of it: {outside[0]!r:.200}",
            "register the folder that holds both the manifest and the images",
        )

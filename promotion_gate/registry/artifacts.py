"""Files between this machine and MLflow's artifact stores, one at a time and whole.

MLflow's own download hands files to threads that a stuck server keeps alive for good, reports failures as
text alone, and takes a short file for a whole one. So the files are listed and fetched here, each within its
time and again where that helps; repositories that bring a way of their own are left to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from promotion_gate.core.errors import ArtifactError, NotInRegistry
from promotion_gate.evidence.digest import listed_files
from promotion_gate.registry.connection import Connection
from promotion_gate.registry.patience import TRANSFER_SECONDS
from promotion_gate.registry.trouble import WrongAnswer, is_missing_file

MAX_FILE_BYTES = 100_000_000
MAX_LISTED = 100_000
UPLOAD_SECONDS = 300.0
_AT_ONCE = 4


def fetch_folder(server: Connection, uri: str, folder: Path, about: str) -> None:
    """Copy everything under an artifact URI into ``folder``.

    Raises
    ------
    ArtifactError: a path leads elsewhere, or there are no plain files.
    RegistryError: no answer, other sizes than are listed, or no room on this machine's disk.
    """
    repository = _repository(server, uri)
    if repository.__class__.__name__ == "LocalArtifactRepository":
        # MLflow would follow links to files of this host, and read devices and pipes to their end.
        listed_files(Path(repository.artifact_dir))
    if not _is_plain(repository):
        server.ask(
            about,
            lambda client: repository.download_artifacts("", str(folder)),
            seconds=TRANSFER_SECONDS,
        )
        return
    files = list(_walk(server, repository, about))

    def fetch(path: str, size: int | None) -> None:
        target = folder / _plain_path(path, about)
        target.parent.mkdir(parents=True, exist_ok=True)
        server.ask(
            f"the file {path!r:.200} of {about}",
            lambda client: _fetch(repository, path, target, size),
            seconds=TRANSFER_SECONDS,
        )

    if not server.concurrent or len(files) < 2:
        for path, size in files:
            fetch(path, size)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            list(pool.map(fetch, *zip(*files, strict=True)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fetch_file(server: Connection, uri: str, path: str, about: str) -> bytes:
    """One small file.

    Raises
    ------
    NotInRegistry: there is none of that name, or it is no plain file of at most :data:`MAX_FILE_BYTES`.
    """
    repository = _repository(server, uri)
    missing = f"there is no {about} at {server.host}"

    def fetch(client: object) -> bytes | None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file"
            try:
                if _is_plain(repository):
                    repository._download_file(path, str(local))
                else:
                    local = Path(repository.download_artifacts(path, folder))
            except Exception as error:
                if is_missing_file(error):
                    return None
                raise
            if not local.is_file() or local.is_symlink() or local.stat().st_size > MAX_FILE_BYTES:
                return None
            return local.read_bytes()

    content = server.ask(about, fetch)
    if content is None:
        raise NotInRegistry(missing)
    return content


def store_file(server: Connection, uri: str, path: str, content: bytes, about: str) -> None:
    """Store one file. A repeat puts the same bytes in the same place."""
    repository = _repository(server, uri)

    def store(client: object) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / Path(path).name
            local.write_bytes(content)
            repository.log_artifact(str(local))

    small = len(content) < 1_000_000
    server.ask(about, store, seconds=None if small else UPLOAD_SECONDS)


def _repository(server: Connection, uri: str) -> Any:
    def find(client: Any) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(uri, tracking_uri=client.tracking_uri)

    return server.ask(f"the artifact store {uri.partition('?')[0]!r:.200}", find)


def _is_plain(repository: Any) -> bool:
    """Whether the repository downloads as MLflow's base class does: by listing, then file by file."""
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    if repository.__class__.__name__ == "LocalArtifactRepository":
        return True
    return type(repository).download_artifacts is ArtifactRepository.download_artifacts


def _walk(server: Connection, repository: Any, about: str) -> Iterator[tuple[str, int | None]]:
    """Path and listed size of every file."""
    todo: list[str | None] = [None]
    seen: set[str | None] = {None}
    found = 0
    while todo:
        inside = todo.pop()
        listing = _listing(server, repository, inside, about)
        found += len(listing)
        if found > MAX_LISTED:
            raise ArtifactError(f"{about} are more than {MAX_LISTED} files and folders")
        for entry in listing:
            if not entry.is_dir:
                yield entry.path, entry.file_size
            elif entry.path not in (".", inside) and entry.path not in seen:
                seen.add(entry.path)
                todo.append(entry.path)


def _listing(server: Connection, repository: Any, inside: str | None, about: str) -> list[Any]:
    def ask() -> list[Any]:
        return server.ask(f"the list of {about}", lambda client: list(repository.list_artifacts(inside)))

    # An empty folder is believed when it is said twice: a broken answer reads the same.
    return ask() or ask()


def _fetch(repository: Any, path: str, target: Path, size: int | None) -> None:
    repository._download_file(path, str(target))
    if size is not None and target.stat().st_size != size:
        got = target.stat().st_size
        raise WrongAnswer(f"{got} bytes came instead of the {size} that are listed")


def _plain_path(path: str, about: str) -> PurePosixPath:
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts or not plain.parts:
        raise ArtifactError(f"{about} hold a path that leads elsewhere: {path!r:.200}")
    return plain

"""A map of embeddings: UMAP to two dimensions, the same for the same input, in a process of its own.

McInnes, Healy and Melville, "UMAP: Uniform Manifold Approximation and Projection", 2018 (arXiv:1802.03426).
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import UsageError
from promotion_gate.core.places import base_folder

Float32 = NDArray[np.float32]

MAX_WIDTH = 50
"""Dimensions that are left for UMAP; wider embeddings go through PCA first."""

_EPOCHS = 200
_COVARIANCE_WIDTH = 2048
_TRUST_POINTS = 1000


@dataclass(frozen=True, slots=True)
class Projection:
    """``xy`` float32 (n, 2), and how far neighbours on it are neighbours in truth.

    ``trustworthiness`` is 1 where no point has a false neighbour (Venna and Kaski 2001), measured on at
    most 1,000 points; NaN where there are too few points to say.
    """

    xy: Float32
    trustworthiness: float


def project(embeddings: Float32, seed: int, neighbours: int = 15) -> Projection:
    """Lay out embeddings (n, width) in two dimensions, in this process.

    The first call in a process compiles for some seconds, or for up to a minute where numba's cache is
    cold; :func:`project_apart` keeps that out of the caller's way.
    """
    points = _reduced(embeddings, seed)
    count = len(points)
    if count < 5 or not points.any():
        xy = np.zeros((count, 2), dtype=np.float32)
        width = min(2, points.shape[1])
        xy[:, :width] = points[:, :width]
        return Projection(xy, float("nan"))
    xy = _umap(points, seed, min(neighbours, count - 1))
    return Projection(xy, _trustworthiness(points, xy, seed))


def project_apart(
    embeddings: Float32, seed: int, neighbours: int = 15, *, seconds: float = 600.0
) -> Projection:
    """:func:`project` in a fresh process, so that threads of this one go on meanwhile.

    Raises
    ------
    RuntimeError: it failed or took longer than ``seconds``.
    """
    with ProjectionProcess() as process:
        return process.project(embeddings, seed, neighbours, seconds=seconds)


class ProjectionProcess:
    """A process for one :func:`project`; with ``warm`` it compiles before the embeddings are there.

    Close it, or use it in a ``with`` statement. It ends by itself when this process does.
    """

    def __init__(self, *, warm: bool = False) -> None:
        with ExitStack() as opened:
            cache = opened.enter_context(_numba_cache())
            # -P keeps the working folder, which may be anybody's, off the import path.
            command = [sys.executable, "-P", "-m", __name__, *(["--warm"] if warm else [])]
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(cache),
            )
            self._opened = opened.pop_all()

    def project(
        self, embeddings: Float32, seed: int, neighbours: int = 15, *, seconds: float = 600.0
    ) -> Projection:
        """:func:`project`, once.

        Raises
        ------
        RuntimeError: it failed or took longer than ``seconds``.
        """
        asked = io.BytesIO()
        np.save(asked, np.array([seed, neighbours], dtype=np.int64))
        np.save(asked, np.ascontiguousarray(embeddings, dtype=np.float32))
        try:
            answered, said = self._process.communicate(asked.getvalue(), timeout=seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the embedding map took longer than {seconds:g} s") from None
        if code := self._process.returncode:
            last = (said.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the embedding map failed with exit code {code}: {last[:300]}")
        answer = io.BytesIO(answered)
        return Projection(np.load(answer), float(np.load(answer)))

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reduced(embeddings: Float32, seed: int) -> Float32:
    """Centred, scaled by one number for all dimensions, and at most :data:`MAX_WIDTH` wide."""
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    spread = float(centred.std())
    if spread > 0:
        centred /= spread
    width = min(MAX_WIDTH, *centred.shape)
    if width == centred.shape[1] or spread == 0:
        return np.asarray(centred, dtype=np.float32)
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if centred.shape[1] <= _COVARIANCE_WIDTH else "randomized"
    pca = PCA(width, svd_solver=solver, random_state=seed % 2**32)
    return np.asarray(pca.fit_transform(centred), dtype=np.float32)


def _umap(points: Float32, seed: int, neighbours: int) -> Float32:
    from sklearn.neighbors import NearestNeighbors

    # Exact neighbours, the point itself first as UMAP wants it: its own search is approximate and slow
    # to compile.
    distances, indices = (
        NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(points).kneighbors(points)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        warnings.filterwarnings("ignore", r"precomputed_knn\[2\]", UserWarning)
        import umap

        _keep_compiled(umap)
        layout = umap.UMAP(
            n_neighbors=neighbours,
            n_epochs=_EPOCHS,
            init="pca",
            random_state=seed % 2**32,
            n_jobs=1,
            precomputed_knn=(indices.astype(np.int32), distances.astype(np.float32)),
        ).fit_transform(points)
    return np.asarray(layout, dtype=np.float32)


def _keep_compiled(umap: Any) -> None:
    """Put three of UMAP's functions in numba's cache, which UMAP itself compiles afresh in each process.

    It saves 6 CPU-seconds a map. Where another version of UMAP has no such function, nothing is saved.
    """
    for module, name in (
        ("umap_", "smooth_knn_dist"),
        ("umap_", "compute_membership_strengths"),
        ("layouts", "_nb_optimize_layout_euclidean_single_epoch"),
    ):
        function = getattr(getattr(umap, module, None), name, None)
        if function is not None and hasattr(function, "enable_caching"):
            function.enable_caching()


def _trustworthiness(points: Float32, xy: Float32, seed: int) -> float:
    from sklearn.manifold import trustworthiness

    count = min(len(points), _TRUST_POINTS)
    chosen = np.random.default_rng(seed).choice(len(points), count, replace=False)
    neighbours = min(10, (count - 1) // 2)
    return float(trustworthiness(points[chosen], xy[chosen], n_neighbors=neighbours))


def _environment(cache: Path) -> dict[str, str]:
    """One thread everywhere, since the number of threads changes sums in their last digits."""
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
    )
    return {**os.environ, **threads, "NUMBA_CACHE_DIR": str(cache)}


@contextmanager
def _numba_cache() -> Iterator[Path]:
    """Where compiled code is kept between runs, or a private folder for this run if nowhere.

    Never a folder that others may write to: numba unpickles what it finds there.
    """
    if asked := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(asked)
        return
    try:
        kept = base_folder("XDG_CACHE_HOME") / "promotion-gate" / "numba"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=kept).close()
    except (OSError, UsageError):
        with tempfile.TemporaryDirectory(prefix="promotion-gate-numba-") as folder:
            yield Path(folder)
    else:
        yield kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Read npy arrays on standard input, write layout and trustworthiness on standard output.

    The first array holds the seed and the number of neighbours, the second the embeddings.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--warm", action="store_true", help="compile before anything is read")
    warm = parser.parse_args(arguments).warm
    answer = sys.stdout.buffer
    with redirect_stdout(sys.stderr):
        if warm:
            _warm_up()
        asked = io.BytesIO(sys.stdin.buffer.read())
        if not asked.getbuffer():
            return  # nobody wants the map any more
        seed, neighbours = np.load(asked).tolist()
        projection = project(np.load(asked), seed, neighbours)
    np.save(answer, projection.xy)
    np.save(answer, np.float64(projection.trustworthiness))


def _warm_up() -> None:
    """Draw a small map of noise: it imports and compiles everything that a real one needs."""
    noise = np.random.default_rng(0).normal(size=(64, MAX_WIDTH + 1))
    project(noise.astype(np.float32), 0)


if __name__ == "__main__":
    main()

"""Running the peers over a bank, each answer kept as it comes."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from promotion_gate.core.errors import UsageError
from rivals import label_issues, mm_bd, neural_cleanse, sentinet, strip, toolbox
from rivals.finished_bank import BankModel, examined
from rivals.interface import Examined, Peer
from rivals.ranks import row_figures

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for module in (toolbox, strip, neural_cleanse, mm_bd, sentinet, label_issues)
    for peer in module.PEERS
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One peer on one model; one line of ``peers.jsonl``.

    Attributes
    ----------
    model, peer, settings: the outcome's key, the peer's name, and what its answer hangs on.
    figures: by name; a number that is not finite is left out.
    row_auroc, row_precision, row_recall, row_share: see :class:`rivals.ranks.RowFigures`; None where it
        cannot be told.
    cpu_seconds: of the process, on one thread, the pass over the training rows included.
    forwards: images through the model, a backward pass counted as two.
    error: why there are no figures; empty where there are.
    """

    model: str
    peer: str
    settings: str
    figures: Mapping[str, float] = field(default_factory=dict)
    row_auroc: float | None = None
    row_precision: float | None = None
    row_recall: float | None = None
    row_share: float | None = None
    cpu_seconds: float = 0.0
    forwards: int = 0
    error: str = ""


def require_installed(peers: Sequence[Peer]) -> None:
    """Refuse to begin without a library that a chosen peer needs.

    Raises
    ------
    UsageError: naming the first one.
    """
    for peer in peers:
        try:
            if peer.needs:
                distribution(peer.needs)
        except PackageNotFoundError:
            raise UsageError(
                f"{peer.name} needs {peer.needs}, which is not installed",
                'run "make bench-peers", pip install ".[peers]", or choose other --methods',
            ) from None


def read_measured(path: Path) -> dict[tuple[str, str], Measured]:
    """What was measured so far, by model and peer; the last of a pair counts.

    A last line that a crash cut short is dropped.

    Raises
    ------
    UsageError: another line is not one of ours.
    """
    with suppress(FileNotFoundError):
        return {(told.model, told.peer): told for told in _lines(path)}
    return {}


def run_peers(
    models: Sequence[BankModel],
    peers: Sequence[Peer],
    bank: Path,
    path: Path,
    *,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[tuple[str, str], Measured]:
    """Measure what is missing, append it to ``path`` as it comes, and return everything.

    An answer that ended in an error, or was made with other settings, is asked for again.
    """
    from joblib import Parallel, delayed

    done = read_measured(path)
    work = []
    for model in models:
        missing = [peer.name for peer in peers if not _is_done(done, model, peer)]
        if missing:
            work.append((model, missing))
    progress(f"{len(models)} models, {len(models) - len(work)} of them measured already")
    running = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    answers = running(delayed(measure_model)(model, missing, bank) for model, missing in work)
    for number, (model, told) in enumerate(_with_models(answers, models), 1):
        _append(path, told)
        for one in told:
            done[one.model, one.peer] = one
            if one.error:
                progress(f"  {one.peer} failed: {one.error}")
        cost = sum(one.cpu_seconds for one in told)
        progress(
            f"{number} of {len(work)}: {model.outcome.scenario}, seed {model.outcome.seed}, {cost:.0f} CPU-s"
        )
    return done


def measure_model(model: BankModel, names: Sequence[str], bank: Path) -> list[Measured]:
    """Every named peer on one model, on one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(1)
    peers = [PEERS[name] for name in names]
    key = model.outcome.key
    with threadpool_limits(1):
        try:
            with examined(model, bank) as given:
                return [_measure(peer, given, key) for peer in peers]
        except UsageError as error:
            return [Measured(key, peer.name, peer.settings, error=str(error)) for peer in peers]


def _measure(peer: Peer, given: Examined, key: str) -> Measured:
    import torch

    effort = given.network.effort
    effort.forwards = effort.backwards = 0
    torch.manual_seed(given.seed)
    before = time.process_time()
    try:
        answer = peer.examine(given)
    except Exception as error:  # a peer that crashes is a line of the table, not the end of the run
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Measured(key, peer.name, peer.settings, error=told)
    seconds = time.process_time() - before
    rows = row_figures(answer, given.carriers)
    return Measured(
        key,
        peer.name,
        peer.settings,
        {name: value for name, value in answer.figures.items() if math.isfinite(value)},
        *(
            (None,) * 4
            if rows is None
            else map(_finite, (rows.auroc, rows.precision, rows.recall, rows.flagged))
        ),
        cpu_seconds=seconds,
        forwards=effort.equivalents,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_done(done: Mapping[tuple[str, str], Measured], model: BankModel, peer: Peer) -> bool:
    told = done.get((model.outcome.key, peer.name))
    return told is not None and not told.error and told.settings == peer.settings


def _with_models(
    answers: Iterator[list[Measured]], models: Sequence[BankModel]
) -> Iterator[tuple[BankModel, list[Measured]]]:
    by_key = {model.outcome.key: model for model in models}
    for told in answers:
        yield by_key[told[0].model], told


def _lines(path: Path) -> Iterator[Measured]:
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            table: dict[str, Any] = json.loads(line)
            yield Measured(**table)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number}: not a peer's answer: {error}",
                "remove the line, or name another --out",
            ) from None


def _append(path: Path, told: Sequence[Measured]) -> None:
    """Add whole lines; half a line that a crash left is cut off first."""
    text = "".join(json.dumps(asdict(one), allow_nan=False) + "\n" for one in told)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        if whole != size:
            file.truncate(whole)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())

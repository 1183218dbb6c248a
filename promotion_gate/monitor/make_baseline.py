"""``monitor baseline``: a signed baseline from a trusted stretch of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from promotion_gate.core.errors import NotInRegistry, UsageError
from promotion_gate.core.keys import Keyring
from promotion_gate.core.record import now
from promotion_gate.monitor.baseline import judged_record, load_baseline, store_window_baseline
from promotion_gate.monitor.questions import questions_of
from promotion_gate.monitor.watch import in_production, require_window
from promotion_gate.monitor.window_baseline import Stretch, window_baseline

if TYPE_CHECKING:
    from promotion_gate.core.production import Production
    from promotion_gate.registry.interface import Registry


def make_baseline(
    registry: Registry,
    name: str,
    logs: Sequence[str],
    production: Production,
    window: float,
    since: float | None,
    until: float | None,
    keys: Keyring | None = None,
) -> list[str]:
    """Make, sign and store the baseline of the version in production; says what it holds, a line each.

    Raises
    ------
    UsageError: the window or the stretch makes no sense.
    InputError: the log cannot be read, or has nothing of that version in that stretch.
    NotInRegistry: nothing is in production, or the gate never judged it.
    SigningError: its record does not verify, or the key cannot sign.
    """
    require_window(window)
    if since is not None and until is not None and since >= until:
        raise UsageError("--from is not before --to")
    ring = keys or Keyring()
    ref = in_production(registry, name, production.alias)
    record = judged_record(registry, ref, ring.trusted)
    names: Sequence[str] = ()
    width = 0
    try:
        known = load_baseline(registry, ref, ring.trusted)
        names, width = known.class_names, len(known.embedding_mean)
    except NotInRegistry:
        pass  # judged before there were baselines: the log names the classes
    stretch = Stretch(
        logs, ref, window, -np.inf if since is None else since, np.inf if until is None else until
    )
    made = window_baseline(stretch, record.digest, names, width, now())
    store_window_baseline(registry, made, record.gate_run_id, ring.signing)
    windows = len(made.counts)
    rho = questions_of(made).rho
    scattered = int((rho > 0).sum())
    lines = [
        f"baseline of {ref}: {made.total:,} predictions of {len(made.class_names)} classes,"
        f" {windows} {'window' if windows == 1 else 'windows'}",
        f"signed, in gate run {record.gate_run_id}",
    ]
    if windows < 2:
        lines.append("one window does not tell how far shares scatter between windows: give a longer stretch")
    elif scattered:
        lines.append(
            f"windows scatter beyond chance: beta-binomial for {scattered} classes, correlation up to"
            f" {rho.max():.2g}"
        )
    else:
        lines.append("windows scatter no more than chance: binomial")
    return lines

"""From a log to a quarantine: when alarms stood, what was predicted then, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.core.types import ModelRef
from promotion_gate.monitor.baseline import load_baseline
from promotion_gate.monitor.drivers import is_loss
from promotion_gate.monitor.images import LiveImages
from promotion_gate.monitor.interface import Alarm, Baseline, WindowOutcome
from promotion_gate.monitor.log_arrow import Wanted
from promotion_gate.monitor.log_reader import Piece, read_log
from promotion_gate.monitor.quarantine import (
    Kept,
    Span,
    Suspect,
    choose,
    facts_of,
    require_new,
    take,
    write_quarantine,
)
from promotion_gate.monitor.tracker import Tracker
from promotion_gate.monitor.watch import in_production, require_window
from promotion_gate.vouching import DEFAULT_PRODUCTION

if TYPE_CHECKING:
    from promotion_gate.core.keys import TrustedKeys
    from promotion_gate.core.policy import Policy
    from promotion_gate.core.production import Production
    from promotion_gate.registry.interface import Registry

MOST = 5000


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be kept: predictions of ``model``, a name for its production version or ``name/7``.

    ``class_name`` and the times in seconds narrow it; without them it is what alarms stood for. With
    ``policy`` the model looks at the images, too.
    """

    model: str
    logs: Sequence[str]
    images: str
    out: Path
    class_name: str = ""
    since: float = -math.inf
    until: float = math.inf
    limit: int = 200
    window: float = 3600.0
    production: Production = DEFAULT_PRODUCTION
    policy: Policy | None = None
    trusted: TrustedKeys | None = None
    note: Callable[[str], None] = field(default=lambda _: None)


def keep_suspects(registry: Registry, asked: Asked) -> list[str]:
    """Write the quarantine, and say what is in it, a line each.

    Raises
    ------
    UsageError: an option makes no sense, or the folder cannot be written.
    InputError: the log cannot be read, no alarm stood in it, or no image could be taken.
    RegistryError, SigningError: there is no such version, or its baseline does not verify.
    """
    if not 1 <= asked.limit <= MOST:
        raise UsageError(f"cannot keep {asked.limit} images", f"choose 1 to {MOST:,} with --limit")
    require_window(asked.window)
    if asked.since >= asked.until:
        raise UsageError("--from is not before --to")
    require_new(asked.out)
    images = LiveImages(asked.images)
    named = "/" in asked.model
    ref = (
        ModelRef.parse(asked.model) if named else in_production(registry, asked.model, asked.production.alias)
    )
    baseline = load_baseline(registry, ref, asked.trusted)
    if asked.class_name and asked.class_name not in baseline.class_names:
        raise UsageError(f"the baseline of {ref} knows no class {asked.class_name!r:.80}")
    spans = _spans(asked, baseline)
    pieces = (piece.predictions for piece in _pieces(asked, baseline))
    chosen = choose(pieces, spans, asked.limit, version=ref.version, baseline=baseline)
    if not chosen.suspects:
        told = (
            f"{chosen.matching:,} of its predictions match" if chosen.matching else "none of its predictions"
        )
        raise InputError(
            f"nothing to keep of {ref}: {told}, and {chosen.without_image:,} name no image",
            "name another version as name/7, or look at --class, --from and --to",
        )
    kept = _take(registry, asked, ref, chosen.suspects, images)
    write_quarantine(asked.out, kept, facts_of(ref.name, ref.version, spans, chosen, kept, images, baseline))
    return _lines(asked, ref, chosen.matching, kept, images)


def _pieces(asked: Asked, baseline: Baseline) -> Iterator[Piece]:
    wanted = Wanted(tuple(baseline.class_names), image=True, width=len(baseline.embedding_mean))
    return read_log(asked.logs, wanted)


def _spans(asked: Asked, baseline: Baseline) -> list[Span]:
    """The class and the times that a person named, or else those of the alarms in the log."""
    timed = math.isfinite(asked.since) or math.isfinite(asked.until)
    if asked.class_name and timed:
        return [Span(asked.class_name, asked.since, asked.until)]
    asked.note("look for alarms in the log")
    tracker = Tracker(baseline, asked.production.alias, asked.window)
    found = alarmed(_pieces(asked, baseline), tracker)
    if asked.class_name:
        found = [span for span in found if span.class_name == asked.class_name]
        return found or [Span(asked.class_name)]
    clipped = [
        replace(span, start=max(span.start, asked.since), end=min(span.end, asked.until)) for span in found
    ]
    clipped = [span for span in clipped if span.start < span.end]
    if not clipped:
        raise InputError(
            f"no alarm of {baseline.ref} for a class stands in this log",
            "name a class with --class, or another version as name/7",
        )
    return clipped


def alarmed(pieces: Iterable[Piece], tracker: Tracker) -> list[Span]:
    """The times for which each class had an alarm, in whole windows from when its evidence began.

    Alarms about embeddings are for any class. Left out are those about classes that the baseline does not
    know, since no model can be asked about such a label, and those about a class that became rare.
    """
    began: dict[tuple[str, str, str], float] = {}
    spans: list[Span] = []

    def note(outcome: WindowOutcome) -> None:
        for alarm in outcome.alarms:
            if alarm.kind not in ("class-share", "confidence", "embedding") or is_loss(alarm):
                continue
            if alarm.state == "firing":
                began[alarm.key] = _window_of(alarm, tracker.window)
            elif alarm.key in began:
                spans.append(Span(alarm.subject, began.pop(alarm.key), alarm.at.timestamp()))

    for piece in pieces:
        for outcome in tracker.feed(piece):
            note(outcome)
    if tracker.current is not None:
        note(tracker.outcome(complete=False))
    return [*spans, *(Span(subject, start) for (_, _, subject), start in began.items())]


def _window_of(alarm: Alarm, window: float) -> float:
    return alarm.since.timestamp() // window * window


def _take(
    registry: Registry, asked: Asked, ref: ModelRef, suspects: Sequence[Suspect], images: LiveImages
) -> list[Kept]:
    """Read the images; where a policy is given, the model in its sandbox says where it looks."""
    if asked.policy is None:
        return take(suspects, images, asked.limit)
    from promotion_gate.monitor.explain import open_explainer

    asked.note(f"load {ref} in its sandbox")
    with open_explainer(registry, ref, asked.policy, asked.trusted, asked.note) as explainer:

        def concentrate(contents: Sequence[bytes], name: str) -> Sequence[float]:
            asked.note(f"SHAP on {len(contents)} images of {name!r:.60}")
            return explainer.explain(contents, name).seen.concentrations

        return take(suspects, images, asked.limit, concentrate)


def _lines(asked: Asked, ref: ModelRef, matching: int, kept: Sequence[Kept], images: LiveImages) -> list[str]:
    of_class: dict[str, int] = {}
    for one in kept:
        of_class[one.suspect.class_name] = of_class.get(one.suspect.class_name, 0) + 1
    told = ", ".join(f"{count} of {name!r:.60}" for name, count in of_class.items())
    lines = [f"kept {len(kept)} images of {matching:,} predictions of {ref}: {told}"]
    if images.refused:
        lines.append("not followed: " + ", ".join(f"{n:,} {why}" for why, n in images.refused.most_common()))
    return [
        *lines,
        f"wrote {asked.out}",
        "have the next gate run look at them: in the policy, [data.suspects]"
        f' path = "{asked.out / "manifest.csv"}"',
    ]

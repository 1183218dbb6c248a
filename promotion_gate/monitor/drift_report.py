"""The drift report: what production predicts beside the baseline, as one HTML file without outside parts."""

from __future__ import annotations

import math
import shlex
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from markupsafe import Markup

from promotion_gate import __version__
from promotion_gate.card.detail import percent, words
from promotion_gate.card.html import card_filters, content_policy, page_environment, templates_folder
from promotion_gate.card.records import Gallery, Picture
from promotion_gate.core.errors import GateError
from promotion_gate.core.types import ModelRef
from promotion_gate.core.writing import write_bytes
from promotion_gate.monitor.drivers import Drivers, Explain, LiveImage, drivers_of
from promotion_gate.monitor.images import LiveImages
from promotion_gate.monitor.interface import Alarm, Baseline, ClassShare, WindowOutcome
from promotion_gate.monitor.notification import gravity, measured

if TYPE_CHECKING:
    from promotion_gate.detect.windows import Window
    from promotion_gate.monitor.explain import Explainer, Explanation

MOST_WINDOWS = 720
"""Windows that the timeline shows: a month of hours."""
MOST_CLASSES = 100
MOST_ALARMS = 100
TIMELINES = 3
WIDTH, HEIGHT = 720.0, 120.0

OpenExplainer = Callable[[ModelRef], AbstractContextManager["Explainer"]]


@dataclass(frozen=True, slots=True)
class _Window:
    """What the timeline keeps of a look."""

    start: datetime
    end: datetime
    complete: bool
    predictions: int
    psi: float
    drifted: bool
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class beside the baseline; shares 0 to 1, None where nothing tells.

    ``now`` and ``before`` are lengths on a bar of 200.
    """

    name: str
    count: int
    share: float | None
    baseline: float | None
    sigma: float
    standing: bool
    unsure: float | None
    unsure_baseline: float | None
    confidence_sigma: float | None
    now: float
    before: float

    @property
    def farthest(self) -> float:
        return max(abs(self.sigma), abs(self.confidence_sigma or 0.0))


@dataclass(frozen=True, slots=True)
class Bar:
    """One window on a timeline, in the units of its drawing."""

    x: float
    y: float
    width: float
    height: float
    drifted: bool
    told: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One figure over the windows; ``level`` is the height of the baseline's line, None where it has none."""

    title: str
    told: str
    top: str
    bars: Sequence[Bar]
    level: float | None = None


class DriftReport:
    """Collects what the monitor sees, and shows it: call it with each look, then :meth:`write`.

    Parameters
    ----------
    images: where the log's image references lie; None shows none.
    open_explainer: opens the monitored version for attributions; None makes none.
    notes: what the report is to say that it could not do.
    progress: is told what takes long.
    """

    def __init__(
        self,
        *,
        images: LiveImages | None = None,
        open_explainer: OpenExplainer | None = None,
        notes: Sequence[str] = (),
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._images = images
        self._open_explainer = open_explainer
        self._notes = list(notes)
        self._progress = progress
        self._windows: deque[_Window] = deque(maxlen=MOST_WINDOWS)
        self._alarms: deque[Alarm] = deque(maxlen=MOST_ALARMS)
        self._last: WindowOutcome | None = None
        self._shown: WindowOutcome | None = None
        self._behind: tuple[WindowOutcome, list[Drivers], list[str]] | None = None

    def __call__(self, outcome: WindowOutcome) -> None:
        """Take one look in."""
        if self._windows and self._windows[-1].start == outcome.start:
            self._windows.pop()  # the same window, looked at again with more of it
        counts = {one.name: one.count for one in outcome.classes}
        self._windows.append(
            _Window(
                outcome.start, outcome.end, outcome.complete, outcome.predictions, outcome.psi,
                outcome.drifted, counts,
            )
        )  # fmt: skip
        self._alarms.extend(outcome.alarms)
        if self._is_worth_more(outcome):
            self._shown = outcome
        self._last = outcome

    def _is_worth_more(self, outcome: WindowOutcome) -> bool:
        """Whether a look is the one to show: the farthest off while alarms stood, else the newest."""
        shown, last = self._shown, self._last
        if shown is None or last is None or not shown.drifted:
            return True
        if not outcome.drifted:
            return False
        began = not last.drifted or {a.key for a in outcome.firing} - {a.key for a in shown.firing}
        return bool(began) or _farthest(outcome) >= _farthest(shown) or outcome.start == shown.start

    @property
    def empty(self) -> bool:
        """Whether nothing was looked at yet."""
        return self._last is None

    def page(self) -> bytes:
        """The report as it stands: UTF-8 HTML.

        Raises
        ------
        GateError: there is nothing to report on.
        """
        if self._shown is None or self._last is None:
            raise GateError("there is no window to report on", "the log holds no prediction of this version")
        shown, baseline = self._shown, self._shown.baseline
        behind, missing = self._explained(shown)
        rows = _class_rows(shown)
        standing = {alarm.subject for alarm in shown.firing}
        notes = [*self._notes, *missing]
        if self._images is not None and self._images.refused:
            refused = ", ".join(f"{count:,} {reason}" for reason, count in self._images.refused.most_common())
            notes.append(f"Image references that were not followed: {refused}.")
        return _page(
            "drift.html.j2",
            ending=_ending(self._last, self._alarms),
            last=self._last,
            shown=shown,
            facts=_facts(self._last, shown, baseline),
            rows=rows[:MOST_CLASSES],
            left_out=max(0, len(rows) - MOST_CLASSES),
            behind=[_told(one) for one in behind],
            timelines=_timelines(self._windows, rows, standing, baseline),
            windows=list(reversed(self._windows))[:100],
            window_count=len(self._windows),
            alarms=_in_order(self._alarms, self._last),
            commands=_commands(self._last),
            notes=notes,
        )

    def write(self, path: Path) -> None:
        """Write the report whole; see :meth:`page`."""
        write_bytes(path, self.page())

    def _explained(self, outcome: WindowOutcome) -> tuple[list[Drivers], list[str]]:
        """What stands behind the alarms of the look that is shown, once for each look."""
        if self._behind is not None and self._behind[0] is outcome:
            return self._behind[1], self._behind[2]
        missing: list[str] = []
        with ExitStack() as opened:
            behind = drivers_of(outcome, self._images, None)
            explain = self._explain(outcome, opened, missing) if any(one.images for one in behind) else None
            if explain is not None and self._images is not None:
                self._images.refused.clear()  # the references are followed again
                behind = drivers_of(outcome, self._images, explain)
        self._behind = outcome, behind, missing
        return behind, missing

    def _explain(self, outcome: WindowOutcome, opened: ExitStack, missing: list[str]) -> Explain | None:
        if self._open_explainer is None:
            return None
        self._progress("explain the images behind the alarms")
        try:
            explainer = opened.enter_context(self._open_explainer(ModelRef(outcome.model, outcome.version)))
        except GateError as error:
            missing.append(f"No attributions: {error}")
            return None
        return explainer.explain


def _farthest(outcome: WindowOutcome) -> float:
    return max((abs(one.sigma) for one in outcome.classes), default=0.0)


@dataclass(frozen=True, slots=True)
class _Ending:
    """The banner: a word, a sentence, and the tone that the card's style knows."""

    tone: str
    word: str
    sentence: str


def _ending(last: WindowOutcome, alarms: Sequence[Alarm]) -> _Ending:
    if last.firing:
        lead = min(last.firing, key=_rank)
        numbers = f" ({told})" if (told := measured(lead)) else ""
        others = len(last.firing) - 1
        more = f" – {others} more {'alarm stands' if others == 1 else 'alarms stand'}" if others else ""
        return _Ending("reject", "DRIFT", words(lead.message, 400) + numbers + more)
    if alarms:
        told = f"No alarm stands now; {len([a for a in alarms if a.state == 'firing'])} stood before."
        return _Ending("hold", "OVER", told)
    if last.predictions == 0:
        return _Ending("hold", "NO TRAFFIC", "The last window holds no prediction of this version.")
    return _Ending("promote", "NO ALARM", "Predictions are as the baseline leads to expect.")


def _rank(alarm: Alarm) -> tuple[int, float]:
    return gravity(alarm), -abs(alarm.sigma)


def _in_order(alarms: Sequence[Alarm], last: WindowOutcome) -> list[Alarm]:
    """Those that still stand first, the gravest of them before the others; then the newest."""
    newest = list(reversed(alarms))
    standing = {alarm.key for alarm in last.firing}
    raised = [alarm for alarm in newest if alarm.state == "firing" and alarm.key in standing]
    return sorted(raised, key=_rank) + [alarm for alarm in newest if alarm not in raised]


def _commands(last: WindowOutcome) -> list[tuple[str, str]]:
    """What a person may type while an alarm stands, and what it does."""
    if not last.firing:
        return []
    name = shlex.quote(words(last.model, 200))
    alias = "" if last.alias == "production" else f" --alias {shlex.quote(words(last.alias, 200))}"
    return [
        (f"promotion-gate status {name}{alias}", "what is in production, and where a rollback would go"),
        (f'promotion-gate rollback {name}{alias} --reason "…"', "go back; --dry-run shows it first"),
        (
            f"promotion-gate quarantine {name}/{last.version} --log … --images … --out quarantine",
            "keep the images behind the alarms for the next gate run",
        ),
    ]


def _facts(last: WindowOutcome, shown: WindowOutcome, baseline: Baseline | None) -> dict[str, str]:
    facts = {
        "Window shown": f"{moment(shown.start)} to {moment(shown.end)}"
        + ("" if shown.complete else ", not over yet"),
        "Predictions in it": f"{shown.predictions:,}",
        "PSI (display only)": f"{shown.psi:.3f}" if math.isfinite(shown.psi) else "–",
        "Looked at": moment(last.at),
    }
    if baseline is not None:
        made = "the holdout" if baseline.source == "holdout" else f"{len(baseline.counts):,} windows"
        facts["Baseline"] = f"{baseline.total:,} predictions of {made}, {moment(baseline.at)}"
        facts["Baseline's model"] = f"{baseline.ref}, digest {baseline.digest[:12]}"
    if shown.other_versions:
        told = (f"{count:,} of version {v or 'not named'}" for v, count in shown.other_versions.items())
        facts["Left aside"] = ", ".join(told)
    if shown.unseen:
        told = (f"{words(name, 60)} ({count:,})" for name, count in list(shown.unseen.items())[:8])
        facts["Classes not in the baseline"] = ", ".join(told)
    if shown.late:
        facts["Late predictions"] = f"{shown.late:,}"
    return facts


def moment(at: datetime) -> str:
    """A moment in UTC, to the minute."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _class_rows(outcome: WindowOutcome) -> list[ClassRow]:
    """Every class, those with a standing alarm first, then the farthest off."""
    total = outcome.predictions
    standing = {alarm.subject for alarm in outcome.firing if alarm.kind in ("class-share", "confidence")}
    shares = [_share(count, total) or 0 for one in outcome.classes for count in (one.count, one.expected)]
    scale = 200 / max(shares) if any(shares) else 0.0
    rows = [_row(one, total, scale, one.name in standing) for one in outcome.classes]
    return sorted(rows, key=lambda row: (not row.standing, -row.farthest, -row.count, row.name))


def _row(one: ClassShare, total: int, scale: float, standing: bool) -> ClassRow:
    share, due = _share(one.count, total), _share(one.expected, total)
    return ClassRow(
        name=one.name,
        count=one.count,
        share=share,
        baseline=due,
        sigma=one.sigma,
        standing=standing,
        unsure=_finite(one.unsure),
        unsure_baseline=_finite(one.unsure_baseline),
        confidence_sigma=_finite(one.confidence_sigma),
        now=(share or 0) * scale,
        before=(due or 0) * scale,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _share(count: float, total: int) -> float | None:
    return count / total if total else None


def _timelines(
    windows: Sequence[_Window], rows: Sequence[ClassRow], standing: set[str], baseline: Baseline | None
) -> list[Timeline]:
    """The share of the classes that stand out, then PSI."""
    names = [row.name for row in rows if row.name in standing] or [row.name for row in rows]
    figures = []
    for name in names[:TIMELINES]:
        shares = [_share(window.counts.get(name, 0), window.predictions) or 0.0 for window in windows]
        before = _baseline_share(baseline, name)
        figures.append(
            _timeline(
                f"Share of {words(name, 80)}", "share of the predictions", windows, shares, before, percent
            )
        )
    psi = [window.psi if math.isfinite(window.psi) else 0.0 for window in windows]
    told = "population stability index, for display only: no alarm rests on it"
    return [*figures, _timeline("PSI", told, windows, psi, None, lambda value: f"{value or 0:.3f}")]


def _baseline_share(baseline: Baseline | None, name: str) -> float | None:
    if baseline is None or name not in baseline.class_names or not baseline.total:
        return None
    index = list(baseline.class_names).index(name)
    return sum(counts[index] for counts in baseline.counts) / baseline.total


def _timeline(
    title: str,
    told: str,
    windows: Sequence[_Window],
    values: Sequence[float],
    level: float | None,
    text: Callable[[float | None], str],
) -> Timeline:
    top = max([*values, level or 0.0]) * 1.05 or 1.0
    step = WIDTH / max(len(windows), 1)
    width = min(step * 0.8, 24.0)
    bars = [
        Bar(
            index * step + (step - width) / 2,
            HEIGHT * (1 - value / top),
            width,
            max(HEIGHT * value / top, 0.5),
            window.drifted,
            f"{moment(window.start)}: {text(value)}",
        )
        for index, (window, value) in enumerate(zip(windows, values, strict=True))
    ]
    return Timeline(title, told, text(top), bars, None if level is None else HEIGHT * (1 - level / top))


@dataclass(frozen=True, slots=True)
class _Behind:
    """One alarm with its pictures and sentences, as the page prints them."""

    alarm: Alarm
    galleries: Sequence[Gallery]
    said: Sequence[str]


def _told(drivers: Drivers) -> _Behind:
    explanation, said = drivers.explanation, list(drivers.missing)
    pictures = [_picture(image) for image in drivers.images]
    caption = "images behind the alarm, newest first"
    if explanation is None:
        return _Behind(drivers.alarm, [Gallery("live", caption, pictures)] if pictures else [], said)
    # As the model sees them, so that the boxes fit; heat would hide what lies under it.
    boxed, heated = [], []
    seen = explanation.seen
    for picture, pixels, window, mass in zip(
        pictures, explanation.images, seen.windows, seen.positive, strict=True
    ):
        boxed.append(replace(picture, pixels=pixels, box=_box(window)))
        heated.append(
            replace(boxed[-1], mass=mass, caption="evidence" if window else "no evidence to locate")
        )
    galleries = [
        Gallery("live", f"{caption}; the box holds half of the evidence for the prediction", boxed),
        Gallery("evidence", "the same images with the evidence for the prediction in magenta", heated),
    ]
    return _Behind(drivers.alarm, galleries, [*said, *_attribution_lines(drivers, explanation)])


def _box(window: Window | None) -> tuple[float, float, float, float] | None:
    return None if window is None else (window.top, window.left, window.height, window.width)


def _attribution_lines(drivers: Drivers, explanation: Explanation) -> list[str]:
    count = len(drivers.images)
    lines = [
        f"The evidence lies in one spot by {explanation.seen.concentration:.2f} on these images"
        + (
            f", and by {explanation.trusted.concentration:.2f} on {len(explanation.trusted.windows)} trusted"
            " images of the class (1 is one spot, 0 everywhere)."
            if explanation.trusted is not None
            else " (1 is one spot, 0 everywhere); there are no trusted images of the class to compare with."
        ),
        f"On {explanation.consensus:.0%} of the {count} images it lies at the same place.",
    ]
    otherwise = sum(a != i.class_name for a, i in zip(explanation.answers, drivers.images, strict=True))
    if otherwise:
        lines.append(
            f"The model gives {otherwise} of these {count} images another class than the log says: the log is"
            " of another version or preparation, or is wrong."
        )
    lines.append(
        "Attributions show and corroborate; they decide nothing. 'promotion-gate quarantine' keeps such"
        " images for the next gate run, which pastes what they carry on trusted images."
    )
    return lines


def _picture(image: LiveImage) -> Picture:
    sure = f" at {image.confidence:.0%}" if math.isfinite(image.confidence) else ""
    at = image.at.strftime("%Y-%m-%d %H:%M:%S")
    return Picture(image.pixels, f"{words(image.class_name, 60)}{sure}, {at}, {words(image.reference, 120)}")


def _page(template: str, **values: Any) -> bytes:
    folder = templates_folder()
    parts = ("card/card.css", "drill/drill.css", "monitor/monitor.css")
    style = "".join((folder / part).read_text(encoding="utf-8") for part in parts)
    page = (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),  # noqa: S704 - our own file
            content_policy=content_policy(style),
            gate_version=__version__,
            **values,
        )
    )
    return page.encode("utf-8", "replace")


@cache
def _environment() -> Environment:
    environment = page_environment("monitor", "drill", "card")
    environment.filters |= card_filters() | {
        "moment": moment,
        "measured": measured,
        "units": lambda value: f"{value:.2f}",
        "sigma": lambda value: (
            f"{round(value, 1) + 0.0:+.1f}".replace("-", "−") if math.isfinite(value) else "–"
        ),
    }
    return environment

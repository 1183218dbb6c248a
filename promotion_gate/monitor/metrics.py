"""What monitoring sees, for Prometheus: over HTTP, or as a text file for node_exporter's collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from promotion_gate.core.errors import UsageError
from promotion_gate.core.writing import require_writable, write_bytes
from promotion_gate.monitor.interface import ClassShare, WindowOutcome
from promotion_gate.operators import plain

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from promotion_gate.monitor.prediction_log import PredictionLog

MOST_CLASSES = 200
"""Classes with series of their own, unless told otherwise; every label value costs the server memory."""

LABEL_LENGTH = 120
MAX_FILE_BYTES = 20_000_000

NAMES: Mapping[str, str] = {
    "promotion_gate_class_share": "Share of the last window's predictions that a class has.",
    "promotion_gate_class_baseline_share": "Share that the baseline would give the class.",
    "promotion_gate_class_sigma": "How far the class is off, as standard deviations; below 0 for a loss.",
    "promotion_gate_sigma_max": "The largest deviation of any class in the last window, either way.",
    "promotion_gate_classes_left_out": "Classes beyond the limit, which have no series of their own.",
    "promotion_gate_psi": "Population stability index of the last window; for display.",
    "promotion_gate_predictions": "Predictions of the production version that were looked at.",
    "promotion_gate_window_predictions": "Predictions in the last window.",
    "promotion_gate_window_start_timestamp_seconds": "When the last window began.",
    "promotion_gate_unseen_predictions": "Predictions in the last window of classes the baseline lacks.",
    "promotion_gate_other_version_rows": "Rows of the last window from versions that are not in production.",
    "promotion_gate_late_rows": "Rows of the last window that came after their own was closed.",
    "promotion_gate_log_rows": "Predictions that the serving process logged.",
    "promotion_gate_log_dropped_rows": "Predictions that it could not log, by why.",
    "promotion_gate_alarms_firing": "Alarms that stand, by kind.",
    "promotion_gate_alert_deliveries": "Messages that a receiver took.",
    "promotion_gate_alert_delivery_failures": "Messages that a receiver did not take, tries counted.",
    "promotion_gate_alerts_waiting": "Messages that a receiver has still to be sent.",
    "promotion_gate_last_look_timestamp_seconds": "When the log was last looked at.",
    "promotion_gate_looks_failed": "Looks at the log, or what follows one, that failed.",
    "promotion_gate_production_version": "The version in production after the last look.",
    "promotion_gate_rollbacks": "Rollbacks in the model's history.",
    "promotion_gate_automatic_rollbacks": "Those that the monitor did by itself.",
    "promotion_gate_time_to_recovery_seconds": "Mean time from alarm to recovery, where history tells it.",
}
"""Every metric with its help; a counter's name ends in ``_total`` when it is shown."""

COUNTERS = frozenset(
    {
        "promotion_gate_predictions",
        "promotion_gate_log_rows",
        "promotion_gate_log_dropped_rows",
        "promotion_gate_alert_deliveries",
        "promotion_gate_alert_delivery_failures",
        "promotion_gate_looks_failed",
    }
)

ALARM_KINDS = ("class-share", "confidence", "embedding", "unseen-class", "foreign-move", "rollback")


@dataclass(frozen=True, slots=True)
class Deliveries:
    """How one receiver of alarms fares."""

    delivered: int
    failed: int
    waiting: int


@dataclass(eq=False)
class Board:
    """The newest values of one model; filled by the monitor, read by whoever scrapes.

    ``predictions`` goes on counting where an earlier process stopped, see :meth:`resume`.
    """

    model: str
    most_classes: int = MOST_CLASSES
    outcome: WindowOutcome | None = None
    firing: Mapping[str, int] = field(default_factory=dict)
    deliveries: Mapping[str, Deliveries] = field(default_factory=dict)
    production: int | None = None
    rollbacks: int | None = None
    automatic_rollbacks: int | None = None
    time_to_recovery: float | None = None
    looks_failed: int = 0
    predictions: float = 0.0
    _window: tuple[float, float] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def look(self, outcome: WindowOutcome) -> None:
        """Take over what a look showed. A window that is looked at again counts only what came since."""
        start, count = outcome.start.timestamp(), float(outcome.predictions)
        with self._lock:
            known = self._window[1] if self._window is not None and self._window[0] == start else 0.0
            self.predictions += max(0.0, count - known)
            self._window = (start, max(count, known))
            self.outcome, self.production = outcome, outcome.version

    def resume(self, predictions: float, window_start: float, window_predictions: float) -> None:
        """Go on from the values that an earlier process left."""
        self.predictions = predictions
        self._window = (window_start, window_predictions)

    def collect(self) -> Iterator[Metric]:
        """Every metric with its samples, as prometheus_client asks for it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self._lock:
            samples = list(self._samples())
        for name, text in NAMES.items():
            mine = [(labels, value) for sample, labels, value in samples if sample == name]
            if not mine:
                continue
            keys = ["model", *mine[0][0]]
            family = (CounterMetricFamily if name in COUNTERS else GaugeMetricFamily)(name, text, labels=keys)
            for labels, value in mine:
                family.add_metric([_label(self.model), *labels.values()], value)
            yield family

    def _samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        def one(name: str, value: float, **labels: str) -> tuple[str, Mapping[str, str], float]:
            return f"promotion_gate_{name}", labels, value

        for kind in ALARM_KINDS:
            yield one("alarms_firing", float(self.firing.get(kind, 0)), kind=kind)
        for receiver, told in self.deliveries.items():
            yield one("alert_deliveries", told.delivered, receiver=receiver)
            yield one("alert_delivery_failures", told.failed, receiver=receiver)
            yield one("alerts_waiting", told.waiting, receiver=receiver)
        for name, value in (
            ("production_version", self.production),
            ("rollbacks", self.rollbacks),
            ("automatic_rollbacks", self.automatic_rollbacks),
            ("time_to_recovery_seconds", self.time_to_recovery),
        ):
            if value is not None:
                yield one(name, float(value))
        yield one("looks_failed", self.looks_failed)
        yield one("predictions", self.predictions)
        if self.outcome is None:
            return
        yield from (one(name, value) for name, value in _window_values(self.outcome))
        shown = shown_classes(self.outcome, self.most_classes)
        yield one("classes_left_out", len(self.outcome.classes) - len(shown))
        total = self.outcome.predictions
        for label, each in _labelled(shown):
            yield one("class_sigma", each.sigma, **{"class": label})
            if total:
                yield one("class_share", each.count / total, **{"class": label})
                yield one("class_baseline_share", each.expected / total, **{"class": label})


class LogMetrics:
    """What a prediction log wrote and lost, for the metrics of the process that serves.

    ::

        from prometheus_client import REGISTRY

        REGISTRY.register(LogMetrics(log, "traffic-signs"))
    """

    def __init__(self, log: PredictionLog, model: str) -> None:
        self._log = log
        self._model = _label(model)

    def collect(self) -> Iterator[Metric]:
        """Both counters, as prometheus_client asks for them."""
        from prometheus_client.core import CounterMetricFamily

        rows, dropped = "promotion_gate_log_rows", "promotion_gate_log_dropped_rows"
        written = CounterMetricFamily(rows, NAMES[rows], labels=["model"])
        written.add_metric([self._model], self._log.written)
        yield written
        lost = CounterMetricFamily(dropped, NAMES[dropped], labels=["model", "why"])
        drops = self._log.drops
        for why, count in (("full", drops.full), ("invalid", drops.invalid), ("failed", drops.failed)):
            lost.add_metric([self._model, why], count)
        yield lost


def _window_values(outcome: WindowOutcome) -> Iterator[tuple[str, float]]:
    yield "sigma_max", max((abs(each.sigma) for each in outcome.classes), default=0.0)
    yield "psi", outcome.psi
    yield "window_predictions", outcome.predictions
    yield "window_start_timestamp_seconds", outcome.start.timestamp()
    yield "unseen_predictions", sum(outcome.unseen.values())
    yield "other_version_rows", sum(outcome.other_versions.values())
    yield "late_rows", outcome.late
    yield "last_look_timestamp_seconds", outcome.at.timestamp()


def shown_classes(outcome: WindowOutcome, most: int) -> list[ClassShare]:
    """The classes with series of their own: those that alarm, then those the baseline expects most of.

    Which they are hardly changes from look to look, so that series do not come and go.
    """
    if len(outcome.classes) <= most:
        return list(outcome.classes)
    alarming = {alarm.subject for alarm in outcome.firing}
    share = {each.name: each.expected for each in outcome.classes}
    ranked = sorted(outcome.classes, key=lambda c: (c.name not in alarming, -share[c.name], c.name))
    return ranked[: max(0, most)]


def text_of(board: Board) -> bytes:
    """The board in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(board)
    return generate_latest(registry)


def write_metrics(board: Board, path: Path) -> None:
    """Write the board whole, readable for node_exporter.

    Raises
    ------
    UsageError: the file cannot be written.
    """
    write_bytes(path, text_of(board))


def resume_from(board: Board, path: Path) -> None:
    """Let the counters go on from the file of an earlier run, if there is one that can be read.

    Raises
    ------
    UsageError: the file could not be written later.
    """
    from prometheus_client.parser import text_string_to_metric_families

    require_writable(path)
    if path.suffix != ".prom":
        raise UsageError(f"--metrics-file {path} would not be read", "node_exporter wants a name in .prom")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return
    label = _label(board.model)
    found = {s.name: s.value for family in families for s in family.samples if s.labels == {"model": label}}
    wanted = ("predictions_total", "window_start_timestamp_seconds", "window_predictions")
    values = [found.get(f"promotion_gate_{name}") for name in wanted]
    if None not in values:
        board.resume(*(float(value) for value in values if value is not None))


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody reads a line for every scrape."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def serve_metrics(board: Board, host: str, port: int) -> WSGIServer:
    """Answer scrapes in a thread until the server is shut down; port 0 takes a free one.

    Raises
    ------
    UsageError: the address cannot be used.
    """
    from prometheus_client import CollectorRegistry, make_wsgi_app

    registry = CollectorRegistry(auto_describe=False)
    registry.register(board)
    family = _server_of(host)
    try:
        server = make_server(host, port, make_wsgi_app(registry), family, _Handler)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot serve metrics on {plain(host, 80)} port {port}: {reason}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _server_of(host: str) -> type[WSGIServer]:
    import socket

    class Six(_Server):
        address_family = socket.AF_INET6

    return Six if ":" in host else _Server


def _labelled(classes: Sequence[ClassShare]) -> Iterator[tuple[str, ClassShare]]:
    """Each class with a label that no other has: long names are cut, and two cut ones could be alike."""
    seen: set[str] = set()
    for index, each in enumerate(classes):
        label = _label(each.name)
        if label in seen:
            label = f"{label[: LABEL_LENGTH - 10]}#{index}"
        seen.add(label)
        yield label, each


def _label(text: str) -> str:
    return plain(text.encode("utf-8", "replace").decode(), LABEL_LENGTH)

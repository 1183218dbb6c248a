"""What the listener counts, in Prometheus's text format. No label comes from outside."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

_PREFIX = "promotion_gate_listen_"


class Counts:
    """The counters of one listener, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, what, labels, registry=self._registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(_PREFIX + name, what, registry=self._registry)

        self.deliveries = counter("deliveries", "Deliveries taken, by what came of them.", "outcome")
        self.refused = counter("refused", "Requests refused, by reason.", "reason")
        self.connections = counter("connections_closed", "Connections closed unheard, by reason.", "reason")
        self.gate_runs = counter("gate_runs", "Gate runs that ended, by outcome.", "outcome")
        self.skipped = counter("skipped", "Versions not gated, by reason.", "reason")
        self.polls = counter("polls", "Looks at the registry without a delivery, by outcome.", "outcome")
        self.foreign_moves = counter("foreign_moves", "Moves of the production alias past the gate.")
        self.waiting = gauge("waiting", "Versions that wait for their gate run.")
        self.running = gauge("running", "Gate runs going on.")
        self.last_poll = gauge("last_poll_timestamp_seconds", "When the registry last answered a poll.")

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return bytes(generate_latest(self._registry))

    def totals(self) -> dict[str, int]:
        """Every count, for a person: ``{"refused bad_signature": 2}``."""
        return {
            " ".join(
                [sample.name.removeprefix(_PREFIX).removesuffix("_total"), *sample.labels.values()]
            ): int(sample.value)
            for metric in self._registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }

"""Files to start from: receivers of alarms, Prometheus' alert rules, a Grafana dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

FILES: Mapping[str, str] = {
    "config": "alerts.toml",
    "rules": "promotion-gate.rules.yml",
    "dashboard": "dashboard.json",
}


def ready_file(what: str) -> str:
    """The text of one of :data:`FILES`."""
    return files(__name__).joinpath(FILES[what]).read_text(encoding="utf-8")

"""PagerDuty, Events API v2 (https://developer.pagerduty.com/docs/send-alert-event)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.notification import Notification, bounded
from promotion_gate.monitor.sinks.http import as_json, post

EVENTS_URL = "https://events.pagerduty.com/v2/enqueue"
SUMMARY_LENGTH = 1024
KEY_LENGTH = 255


class PagerDuty:
    """Trigger an incident, and resolve it by the same key when the alarm is over."""

    def __init__(self, routing_key: Secret, url: str = EVENTS_URL) -> None:
        self._routing_key = routing_key
        self._url = Secret(url)
        self.secrets: Sequence[Secret] = [routing_key]

    def send(self, notification: Notification) -> None:
        post(self._url, as_json(payload(notification, self._routing_key.reveal())), self.secrets)


def payload(notification: Notification, routing_key: str) -> dict[str, Any]:
    """One event. A reminder triggers again, which PagerDuty adds to the incident that is open."""
    alarm = notification.alarm
    resolves = notification.word == "resolved"
    # A notice is never over by itself: it must not hang on to the incident of an alarm.
    key = notification.id if notification.word in ("notice", "test") else notification.dedup_key
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "resolve" if resolves else "trigger",
        "dedup_key": key[:KEY_LENGTH],
    }
    if resolves:
        return event
    summary = f"{notification.title}: {notification.message}"
    return {
        **event,
        "client": "promotion-gate",
        "payload": {
            "summary": summary[:SUMMARY_LENGTH],
            "source": (notification.environment or alarm.model)[:KEY_LENGTH],
            "severity": notification.severity,
            "timestamp": alarm.at.isoformat(),
            "component": alarm.model[:KEY_LENGTH],
            "class": alarm.kind,
            "custom_details": {
                "text": "\n".join(notification.lines()),
                "version": alarm.version,
                "subject": alarm.subject,
                "sigma": notification.document()["alarm"]["sigma"],
                "since": alarm.since.isoformat(),
                "detail": bounded(alarm.detail),
            },
        },
    }

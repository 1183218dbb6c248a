"""Slack, by an incoming webhook (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.notification import Notification
from promotion_gate.monitor.sinks.http import as_json, post

HEADER_LENGTH = 150
SECTION_LENGTH = 3000


class Slack:
    """POST a message of plain-text blocks, in which nothing is markup and nobody is mentioned."""

    def __init__(self, url: Secret) -> None:
        self._url = url
        self.secrets: Sequence[Secret] = [url]

    def send(self, notification: Notification) -> None:
        post(self._url, as_json(payload(notification)), self.secrets)


def payload(notification: Notification) -> dict[str, Any]:
    """The message as Slack's Block Kit says it; ``text`` is what a phone shows before it is opened."""
    lines = notification.lines()
    return {
        "text": escaped(f"{notification.title}: {notification.message}"),
        "blocks": [
            {"type": "header", "text": _plain(notification.title, HEADER_LENGTH)},
            {"type": "section", "text": _plain("\n".join(lines), SECTION_LENGTH)},
        ],
    }


def escaped(text: str) -> str:
    """``text`` for a field that Slack reads as mrkdwn: the three characters that begin links and mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str, length: int) -> dict[str, Any]:
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return {"type": "plain_text", "text": cut, "emoji": False}

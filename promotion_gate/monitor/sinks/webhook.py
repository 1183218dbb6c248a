"""A receiver of one's own: the whole alarm as JSON, signed where a secret is shared."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence

from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.notification import Notification
from promotion_gate.monitor.sinks.http import as_json, post

SIGNATURE = "X-Promotion-Gate-Signature"
TIMESTAMP = "X-Promotion-Gate-Timestamp"
DELIVERY = "X-Promotion-Gate-Delivery"


class Webhook:
    """POST the notification's document.

    With ``signing_secret`` the header ``X-Promotion-Gate-Signature`` is ``v1=`` and the hex HMAC-SHA256 of
    ``TIMESTAMP.DELIVERY.BODY``; a receiver refuses old time stamps and deliveries that it has seen.
    """

    def __init__(
        self,
        url: Secret,
        signing_secret: Secret | None = None,
        token: Secret | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._signing_secret = signing_secret
        self._token = token
        self._clock = clock
        self.secrets: Sequence[Secret] = [s for s in (url, signing_secret, token) if s is not None]

    def send(self, notification: Notification) -> None:
        content = as_json(notification.document())
        timestamp = str(int(self._clock()))
        headers = {DELIVERY: notification.id, TIMESTAMP: timestamp}
        if self._signing_secret is not None:
            key = self._signing_secret.reveal().encode()
            headers[SIGNATURE] = "v1=" + signature(key, timestamp, notification.id, content)
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.reveal()}"
        post(self._url, content, self.secrets, headers)


def signature(key: bytes, timestamp: str, delivery: str, body: bytes) -> str:
    """The hex HMAC-SHA256 that the signature header carries after ``v1=``."""
    return hmac.new(key, f"{timestamp}.{delivery}.".encode() + body, hashlib.sha256).hexdigest()

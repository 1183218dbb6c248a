"""What every receiver of alarms can do, and how it fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.notification import Notification


class DeliveryError(Exception):
    """A message was not taken. ``reason`` is one line, already without secrets.

    ``refused`` says that this message will not be taken however often it is sent; ``wait`` is how many
    seconds the receiver asks to be left alone.
    """

    def __init__(self, reason: str, *, refused: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refused = refused
        self.wait = wait


class Sink(Protocol):
    """One receiver. ``secrets`` are taken out of whatever is said of it."""

    secrets: Sequence[Secret]

    def send(self, notification: Notification) -> None:
        """Hand one message over, or raise.

        Raises
        ------
        DeliveryError: it was not taken.
        """
        ...

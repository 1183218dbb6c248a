"""E-mail and a hundred other services, through apprise (https://github.com/caronc/apprise)."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Sequence

from promotion_gate.core.errors import UsageError
from promotion_gate.monitor.confidential import Secret, redacted
from promotion_gate.monitor.notification import Notification
from promotion_gate.monitor.sinks.interface import DeliveryError
from promotion_gate.operators import plain


class Apprise:
    """Send through the service that an apprise URL names, ``mailto://`` or ``msteams://`` for two.

    Raises
    ------
    UsageError: apprise is not installed, or does not know such a URL.
    """

    def __init__(self, url: Secret, where: str) -> None:
        try:
            import apprise
        except ImportError:
            raise UsageError(
                f"{where} needs apprise, which is not installed", "pip install 'promotion-gate[alerts]'"
            ) from None
        self.secrets: Sequence[Secret] = [url]
        # Apprise logs addresses and what a server answered; only what is collected here may be told.
        logger = logging.getLogger("apprise")
        logger.propagate = False
        if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            logger.addHandler(logging.NullHandler())
        self._service = apprise.Apprise()
        with warnings.catch_warnings():  # its plugins are imported now, and some use what Python will drop
            warnings.simplefilter("ignore", DeprecationWarning)
            known = self._service.add(url.reveal())
        if not known:
            raise UsageError(f"{where}: what is named there is no URL that apprise can use")

    def send(self, notification: Notification) -> None:
        import apprise

        kind = apprise.NotifyType.SUCCESS if notification.word == "resolved" else apprise.NotifyType.WARNING
        with _Listening() as heard:
            try:
                taken = self._service.notify(
                    title=notification.title,
                    body="\n".join(notification.lines()),
                    notify_type=kind,
                    body_format=apprise.NotifyFormat.TEXT,
                    interpret_escapes=False,
                )
            except Exception as error:  # a service is a stranger's code
                raise DeliveryError(f"apprise failed: {type(error).__name__}") from None
        if not taken:
            said = plain(redacted("; ".join(heard.lines), self.secrets), 200)
            raise DeliveryError(f"apprise could not deliver it: {said or 'no reason was given'}")


class _Listening(logging.Handler):
    """Collects the warnings that apprise logs in this thread or a thread it starts meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and len(self.lines) < 5:
            self.lines.append(record.getMessage())

    def __enter__(self) -> _Listening:
        logging.getLogger("apprise").addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("apprise").removeHandler(self)

"""E-mail through apprise, taken by a real mail server."""

import asyncio
import email
import email.policy
import threading

import pytest

from promotion_gate.monitor.confidential import Secret
from promotion_gate.monitor.notification import Notification, dedup_key
from promotion_gate.monitor.sinks.interface import DeliveryError

pytest.importorskip("apprise")
SMTP = pytest.importorskip("aiosmtpd.smtp").SMTP

from promotion_gate.monitor.sinks.other import Apprise  # noqa: E402


@pytest.fixture
def post_office():
    """Port and what arrived; a mail to nobody@ is refused."""
    mails = []

    class Handler:
        async def handle_RCPT(self, server, session, envelope, address, options):
            if address.startswith("nobody@"):
                return "550 no such person hunter22"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server, session, envelope):
            mails.append(
                (
                    envelope.rcpt_tos,
                    email.message_from_bytes(envelope.content, policy=email.policy.default),
                )
            )
            return "250 taken"

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: SMTP(Handler(), loop=loop), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1], mails
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def note(alarm, subject, word="firing"):
    told = alarm(subject)
    return Notification("id-1", dedup_key(told), word, told, "")


def test_a_mail_arrives(post_office, alarm):
    port, mails = post_office
    url = f"mailto://127.0.0.1:{port}?from=gate@example.org&to=night@example.org"
    Apprise(Secret(url), "here").send(note(alarm, "Speed limit 80"))
    ((people, mail),) = mails
    assert people == ["night@example.org"]
    assert mail["Subject"] == "[ALARM] signs: class-share 'Speed limit 80'"
    text = mail.get_body(("plain", "html")).get_content()
    assert "has deviated by 7.3 standard deviations from baseline" in text.replace("&#x27;", "'")


def test_a_class_name_cannot_write_headers_or_html(post_office, alarm):
    port, mails = post_office
    url = f"mailto://127.0.0.1:{port}?from=gate@example.org&to=night@example.org"
    hostile = "stop\r\nBcc: eve@example.org\r\n\r\n<script>alert(1)</script>"
    Apprise(Secret(url), "here").send(note(alarm, hostile))
    ((people, mail),) = mails
    assert people == ["night@example.org"]
    assert mail["Bcc"] is None
    assert "\n" not in mail["Subject"]
    html = mail.get_body(("html",))
    assert html is None or "<script>" not in html.get_content()


def test_a_mail_that_is_refused_is_told_without_the_password(post_office, alarm, capfd):
    port, mails = post_office
    url = f"mailto://127.0.0.1:{port}?from=gate@example.org&to=nobody@example.org&name=hunter22"
    with pytest.raises(DeliveryError) as caught:
        Apprise(Secret(url), "here").send(note(alarm, "stop"))
    assert mails == []
    assert "hunter22" not in caught.value.reason + "".join(capfd.readouterr())


def test_no_mail_server(alarm, capfd):
    url = "mailto://ada:hunter22@127.0.0.1:1?from=gate@example.org&to=night@example.org"
    with pytest.raises(DeliveryError) as caught:
        Apprise(Secret(url), "here").send(note(alarm, "stop"))
    assert "hunter22" not in caught.value.reason + "".join(capfd.readouterr())

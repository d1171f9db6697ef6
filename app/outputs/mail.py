"""Sends mail over SMTP, encrypted wherever a password would otherwise be seen."""

import smtplib
import ssl
from collections.abc import Sequence
from contextlib import closing, suppress
from email.message import EmailMessage

from app.domain.loopback import is_loopback
from app.errors import EventstreamError
from app.settings import SmtpServer

SECONDS = 5.0
"""How long the server may take for each answer, or to accept each part of a mail."""
QUIT_SECONDS = 0.5


class MailFailed(EventstreamError):
    """The mail was not sent. The text repeats nothing that the server said: it may be secret."""


def send(
    server: SmtpServer, message: EmailMessage, sender: str, recipients: Sequence[str]
) -> frozenset[str]:
    """Send a mail. Returns the recipients for whom the server accepted it, at least one.

    Uses STARTTLS where the server offers it. A login needs it, or smtps://, unless the server is on
    this machine. The server's certificate is checked if encryption was asked for or protects a
    login, but not on this machine. Raises MailFailed unless the server accepted the mail.
    """
    try:
        with closing(_connected(server)) as connection:
            refused = connection.send_message(message, sender, recipients)
            # The mail is sent, whatever happens now.
            with suppress(Exception):
                if connection.sock:
                    connection.sock.settimeout(QUIT_SECONDS)
                connection.quit()
    except smtplib.SMTPRecipientsRefused as error:
        codes = sorted({code for code, _ in error.recipients.values()})
        said = ", ".join(map(str, codes))
        raise MailFailed(f"{server.host} refused all recipients: {said}") from None
    except smtplib.SMTPResponseException as error:
        kind = type(error).__name__
        raise MailFailed(f"{server.host} answered {error.smtp_code}: {kind}") from None
    except (smtplib.SMTPException, OSError, ValueError) as error:
        raise MailFailed(f"{server.host} failed: {type(error).__name__}") from None
    return frozenset(recipients) - refused.keys()


def _connected(server: SmtpServer) -> smtplib.SMTP:
    """A connection on which mail can be sent."""
    is_local = is_loopback(server.host)
    address = server.host, server.port
    connection: smtplib.SMTP
    if server.is_tls:
        context = _tls(verified=not is_local)
        connection = smtplib.SMTP_SSL(*address, timeout=SECONDS, context=context)
    else:
        connection = smtplib.SMTP(*address, timeout=SECONDS)
    try:
        connection.ehlo()
        if not server.is_tls and connection.has_extn("starttls"):
            connection.starttls(context=_tls(verified=bool(server.password) and not is_local))
            connection.ehlo()
        elif server.password and not server.is_tls and not is_local:
            raise MailFailed(f"{server.host} offers no STARTTLS, so it can't be given the password")
        if server.user and server.password:
            connection.login(server.user, server.password)
    except BaseException:
        connection.close()
        raise
    return connection


def _tls(*, verified: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context

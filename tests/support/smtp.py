"""A mail server that records its mails, and can fail in many ways."""

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from app.local.processes import free_ports

USER, PASSWORD = "reports@example.com", "hunter2 %/@:"


class Mail(NamedTuple):
    """A mail that the server took."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    is_encrypted: bool
    user: str | None


class MailServer:
    """Records mails. `refused` are the recipients that it refuses, `answer` its answer to a mail.

    With `dies` it breaks the connection "before" or "after" its answer to a mail.
    """

    def __init__(self) -> None:
        self.got: list[Mail] = []
        self.logins: list[tuple[str, str]] = []
        self.refused: dict[str, str] = {}
        self.answer = "250 OK"
        self.dies = ""
        self.port = free_ports(1)[0]

    def authenticate(self, _: Any, __: Any, ___: Any, mechanism: str, login: Any) -> AuthResult:
        """Let in USER with PASSWORD."""
        user, password = login.login.decode(), login.password.decode()
        self.logins.append((user, password))
        return AuthResult(
            success=(user, password) == (USER, PASSWORD), handled=False, auth_data=user
        )

    async def handle_RCPT(  # noqa: N802, aiosmtpd's name
        self, _: SMTP, __: Session, envelope: Envelope, address: str, ___: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        transport = cast(asyncio.Transport, server.transport)
        if self.dies == "before":
            transport.abort()
        if self.answer.startswith("250"):
            message = message_from_bytes(cast(bytes, envelope.content), policy=policy.default)
            user = cast(str | None, session.auth_data)
            is_encrypted = transport.get_extra_info("ssl_object") is not None
            recipients = [str(address) for address in envelope.rcpt_tos]
            self.got.append(Mail(str(envelope.mail_from), recipients, message, is_encrypted, user))
        if self.dies == "after":
            asyncio.get_running_loop().call_soon(transport.abort)
        return self.answer


@contextmanager
def mail_server(
    certificate: ssl.SSLContext | None = None, *, implicit_tls: bool = False, login: bool = False
) -> Iterator[MailServer]:
    """A running server, which offers STARTTLS if it has a certificate, and may ask for a login."""
    server = MailServer()
    options: dict[str, Any] = {}
    if certificate:
        options = {"ssl_context": certificate} if implicit_tls else {"tls_context": certificate}
    if login:
        options |= {
            "authenticator": server.authenticate,
            "auth_required": True,
            "auth_require_tls": bool(certificate) and not implicit_tls,
        }
    controller = Controller(server, "127.0.0.1", server.port, **options)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()


def make_certificate(folder: Path, name: str = "IP:127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """A certificate for this name, as a server uses it, and the file that clients trust."""
    key, certificate = folder / "smtp-key.pem", folder / "smtp.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=mail", "-addext", f"subjectAltName={name}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def dripping_server() -> Iterator[int]:
    """The port of a server whose greeting never ends: a byte now and then."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_drip, args=(server,), daemon=True).start()
        yield server.getsockname()[1]


def _drip(server: socket.socket) -> None:
    with suppress(OSError):
        taken, _ = server.accept()
        with taken:
            while True:
                taken.sendall(b"2")
                time.sleep(0.1)

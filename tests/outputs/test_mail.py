import shutil
import ssl
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from app.outputs import mail
from app.outputs.mail import MailFailed
from app.settings import SmtpServer
from tests.support.smtp import (
    PASSWORD,
    USER,
    MailServer,
    mail_server,
    make_certificate,
    silent_server,
)

TO = ["a@example.com", "b@example.com"]
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH", "ignore:.*login_data")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


@pytest.fixture
def message() -> EmailMessage:
    message = EmailMessage()
    message["Message-ID"] = "<1@eventstream>"
    message.set_content("Hello")
    return message


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the server count as one on another machine."""
    monkeypatch.setattr(mail, "is_loopback", lambda _: False)


def send(
    port: int,
    message: EmailMessage,
    user: str | None = None,
    password: str | None = None,
    *,
    is_tls: bool = False,
) -> frozenset[str]:
    server = SmtpServer("127.0.0.1", port, user, password, is_tls=is_tls)
    return mail.send(server, message, "from@example.com", TO)


def test_a_server_on_this_machine_needs_neither_login_nor_encryption(
    server: MailServer, message: EmailMessage
) -> None:
    assert send(server.port, message) == set(TO)
    [got] = server.got
    assert (got.sender, got.recipients, got.is_encrypted) == ("from@example.com", TO, False)
    assert got.message.get_content().strip() == "Hello"


@needs_openssl
@pytest.mark.parametrize("implicit_tls", [False, True])
@pytest.mark.usefixtures("elsewhere")
def test_a_login_on_another_machine_is_encrypted_and_its_certificate_checked(
    message: EmailMessage,
    certificate: tuple[ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
    implicit_tls: bool,
) -> None:
    context, file = certificate
    with mail_server(context, implicit_tls=implicit_tls, login=True) as server:
        with pytest.raises(MailFailed, match="SSLCertVerificationError"):
            send(server.port, message, USER, PASSWORD, is_tls=implicit_tls)
        assert server.logins == []
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert send(server.port, message, USER, PASSWORD, is_tls=implicit_tls) == set(TO)
        [got] = server.got
        assert (got.is_encrypted, got.user) == (True, USER)


@needs_openssl
@pytest.mark.usefixtures("elsewhere")
def test_a_certificate_of_another_name_is_refused(
    message: EmailMessage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, file = make_certificate(tmp_path, "DNS:mail.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with mail_server(context, login=True) as server:
        with pytest.raises(MailFailed, match="SSLCertVerificationError"):
            send(server.port, message, USER, PASSWORD)
        assert server.logins == []


@pytest.mark.usefixtures("elsewhere")
def test_no_password_goes_to_another_machine_without_encryption(message: EmailMessage) -> None:
    with mail_server(login=True) as server:
        with pytest.raises(MailFailed, match="no STARTTLS"):
            send(server.port, message, USER, PASSWORD)
        assert (server.logins, server.got) == ([], [])


def test_a_password_may_go_to_this_machine_without_encryption(message: EmailMessage) -> None:
    with mail_server(login=True) as server:
        assert send(server.port, message, USER, PASSWORD) == set(TO)
        assert server.logins == [(USER, PASSWORD)]


@needs_openssl
@pytest.mark.usefixtures("elsewhere")
def test_encryption_is_used_without_a_login_too_whatever_the_certificate(
    message: EmailMessage, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    with mail_server(certificate[0]) as server:
        send(server.port, message)
        assert [got.is_encrypted for got in server.got] == [True]


def test_a_wrong_password_is_said_but_not_shown(message: EmailMessage) -> None:
    with mail_server(login=True) as server:
        with pytest.raises(MailFailed, match="answered 535: SMTPAuthenticationError") as caught:
            send(server.port, message, USER, "hunter3")
        assert "hunter" not in str(caught.value)
        assert caught.value.__suppress_context__
        assert server.got == []


def test_it_says_which_recipients_the_server_took_the_mail_for(
    server: MailServer, message: EmailMessage
) -> None:
    server.refused = {TO[0]: "550 no such user"}
    assert send(server.port, message) == {TO[1]}
    assert [got.recipients for got in server.got] == [[TO[1]]]


def test_a_server_that_refuses_all_recipients_fails(
    server: MailServer, message: EmailMessage
) -> None:
    server.refused = {TO[0]: "550 no such user", TO[1]: "451 later"}
    with pytest.raises(MailFailed, match=r"refused all recipients: 451, 550$"):
        send(server.port, message)


@pytest.mark.parametrize("answer", ["451 hunter2", "554 hunter2"])
def test_a_server_that_refuses_the_mail_fails_without_its_words(
    server: MailServer, message: EmailMessage, answer: str
) -> None:
    server.answer = answer
    with pytest.raises(MailFailed, match=f"answered {answer[:3]}: SMTPDataError$"):
        send(server.port, message)


def test_a_server_that_dies_before_its_answer_fails(
    server: MailServer, message: EmailMessage
) -> None:
    server.dies = "before"
    with pytest.raises(MailFailed, match="SMTPServerDisconnected"):
        send(server.port, message)


def test_a_mail_is_sent_even_if_the_server_dies_right_after_its_answer(
    server: MailServer, message: EmailMessage
) -> None:
    server.dies = "after"
    assert send(server.port, message) == set(TO)
    assert len(server.got) == 1


def test_a_server_that_says_nothing_fails(
    message: EmailMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "SECONDS", 0.2)
    with silent_server() as port, pytest.raises(MailFailed, match="failed: SMTPServerDisconnected"):
        send(port, message)


def test_a_server_that_is_not_there_fails(message: EmailMessage) -> None:
    with pytest.raises(MailFailed, match="ConnectionRefusedError"):
        send(1, message)

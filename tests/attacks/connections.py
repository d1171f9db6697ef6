"""Attacks on the connections of the web: who sends nothing, too slowly, or never reads."""

from tests.attacks.hostile import Sent, Target, attack, hold

HEAD = b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
OPEN_HEAD = HEAD + b"Content-Length: 1000\r\n\r\n"


@attack("60 sockets left open after the server closes them")
def lingering_closes(target: Target) -> None:
    """Some ask for the end of the connection, some send half a body, and some no HTTP."""
    asking = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    garbage = b"\x16\x03\x01\x02\x00\x01\r\n\r\n"
    hold(target, [Sent(asking), Sent(OPEN_HEAD + b"[{"), Sent(garbage)] * 20)


@attack("40 connections of 200 requests, no answer read", 15)
def unread_answers(target: Target) -> None:
    """Each asks for large answers, one behind the other."""
    asking = b"".join(
        b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in (b"/docs", b"/openapi.json")
    )
    hold(target, [Sent(asking * 100)] * 40)


@attack("320 silent connections")
def silent_connections(target: Target) -> None:
    """Browsers open them in advance."""
    hold(target, [Sent()] * 320)


@attack("1,000 silent connections")
def silent_thousand(target: Target) -> None:
    """More than gunicorn keeps open for one web process, by its defaults."""
    hold(target, [Sent()] * 1_000)


@attack("100 heads and 100 bodies, a byte a second each", 15)
def dripping(target: Target) -> None:
    """Every read finds something, so none runs into a time limit of its own."""
    hold(target, [Sent(b"", HEAD), Sent(OPEN_HEAD, b" " * 1_000)] * 100)

"""Attacks on the web's connections: clients that send nothing, send slowly or never read."""

from tests.attacks.hostile import Sent, Target, attack, dripping, hold

HEAD = b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
OPEN_HEAD = HEAD + b"Content-Length: 1000\r\n\r\n"


def get(path: bytes, headers: bytes = b"") -> bytes:
    """A GET request."""
    return b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n" % (path, headers)


@attack("60 sockets left open after the server closes them")
def lingering_closes(target: Target) -> None:
    """Some ask to close the connection, some send half a body, and some do not speak HTTP."""
    asking = get(b"/health", b"Connection: close\r\n")
    garbage = b"\x16\x03\x01\x02\x00\x01\r\n\r\n"
    hold(target, [Sent([asking]), Sent([OPEN_HEAD + b"[{"]), Sent([garbage])] * 20)


@attack("40 connections of 200 requests, no answer read", 15)
def unread_answers(target: Target) -> None:
    """Most request the largest file, because that costs them the least to send."""
    asking = [get(b"/static/uplot/uPlot.iife.min.js")] * 9 + [get(b"/docs")]
    # Not all in one packet: gunicorn leaves those unanswered that it read together with another.
    hold(target, [Sent(asking * 20, 0.02)] * 40)


@attack("320 silent connections")
def silent_connections(target: Target) -> None:
    """Browsers open such connections in advance."""
    hold(target, [Sent()] * 320)


@attack("1,000 silent connections")
def silent_thousand(target: Target) -> None:
    """More than gunicorn keeps open per web process by default."""
    hold(target, [Sent()] * 1_000)


@attack("100 heads and 100 bodies, a byte a second each", 15)
def dripping_requests(target: Target) -> None:
    """Every read finds something, so no single read times out."""
    bodies = Sent([OPEN_HEAD, *dripping(b" " * 1_000)], 1)
    hold(target, [Sent(dripping(HEAD), 1), bodies] * 100)

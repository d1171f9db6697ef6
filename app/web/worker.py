"""The gunicorn worker of the web processes: the one module that uses gunicorn's internals."""

import math
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request as GunicornRequest
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn, ThreadWorker

from app.domain.addresses import client_network
from app.settings import settings
from app.web.connections import Incoming, Request, Socket
from app.web.sockets.places import Lane

STAY_MILLISECONDS = 2
GRACE_SECONDS = 10.0
BYTES_PER_SECOND = 2_048
"""A request must arrive, and an answer be read, at this speed, plus GRACE_SECONDS."""
CLOSE_SECONDS = 2.0
CLOSE_BYTES = 4 * 1024 * 1024
"""How many bytes are still read from a closing connection (RFC 9112, 9.6)."""
LOOK_SECONDS = 0.25
READ_BYTES = 64 * 1024
ACCEPTED_AT_ONCE = 64
CLOSED_AT_ONCE = 16
MAX_BUFFERED_BYTES = 32 * 1024 * 1024
SHARE_OF_LARGE = 0.05
"""The share of the threads that one client may use for large requests. All clients together may use
one thread more. Large requests take long, and each of them gets as much of the processor as every
other thread, for example the one that writes to the journal."""
SHARE_OF_SMALL = 0.75
"""The share of the other threads that one client may use. Its further requests wait."""

_ANSWER = (
    b"HTTP/1.1 %(status)b\r\n"
    b"Connection: close\r\n"
    b"Cache-Control: no-store\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: %(length)d\r\n\r\n"
    b"%(body)b"
)
_HEADERS_TOO_LARGE = b"431 Request Header Fields Too Large"
_REFUSALS = {
    ExpectationFailed: (b"417 Expectation Failed", b"Only 100-continue may be expected."),
    LimitRequestHeaders: (
        _HEADERS_TOO_LARGE,
        b"A header, such as Cookie, is longer than 8190 bytes, or there are more than 100.",
    ),
    LimitRequestLine: (
        b"414 URI Too Long",
        b"The method, path and query are longer than 8190 bytes.",
    ),
    UnsupportedTransferCoding: (
        b"501 Not Implemented",
        b"The only transfer coding understood is chunked.",
    ),
}
"""The answers to requests that the parser refuses. All others get 400."""
_ANSWER_ERRORS = (InvalidResponseHeader, InvalidResponseHeaderName)


def _refuse(sock: Socket, status: bytes, error: bytes) -> None:
    """Answer a request that the application never sees."""
    body = b'{"error":"%b"}' % error
    sock.sendall(_ANSWER % {b"status": status, b"length": len(body), b"body": body})


class Late(NoMoreData, BlockingIOError):  # type: ignore[misc]
    """The rest of a request did not arrive in time."""


class _Settings:
    """gunicorn's settings. They are looked up once, because each request needs dozens of them."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._cfg, name)
        setattr(self, name, value)
        return value


class _Request(GunicornRequest):  # type: ignore[misc]
    """A request whose forwarding headers mean nothing to gunicorn, whoever sent it."""

    def _peer_trusted_for_forwarded(self) -> tuple[dict[str, str], list[str]]:
        return {}, []


class _Parser(RequestParser):  # type: ignore[misc]
    mesg_class = _Request


class Connection(TConn):  # type: ignore[misc]
    """A client's connection. It belongs to a thread or to the poller, never to both."""

    sock: Socket

    def __init__(self, cfg: Any, sock: Socket, client: tuple[Any, ...], server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.initialized = True  # nothing else has to be done before its first request
        self.peer = client_network(client[0])
        self.network = self.peer
        """The client that sent the last request, which proxies may have forwarded."""
        self.lane: Lane[Connection] | None = None
        """The lane in which it waits for a thread or has one. It belongs to `group` there."""
        self.group = self.network
        self.incoming = Incoming()
        self.has_ended = False
        """Whether the client has ended its side of the connection."""
        self.is_late = False
        self.is_kept = True
        self.idle_seconds = GRACE_SECONDS
        self.began = time.monotonic()
        """When the next request began to arrive, or when the connection became idle."""
        self.buffered = 0
        self.dropped = 0
        """How many bytes arrived after closing began."""
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def receive(self) -> bool:
        """Read what has arrived, without waiting. Returns whether a thread has something to do."""
        if self.is_late or (self.incoming.data and self.incoming.is_ready()):
            return True
        try:
            data = self.sock.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.has_ended = True
            return True
        if not self.incoming.data:
            self.began = time.monotonic()
        self.incoming.data += data
        ready = self.incoming.is_ready()
        if not ready and self.incoming.expects_continue:
            self.incoming.expects_continue = False
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.sock.flush()
        return ready

    def wait(self, milliseconds: int) -> bool:
        """Wait until something arrives. Returns whether it did."""
        return bool(self._poll.poll(milliseconds))

    def identify(self) -> None:
        """Find out which client sent the next request, if its head has arrived."""
        if self.incoming.has_head:
            client = self.incoming.forwarded_for(settings().trusted_proxies)
            self.network = client_network(client) if client else self.peer

    def deadline(self) -> float:
        """When the next request must have arrived completely or, if it has not begun, must begin.

        The time is that of the monotonic clock.
        """
        arrived = len(self.incoming.data)
        if not arrived:
            return self.began + self.idle_seconds
        return self.began + GRACE_SECONDS + arrived / BYTES_PER_SECOND


class BufferingWorker(ThreadWorker):  # type: ignore[misc]
    """The poller receives, sends and closes. A thread only serves requests that have arrived.

    In gunicorn's own worker, threads wait until a request has arrived and its answer was read. Its
    poller, which alone accepts connections, waits up to two seconds each time it closes one. A few
    clients that send, read or close slowly can stop it for everybody.

    If the next request comes at once and nobody waits, a thread stays with its connection. Passing
    the connection to the poller and back takes a sixth to a quarter of a post's CPU time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cfg: Any = _Settings(self.cfg)
        self._polled: dict[Connection, float] = {}
        """The poller's connections, oldest first, and until when each may stay (monotonic)."""
        self._buffered = 0
        self._look_at = 0.0
        of_one = math.ceil(SHARE_OF_LARGE * self.cfg.threads)
        small = self.cfg.threads - of_one - 1
        self._large = Lane[Connection](of_one + 1, of_one)
        self._small = Lane[Connection](small, int(SHARE_OF_SMALL * small))

    def accept(self, listener: Any) -> None:
        """Take new connections into the poller. If there are too many, close old ones."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, client = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            conn = Connection(self.cfg, Socket(accepted), client, listener.getsockname())
            if self.nr_conns >= self.max_keepalived:
                self._close_oldest(CLOSED_AT_ONCE, lambda _: 1)
            self.nr_conns += 1
            self._poll(conn, EVENT_READ, self._on_readable, conn.deadline())

    def enqueue_req(self, conn: Connection) -> None:
        """Give a connection to a thread as soon as there is one for its client."""
        conn.lane, conn.group = self._place_of(conn)
        conn.lane.wait(conn.group, conn)
        self._polled[conn] = math.inf
        self._serve_next(conn.lane)

    def _place_of(self, conn: Connection) -> tuple[Lane[Connection], str]:
        conn.identify()
        return self._large if conn.incoming.is_large() else self._small, conn.network

    def _serve_next(self, lane: Lane[Connection]) -> None:
        conn = lane.next()
        if conn:
            del self._polled[conn]
            super().enqueue_req(conn)

    def handle(self, conn: Connection) -> None:
        """Serve the requests that have arrived completely (in a thread)."""
        while conn.receive():
            conn.incoming.look_inside()
            if conn.incoming.data and self._place_of(conn) != (conn.lane, conn.group):
                return  # it waits for a thread of the lane for such requests
            self._serve(conn)
            if not conn.is_kept or conn.sock.unsent or conn.sock.is_broken or not self.alive:
                return
            if conn.lane and conn.lane.has_waiting:
                return
            if not conn.incoming.data and not conn.wait(STAY_MILLISECONDS):
                return

    def _serve(self, conn: Connection) -> None:
        incoming, conn.is_kept = conn.incoming, False
        if incoming.has_long_head:
            _refuse(conn.sock, _HEADERS_TOO_LARGE, b"The headers are together longer than 64 KiB.")
        elif conn.is_late and not incoming.has_head:
            _refuse(conn.sock, b"408 Request Timeout", b"The request did not arrive in time.")
        elif incoming.data:
            data, whole = incoming.take()
            request = Request(data, Late() if conn.is_late else None)
            conn.parser = _Parser(self.cfg, request, conn.client)
            kept = super().handle(conn)
            # Something is unread only if gunicorn found a different end of the request.
            unread = conn.parser.unreader.buf.getvalue()
            conn.is_kept = kept is True and whole and not unread
            conn.parser = None
            conn.began, conn.idle_seconds = time.monotonic(), self.cfg.keepalive
        conn.sock.flush()

    def handle_error(self, req: Any, client: Socket, addr: Any, exc: Exception) -> None:  # noqa: ARG002
        """Answer a request that failed before or after the application (in a thread).

        Neither the answer nor the log repeats the request, which may hold a user id or a key.
        """
        if isinstance(exc, ParseException) and not isinstance(exc, _ANSWER_ERRORS):
            reason = type(exc).__name__
            self.log.warning("Invalid request: %s", reason)
            text = b"This is not a valid HTTP request: %b." % reason.encode()
            _refuse(client, *_REFUSALS.get(type(exc), (b"400 Bad Request", text)))
        else:
            self.log.exception("Error handling a request")
            _refuse(client, b"500 Internal Server Error", b"The request could not be answered.")

    def finish_request(self, conn: Connection, served: Any) -> None:
        """Take a connection back from its thread (in the poller)."""
        if conn.lane:
            conn.lane.leave(conn.group)
            self._serve_next(conn.lane)
            conn.lane = None
        if served.cancelled() or served.exception():
            conn.is_kept = False
        self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        """Send the rest, close the connection, or serve or await the next request."""
        self._count_buffered(conn)
        unsent = len(conn.sock.unsent)
        if unsent:
            until = time.monotonic() + GRACE_SECONDS + unsent / BYTES_PER_SECOND
            self._poll(conn, EVENT_WRITE, self._on_writable, until)
        elif not conn.is_kept or conn.sock.is_broken:
            self._begin_close(conn)
        elif conn.incoming.data and conn.incoming.is_ready():
            self.enqueue_req(conn)
        else:
            self._poll(conn, EVENT_READ, self._on_readable, conn.deadline())

    def _poll(
        self, conn: Connection, event: int, ready: Callable[[Connection], None], until: float
    ) -> None:
        def call(_: Any) -> None:
            if conn in self._polled:  # otherwise it was just closed to make room
                ready(conn)

        self.poller.register(conn.sock, event, call)
        self._polled[conn] = until

    def _release(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        del self._polled[conn]

    def _on_readable(self, conn: Connection) -> None:
        # Receive here and not in a thread, because the request decides which thread it may use.
        ready = conn.receive()
        self._count_buffered(conn)
        if not ready:
            conn.identify()
            self._polled[conn] = conn.deadline()
        elif not conn.incoming.data:  # the client closed it
            self._close(conn)
        else:
            self._release(conn)
            self.enqueue_req(conn)

    def _on_writable(self, conn: Connection) -> None:
        conn.sock.flush()
        if not conn.sock.unsent:
            self._release(conn)
            self._go_on(conn)

    def _begin_close(self, conn: Connection) -> None:
        # If a connection is closed while its client still sends, the client loses the unread part
        # of the answer (RFC 9112, section 9.6).
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            conn.has_ended = True
        if conn.has_ended:
            self._close(conn)
        else:
            until = time.monotonic() + CLOSE_SECONDS
            self._poll(conn, EVENT_READ, self._on_closing, until)

    def _on_closing(self, conn: Connection) -> None:
        try:
            dropped = len(conn.sock.recv(READ_BYTES, socket.MSG_DONTWAIT))
        except OSError:
            dropped = 0
        conn.dropped += dropped
        if not dropped or conn.dropped > CLOSE_BYTES:
            self._close(conn)

    def _close(self, conn: Connection) -> None:
        if conn.lane:  # it waits for a thread
            conn.lane.give_up(conn.group, conn)
            conn.lane = None
        # It may not be in the poller, and may be closed already if the application failed.
        with suppress(KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self._polled.pop(conn, None)
        self.nr_conns -= 1
        self._buffered -= conn.buffered
        conn.close()

    def _close_oldest(self, most: int, weight: Callable[[Connection], int]) -> int:
        """Close the oldest connections of the client with the most weight. Returns how many."""
        weights = Counter[str]()
        for conn in self._polled:
            weights[conn.network] += weight(conn)
        heaviest = [network for network, _ in weights.most_common(1)]
        oldest = (conn for conn in self._polled if conn.network in heaviest and weight(conn))
        closed = list(islice(oldest, most))
        for conn in closed:
            self._close(conn)
        return len(closed)

    def _count_buffered(self, conn: Connection) -> None:
        buffered = len(conn.incoming.data) + len(conn.sock.unsent)
        self._buffered += buffered - conn.buffered
        conn.buffered = buffered

    def murder_pending(self) -> None:
        """Enforce the limits on bytes and time (at each turn of the poller)."""
        while self._buffered > MAX_BUFFERED_BYTES:
            if not self._close_oldest(1, lambda conn: conn.buffered):
                break
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for conn in [conn for conn, until in self._polled.items() if until <= now]:
            if conn.is_kept and conn.incoming.data and not conn.sock.unsent:
                conn.is_late = True
                self._release(conn)
                self.enqueue_req(conn)
            else:
                self._close(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Close idle connections by this time, because the worker stops."""
        for conn, until in self._polled.items():
            if not conn.buffered:
                self._polled[conn] = min(until, deadline)

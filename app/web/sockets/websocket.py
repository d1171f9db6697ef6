"""A WebSocket (RFC 6455) on a connection taken over from the web server."""

import socket
import time
from contextlib import suppress
from typing import NamedTuple, NoReturn

from werkzeug.datastructures import Headers
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from app.web.sockets.places import Share

READ_BYTES = 64 * 1024
SEND_SECONDS = 5.0
"""If a client does not read for this long, it is dropped."""
MAX_FRAMES = 200
FRAMES_PER_SECOND = 20
"""How many frames that bring nothing may come in a second, after a burst of MAX_FRAMES."""
PIECE_BYTES = 512
"""Only a piece of a message of at least this size counts as bringing something."""
CLOSE_SECONDS = 1.0

_HANDSHAKE = (b"Connection", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version")


class Text(NamedTuple):
    """A message: its text (cut short if it is too long), and its size in bytes."""

    text: str
    size: int


class WebSocket:
    """The server's end, for one thread, which sends and receives alternately.

    Nothing is read ahead: TCP makes a client wait that sends faster than we read. No message is
    compressed, so none grows when it is unpacked.
    """

    def __init__(self, headers: Headers, max_bytes: int) -> None:
        """Raises ValueError if the headers are not those of a handshake."""
        self._protocol = WSConnection(ConnectionType.SERVER)
        given = [
            (name, value.encode("latin-1"))
            for name in _HANDSHAKE
            if (value := headers.get(name.decode()))
        ]
        try:
            self._protocol.initiate_upgrade_connection([(b"Host", b"here"), *given], "/")
        except ProtocolError as error:
            raise ValueError(str(error)) from error
        self._max_bytes = max_bytes
        self._message = bytearray()
        self._size = 0
        self._frames_left = float(MAX_FRAMES)
        self._refilled = time.monotonic()
        self._connection: socket.socket
        self._share: Share
        self._is_dropped = False
        self.heard = True
        """Whether anything has arrived since this was last set to False."""

    def open(self, connection: socket.socket, share: Share) -> None:
        """Answer the handshake on this connection, which now belongs to the WebSocket.

        A message uses its share of memory from its first piece until the next message is received.
        Raises OSError if the connection is broken or closed, as do all methods below.
        """
        self._connection, self._share = connection, share
        if self._is_dropped:
            raise ConnectionAbortedError
        self._write(AcceptConnection())

    def send(self, text: str) -> None:
        """Send a message. Raises OSError, for example if the client does not read."""
        self._write(TextMessage(data=text))

    def receive(self, until: float) -> Text | None:
        """The next message, or None if none is complete by this time of the monotonic clock.

        Pings, pongs and small pieces count against the client's budget (see `spend`). If there is
        no room for a message, the client is asked to come again later (1013) and
        ConnectionAbortedError is raised.
        """
        if not self._message:
            self._share.leave()
        while True:
            for event in self._protocol.events():
                if isinstance(event, TextMessage):
                    self._add(event)
                    if event.message_finished:
                        return self._whole()
                    if len(event.data) < PIECE_BYTES:
                        self.spend()
                elif isinstance(event, Ping):
                    self.spend()
                    self._write(event.response())
                elif isinstance(event, Pong):
                    self.spend()
                elif isinstance(event, CloseConnection | BytesMessage):
                    raise ConnectionResetError
            remaining = until - time.monotonic()
            if remaining <= 0:
                return None
            self._connection.settimeout(remaining)
            try:
                data = self._connection.recv(READ_BYTES)
            except TimeoutError:
                return None
            if not data:
                raise ConnectionResetError
            self.heard = True
            self._protocol.receive_data(data)

    def spend(self) -> None:
        """Count a frame that brings nothing against the client's budget.

        If the budget is used up, closes the connection with 1008 (RFC 6455, section 7.4.1) and
        raises ConnectionAbortedError.
        """
        now = time.monotonic()
        self.give_back((now - self._refilled) * FRAMES_PER_SECOND)
        self._refilled = now
        self._frames_left -= 1
        if self._frames_left < 0:
            self._refuse(CloseReason.POLICY_VIOLATION)

    def give_back(self, frames: float) -> None:
        """Add to the client's budget of frames, up to MAX_FRAMES."""
        self._frames_left = min(self._frames_left + frames, MAX_FRAMES)

    def drop(self) -> None:
        """Break the connection, so that its own thread stops waiting (from another thread)."""
        self._is_dropped = True
        with suppress(OSError, AttributeError):  # the latter before it is open
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the WebSocket and its connection, whatever state they are in."""
        with suppress(OSError, ProtocolError):
            self._write(CloseConnection(code=CloseReason.NORMAL_CLOSURE))
        with suppress(OSError):
            self._connection.close()

    def _add(self, event: Message[str]) -> None:
        part = event.data.encode()
        self._size += len(part)
        part = part[: self._max_bytes - len(self._message)]
        if not self._share.grow(len(part)):
            self._refuse(CloseReason.TRY_AGAIN_LATER)
        self._message += part

    def _whole(self) -> Text:
        message = Text(self._message.decode(errors="ignore"), self._size)
        self._message, self._size = bytearray(), 0
        return message

    def _refuse(self, reason: CloseReason) -> NoReturn:
        self._message.clear()
        self._share.leave()
        self._write(CloseConnection(code=reason))
        self._connection.shutdown(socket.SHUT_WR)
        # If the connection were closed at once while data still arrives, the client would not get
        # the reason.
        until = time.monotonic() + CLOSE_SECONDS
        while (remaining := until - time.monotonic()) > 0:
            self._connection.settimeout(remaining)
            if not self._connection.recv(READ_BYTES):
                break
        raise ConnectionAbortedError

    def _write(self, event: Event) -> None:
        self._connection.settimeout(SEND_SECONDS)
        self._connection.sendall(self._protocol.send(event))

"""Buffers of a connection: requests that are not served yet, and answers that are not sent yet."""

import re
import select
import socket
import time
import zlib
from io import BytesIO

from app.domain.bodies import MAX_BODY_BYTES

MAX_HEAD_BYTES = 64 * 1024
MAX_CHUNK_LINE_BYTES = 256
MAX_CHUNKS = 16_384
"""Joining this many pieces of a body takes a twentieth of a second."""
SEND_BYTES = 256 * 1024
GZIP = zlib.MAX_WBITS | 16
LARGE_BYTES = 64 * 1024
LARGE_MARKS = 1_000
"""So many commas or line feeds separate a few hundred real events, or very many empty ones."""

# These patterns only find where a request ends. If they do not understand a request, the web
# server's own parser gets it and refuses it.
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*(?=\r\n)", re.IGNORECASE)
_LENGTH_NAME = re.compile(rb"\r\ncontent-length:", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_EXPECTED = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
_FORWARDED = re.compile(rb"\r\nx-forwarded-for:([^\r\n]*)", re.IGNORECASE)
_ENCODED = re.compile(rb"\r\ncontent-encoding:[ \t]*+(?!(?:identity)?[ \t]*\r\n)", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n", re.IGNORECASE)


class Incoming:
    """The bytes of a client that are not served yet. It finds the end of the next request.

    So only requests that have arrived completely need a thread (RFC 9112, sections 6 and 7.1).
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._begin()

    def _begin(self) -> None:
        self._searched = 0
        self._head = 0
        self._end: int | None = None
        self._is_refused = self._is_packed = self._is_large = False
        self._chunk = self._chunks = self._body = 0
        self.expects_continue = False
        """Whether the client waits for 100 (Continue) before it sends the body."""

    @property
    def has_head(self) -> bool:
        """Whether the head of the next request has arrived completely."""
        return self._head > 0

    @property
    def has_long_head(self) -> bool:
        """Whether the head of the next request is too long to be served."""
        return not self._head and len(self.data) > MAX_HEAD_BYTES

    def is_ready(self) -> bool:
        """Whether the next request has arrived completely, or far enough to be refused."""
        if not self._head and not self._find_head():
            return self.has_long_head
        if self._end is None and not self._is_refused:
            self._find_last_chunk()
        return self._is_refused or self._is_whole()

    def forwarded_for(self, proxies: int) -> str | None:
        """The client of the next request if this many proxies forwarded it, or None."""
        if not proxies:
            return None
        found = b",".join(_FORWARDED.findall(self.data, 0, self._head)).split(b",")
        return found[-proxies].decode("latin-1").strip() if proxies <= len(found) else None

    def is_large(self) -> bool:
        """Whether the next request may take long, as far as it is known (see `look_inside`)."""
        size = self._size()
        return self._is_large or size > LARGE_BYTES or _has_many(self.data, self._head, size)

    def look_inside(self) -> None:
        """Look into a compressed body. Call this in a thread: the poller has no time for it."""
        if not self._is_packed:
            return
        self._is_packed = False
        unpacker = zlib.decompressobj(GZIP)
        try:
            body = unpacker.decompress(bytes(self.data[self._head : self._size()]), LARGE_BYTES)
        except zlib.error:
            return  # it will be refused immediately
        is_whole = unpacker.eof and not unpacker.unused_data
        self._is_large = not is_whole or _has_many(body, 0, len(body))

    def take(self) -> tuple[bytes, bool]:
        """Remove the next request. Returns its received bytes, and whether they are complete."""
        whole = self._is_whole()
        end = self._end if whole else len(self.data)
        request = bytes(self.data[:end])
        del self.data[:end]
        self._begin()
        return request, whole

    def _is_whole(self) -> bool:
        return self._end is not None and len(self.data) >= self._end

    def _size(self) -> int:
        return min(len(self.data), self._end or len(self.data))

    def _find_head(self) -> bool:
        # A head whose lines end without CR will be refused.
        for end in (b"\r\n\r\n", b"\n\n"):
            at = self.data.find(end, max(0, self._searched - len(end) + 1))
            if at >= 0:
                self._read_head(at + len(end))
                return True
        self._searched = len(self.data)
        return False

    def _read_head(self, end: int) -> None:
        expected = _EXPECTED.search(self.data, 0, end)
        if expected:
            # Remove the header, so that gunicorn does not send 100 (Continue) a second time.
            self.expects_continue = True
            del self.data[expected.start() : expected.end()]
            end -= expected.end() - expected.start()
        self._head = self._chunk = end
        length = _LENGTH.search(self.data, 0, end)
        if _LENGTH_NAME.search(self.data, 0, end) and not length:
            # No part of its body may be read as another request.
            self._is_refused = True
            return
        is_packed = _ENCODED.search(self.data, 0, end) is not None
        if _CHUNKED.search(self.data, 0, end):
            self._is_refused, self._is_large = length is not None, is_packed
            return
        size = int(length[1]) if length else 0
        self._is_refused, self._is_packed = size > MAX_BODY_BYTES, is_packed
        self._end = end + size

    def _find_last_chunk(self) -> None:
        while True:
            chunk = _CHUNK.match(self.data, self._chunk)
            if not chunk:
                rest = len(self.data) - self._chunk
                is_broken = b"\n" in self.data[self._chunk : self._chunk + MAX_CHUNK_LINE_BYTES]
                self._is_refused = is_broken or rest > MAX_CHUNK_LINE_BYTES
                return
            size = int(chunk[1], 16)
            if size == 0:
                self._find_end_of_trailers(chunk.end())
                return
            arrived = min(size, len(self.data) - chunk.end())
            if self._body + arrived > MAX_BODY_BYTES or self._chunks == MAX_CHUNKS:
                self._is_refused = True
                return
            if arrived < size:
                return
            self._body += size
            self._chunks += 1
            self._chunk = chunk.end() + size + len(b"\r\n")

    def _find_end_of_trailers(self, start: int) -> None:
        if self.data.startswith(b"\r\n", start):
            self._end = start + len(b"\r\n")
            return
        at = self.data.find(b"\r\n\r\n", start)
        if at >= 0:
            self._end = at + len(b"\r\n\r\n")
        else:
            self._is_refused = len(self.data) - start > MAX_HEAD_BYTES


def _has_many(body: bytes | bytearray, start: int, end: int) -> bool:
    """Whether a body may hold so many events that they take long."""
    if end - start <= LARGE_MARKS:
        return False
    return any(body.count(mark, start, end) > LARGE_MARKS for mark in b",\n")


class Request:
    """One request as it arrived. It can be read like a socket."""

    def __init__(self, data: bytes, at_end: Exception | None = None) -> None:
        self._data = BytesIO(data)
        self._at_end = at_end

    def recv(self, size: int) -> bytes:
        """Read at most `size` bytes. At the end, return b"" or raise the given exception."""
        data = self._data.read(size)
        if not data and self._at_end:
            raise self._at_end
        return data


class Socket(socket.socket):
    """A socket that buffers its data until `flush` sends as much as it can."""

    def __init__(self, accepted: socket.socket) -> None:
        """Replace an accepted socket, which can't be used any more."""
        family, kind, proto = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, proto, fileno=accepted.detach())
        self.unsent = bytearray()
        self.is_broken = False

    def setblocking(self, flag: bool) -> None:
        """See socket. As gunicorn calls it at each request, it leaves alone what is set already."""
        if flag != self.getblocking():
            super().setblocking(flag)

    def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
        """Buffer data to be sent. It never waits and never raises."""
        self.unsent += data
        if len(self.unsent) > SEND_BYTES:
            self.flush(flags)

    def make_room(self, seconds: float) -> bool:
        """Send until little is unsent. Returns whether the client accepts it within this time.

        An answer that is made while it is sent can so be longer than what fits into memory.
        """
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self, select.POLLOUT)
        while len(self.unsent) > SEND_BYTES and (left := until - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self.flush()
        return len(self.unsent) <= SEND_BYTES and not self.is_broken

    def flush(self, flags: int = 0) -> None:
        """Send as much as the client accepts now, or nothing if the connection is broken."""
        if not self.unsent:
            return
        try:
            sent = self.send(self.unsent, flags | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            sent, self.is_broken = len(self.unsent), True
        del self.unsent[:sent]

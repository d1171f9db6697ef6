"""The browsers that watch through this web process. One thread writes to all of them."""

import logging
import math
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from app.errors import Unavailable
from app.redis.live import COUNTS_CHANNEL, DROP_CHANNEL, SPIKE_CHANNEL, Counts, CountsMessage
from app.redis.spikes import Spike
from app.web.sockets.places import Places
from app.web.sockets.visible import EVERYTHING, Visible

TICK_SECONDS = 0.1
SEND_SECONDS = 0.5
"""The counts of this many seconds are sent together."""
HEARTBEAT_SECONDS = 15.0
START_SECONDS = 1.0
END_SECONDS = 1.0
"""How often to look for viewers whose time is over."""
MAX_VIEWERS = 1_000
MAX_VIEWERS_OF_CLIENT = 200
MAX_UNSENT_BYTES = 256 * 1024
"""If a viewer is further behind, it is dropped. It may connect again."""

HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"Cache-Control: no-store\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"X-Accel-Buffering: no\r\n"
    b"Connection: close\r\n\r\n"
    b"retry: 2000\n\n"
)

_EVENT_OF = {SPIKE_CHANNEL: "spike", DROP_CHANNEL: "drop"}

logger = logging.getLogger(__name__)


class Viewers:
    """Takes over connections, and writes server-sent events to them until they close.

    gunicorn has few threads, and viewers stay for hours. So their connections are taken away from
    gunicorn and need no threads of their own. The one thread here starts with the first viewer.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._places = Places(MAX_VIEWERS, MAX_VIEWERS_OF_CLIENT)
        self._addresses: dict[socket.socket, str] = {}
        self._visible: dict[socket.socket, Visible] = {}
        self._until: dict[socket.socket, float] = {}
        self._new: deque[socket.socket] = deque()
        self._unsent: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._subscribed = threading.Event()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def join(
        self,
        connection: socket.socket,
        address: str,
        visible: Visible = EVERYTHING,
        until: float = math.inf,
    ) -> None:
        """Take over a connection whose request has been read. Its socket can't be used any more.

        `address` is the client's. It is told of what is `visible` to it, until a moment in seconds
        since the epoch. If the client, or all clients together, have too many viewers, or if Redis
        can't be reached, it raises Unavailable and leaves the connection as it is.
        """
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="viewers", daemon=True)
                self._thread.start()
        if not self._subscribed.wait(START_SECONDS):
            raise Unavailable("broker", "no live counts from it")
        if not self._places.take(address):
            raise Unavailable("live stream", "too many viewers")
        try:
            viewer = taken_over(connection)
        except OSError:
            self._places.leave(address)
            raise
        self._addresses[viewer] = address
        self._visible[viewer], self._until[viewer] = visible, until
        self._new.append(viewer)

    def _run(self) -> None:
        tell = True
        while True:
            try:
                self._watch()
            except (RedisError, OSError) as error:
                if tell or self._subscribed.is_set():  # once, however long Redis is away
                    logger.warning("no live counts: %s", type(error).__name__)
                tell = False
            except Exception:
                logger.exception("no live counts")
            self._subscribed.clear()
            # These viewers missed something, so make them reconnect and read the reports.
            for viewer in [*self._unsent, *self._new]:
                self._drop(viewer)
            self._new.clear()
            time.sleep(START_SECONDS)

    def _watch(self) -> None:
        with self._redis.pubsub() as channels:  # type: ignore[no-untyped-call]
            channels.subscribe(COUNTS_CHANNEL, SPIKE_CHANNEL, DROP_CHANNEL)
            # Grouped by queue and folds: the reports hold either all counts of a group or none.
            waiting: dict[tuple[str, int], tuple[int, Counts]] = {}
            send_at = beat_at = end_at = 0.0
            while True:
                message = channels.get_message(timeout=TICK_SECONDS)
                while message is not None:
                    if message["type"] == "subscribe":
                        self._subscribed.set()
                    elif message["type"] == "message":
                        if message["channel"] == COUNTS_CHANNEL.encode():
                            told = CountsMessage.read(message["data"])
                            of = told.queue, told.folds
                            _, counts = waiting.setdefault(of, (told.number, Counts()))
                            counts.add_message(told.counts)
                        else:
                            name = _EVENT_OF[message["channel"].decode()]
                            self._send_each(partial(_spike, name, message["data"]))
                    message = channels.get_message(timeout=0)
                now = time.monotonic()
                if waiting and now >= send_at:
                    self._send_each(partial(_all_counts, waiting))
                    waiting, send_at = {}, now + SEND_SECONDS
                if now >= beat_at:
                    # This finds viewers that are gone, and keeps proxies from closing connections.
                    self._send_all(b": alive\n\n")
                    channels.ping()
                    beat_at = now + HEARTBEAT_SECONDS
                if now >= end_at:
                    self._end()
                    end_at = now + END_SECONDS
                self._welcome()
                self._let_go()
                for viewer in [viewer for viewer, unsent in self._unsent.items() if unsent]:
                    self._send(viewer, b"")

    def _welcome(self) -> None:
        while self._new:
            viewer = self._new.popleft()
            self._unsent[viewer] = b""
            self._selector.register(viewer, selectors.EVENT_READ)
            self._send(viewer, HEAD)

    def _let_go(self) -> None:
        """Drop the viewers that closed their connection. Anything that viewers send is ignored."""
        for key, _ in self._selector.select(0):
            viewer: socket.socket = key.fileobj  # type: ignore[assignment]
            try:
                gone = not viewer.recv(4_096)
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                self._drop(viewer)

    def _end(self) -> None:
        """Drop the viewers that may no longer see anything."""
        now = time.time()
        for viewer in [viewer for viewer in self._unsent if self._until[viewer] <= now]:
            self._drop(viewer)

    def _send_each(self, events_for: Callable[[Visible], bytes]) -> None:
        """Send each viewer what is made for all to whom the same is visible."""
        made: dict[Visible, bytes] = {}
        for viewer in list(self._unsent):
            visible = self._visible[viewer]
            if visible not in made:
                made[visible] = events_for(visible)
            if made[visible]:
                self._send(viewer, made[visible])

    def _send_all(self, event: bytes) -> None:
        for viewer in list(self._unsent):
            self._send(viewer, event)

    def _send(self, viewer: socket.socket, more: bytes) -> None:
        unsent = self._unsent[viewer] + more
        try:
            unsent = unsent[viewer.send(unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(viewer)
            return
        self._unsent[viewer] = unsent
        if len(unsent) > MAX_UNSENT_BYTES:
            self._drop(viewer)

    def _drop(self, viewer: socket.socket) -> None:
        if self._unsent.pop(viewer, None) is not None:
            self._selector.unregister(viewer)
        self._places.leave(self._addresses.pop(viewer))
        del self._visible[viewer], self._until[viewer]
        with suppress(OSError):
            viewer.close()


def taken_over(connection: socket.socket) -> socket.socket:
    """Another socket for the same connection; the given socket then belongs to a closed one.

    A duplicate alone would not do, because gunicorn shuts down what it closes.
    """
    taken = socket.socket(fileno=os.dup(connection.fileno()))
    taken.setblocking(False)
    left, right = socket.socketpair()
    with left, right:
        os.dup2(left.fileno(), connection.fileno(), inheritable=False)
    return taken


def _all_counts(waiting: Mapping[tuple[str, int], tuple[int, Counts]], visible: Visible) -> bytes:
    """The events for viewers to whom this is visible."""
    events = []
    for (queue, folds), (first, counts) in waiting.items():
        seen = visible.counts(counts)
        # How often all counts were folded or published tells of others' too.
        mark = {"folds": folds, "first": first} if visible.is_everything else {}
        if seen:
            payload = {"queue": queue} | mark | seen.shown()
            events.append(_event("counts", msgspec.json.encode(payload)))
    return b"".join(events)


def _spike(name: str, data: bytes, visible: Visible) -> bytes:
    """The event for viewers to whom this is visible. Whoever sees everything gets it unchanged."""
    if visible.is_everything:
        return _event(name, data)
    try:
        seen = visible.spike(msgspec.json.decode(data, type=Spike))
    except msgspec.DecodeError:  # of another release, so whose it is can't be told
        return b""
    return _event(name, msgspec.json.encode(seen)) if seen else b""


def _event(name: str, data: bytes) -> bytes:
    # JSON contains no line break.
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"

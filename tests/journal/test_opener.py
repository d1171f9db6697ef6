import asyncio
import logging
import shutil
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection

import pytest
from flower.utils.broker import Broker
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from app.errors import SettingsError
from app.journal import opener
from app.local.processes import free_ports, redis_server
from app.settings import read
from tests.support.replaced import pass_on
from tests.support.servers import Server, redis_answers

SAFE = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")


@contextmanager
def redis_with(home: Path, *options: str) -> Iterator[str]:
    """The URL of a separate Redis with these options."""
    port, cluster_port = free_ports(2)
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home)]
    command += ["--cluster-port", str(cluster_port)]
    url = f"redis://127.0.0.1:{port}/0"
    server = Server([*command, "--save", "", *options], url, home / "redis.log", redis_answers)
    server.start()
    try:
        yield url
    finally:
        server.kill()


def warnings_for(**urls: str) -> list[str]:
    return list(opener.warnings(read({"DATA_DIR": "/nonexistent", **urls})))


def test_a_safely_configured_redis_gives_no_warnings(tmp_path: Path) -> None:
    with redis_with(tmp_path, *SAFE) as url:
        assert warnings_for(REDIS_URL=url) == []


def test_a_redis_that_may_lose_accepted_events_gives_warnings_that_name_its_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_with(tmp_path, "--maxmemory-policy", "allkeys-lru") as url:
        at = url.removeprefix("redis://")
        sentences = [
            f"REDIS_URL: the Redis at redis://{at} has no append-only file: it loses accepted "
            "events when it stops.",
            f"REDIS_URL: the Redis at redis://{at} may drop accepted events (maxmemory-policy "
            "allkeys-lru); set noeviction.",
        ]
        with_secret = f"redis://user:secret@{at}"
        assert warnings_for(REDIS_URL=url) == sentences
        assert warnings_for(REDIS_URL=url, BROKER_URL="amqp://h") == sentences
        assert len(warnings_for(REDIS_URL=url, BROKER_URL=url[:-1] + "1")) == 4
        with caplog.at_level(logging.WARNING):
            opener.log_warnings(read({"REDIS_URL": url}))
        assert [record.message for record in caplog.records] == sentences
    with caplog.at_level(logging.INFO):
        opener.log_warnings(read({"REDIS_URL": with_secret}))
    assert "secret" not in caplog.text


def test_a_cluster_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with (
        redis_with(tmp_path, "--cluster-enabled", "yes", *SAFE) as url,
        pytest.raises(SettingsError, match=r"^REDIS_URL: .* is a cluster, which Celery can't use"),
    ):
        warnings_for(REDIS_URL=url)


@pytest.mark.parametrize("version", ["6.2.14", "5.0.3"])
def test_a_redis_that_is_too_old_is_refused_in_a_sentence(version: str) -> None:
    class Old(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            text = f"redis_version:{version}\r\n"
            for line in self.rfile:
                if line == b"INFO\r\n":
                    self.wfile.write(f"${len(text)}\r\n{text}\r\n".encode())
                elif line == b"CLIENT\r\n":
                    self.wfile.write(b"+OK\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Old) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with pytest.raises(SettingsError, match=rf" is {version}; it must be 7 or newer\.$"):
            warnings_for(REDIS_URL=f"redis://127.0.0.1:{server.server_address[1]}/0")
        server.shutdown()


class _Tls(socketserver.BaseRequestHandler):
    """Forwards what arrives over TLS to a Redis."""

    def handle(self) -> None:
        assert isinstance(self.server, _TlsServer)
        try:
            taken = self.server.context.wrap_socket(self.request, server_side=True)
        except OSError:  # the client does not trust the certificate
            return
        with taken, create_connection(("127.0.0.1", self.server.target)) as server:
            threading.Thread(target=pass_on, args=(server, taken), daemon=True).start()
            pass_on(taken, server)


class _TlsServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    context: ssl.SSLContext
    target: int


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_celery_and_flower_verify_a_redis_over_tls_unless_the_url_says_otherwise(
    tmp_path: Path,
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )

    def connects(url: str) -> bool:
        with Connection(url, ssl=opener.tls_of(url)) as connection:
            try:
                connection.ensure_connection(max_retries=0, timeout=2)
                connection.default_channel.client.ping()
            except (OperationalError, *connection.connection_errors):
                return False
            return True

    with redis_with(tmp_path) as redis, _TlsServer(("127.0.0.1", 0), _Tls) as server:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(certificate, key)
        server.target = int(redis.rsplit(":", 1)[1].partition("/")[0])
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"rediss://127.0.0.1:{server.server_address[1]}/0"
        assert not connects(url)
        trusting = f"{url}?ssl_ca_certs={certificate}"
        assert connects(trusting)
        flower = Broker(trusting, broker_options={}, broker_use_ssl=opener.tls_of(trusting))
        assert asyncio.run(flower.queues(["page_view"])) == [{"name": "page_view", "messages": 0}]
        assert connects(f"{url}?ssl_cert_reqs=none")
        server.shutdown()

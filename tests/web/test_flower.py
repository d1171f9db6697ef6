import socket
import sys
from collections.abc import Iterator

import httpx
import pytest

from app.journal.redis_journal import RedisJournal
from app.local.processes import free_ports
from app.redis.guesses import MAX_GUESSES
from app.web.flower import MAX_BODY_BYTES
from tests.support.servers import Server
from tests.support.waiting import running, wait_until

FRAMES = {"X-Frame-Options": "DENY", "Content-Security-Policy": "frame-ancestors 'none'"}


@pytest.fixture(scope="module", params=["", "user:password"], ids=["open", "with a password"])
def flower(
    request: pytest.FixtureRequest, redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, bool]]:
    """A client of Flower, and whether Flower asks for a password."""
    home, port = tmp_path_factory.mktemp("flower"), free_ports(1)[0]
    command = [sys.executable, "-m", "app.web.flower", "--address=127.0.0.1", f"--port={port}"]
    environment = {"DATA_DIR": str(home), "FLOWER_DB": str(home / "flower")}
    if request.param:
        environment["FLOWER_BASIC_AUTH"] = request.param
    with (
        running(*command, log=home / "flower.log", REDIS_URL=redis.url, **environment),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):

        def answers() -> bool:
            try:
                return client.get("/healthcheck").is_success
            except httpx.HTTPError:
                return False

        wait_until(answers)
        yield client, bool(request.param)


@pytest.mark.parametrize("path", ["/", "/nowhere", "/api/workers", "/static/css/flower.css"])
def test_no_answer_can_be_framed(flower: tuple[httpx.Client, bool], path: str) -> None:
    client, _ = flower
    headers = client.get(path).headers
    assert {name: headers[name] for name in FRAMES} == FRAMES


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:5555"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
)
def test_without_a_password_flower_answers_only_local_requests_to_local_names(
    flower: tuple[httpx.Client, bool], headers: dict[str, str]
) -> None:
    client, has_password = flower
    for path in ("/workers", "/metrics", "/healthcheck"):
        refused = client.get(path, headers=headers)
        assert ("FLOWER_BASIC_AUTH" in refused.text) == (not has_password)
        assert (refused.status_code == 403) == (not has_password)
        for host in ("localhost", "[::1]:5555"):
            allowed = client.get(path, headers={"Host": host}, auth=("user", "password"))
            assert allowed.status_code == 200


@pytest.mark.parametrize(
    "begun",
    [
        f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n",
        f"Transfer-Encoding: chunked\r\n\r\n{MAX_BODY_BYTES + 1:x}\r\n",
    ],
)
def test_a_large_body_is_refused_before_it_arrives(
    flower: tuple[httpx.Client, bool], begun: str
) -> None:
    client, _ = flower
    assert client.post("/login", content=b"x" * MAX_BODY_BYTES).status_code != 400
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n" + begun.encode())
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "credentials",
    [
        "Basic dXNlcjpwYXNzd8O2cmQ=",  # user:passwörd
        "Basic dXNlcjr/",  # not valid text
        "Basic dXNlcg=",
        "Basic",
        "Bearer password",
    ],
)
def test_a_malformed_or_non_ascii_password_is_a_wrong_one(
    flower: tuple[httpx.Client, bool], journal: RedisJournal, credentials: str
) -> None:
    client, has_password = flower
    answer = client.get("/workers", headers={"Authorization": credentials})
    assert answer.status_code == (401 if has_password else 200)
    assert ("WWW-Authenticate" in answer.headers) == has_password
    # The guess is counted right after the answer.
    wait_until(lambda: journal.redis.delete("guesses:127.0.0.1") == has_password)


def test_guesses_at_the_password_are_limited(
    flower: tuple[httpx.Client, bool], journal: RedisJournal
) -> None:
    client, has_password = flower
    tried = [client.get("/", auth=("user", "guess")).status_code for _ in range(MAX_GUESSES)]
    right = client.get("/", auth=("user", "password"))
    if has_password:
        assert tried == [401] * MAX_GUESSES
        assert (right.status_code, "Retry-After" in right.headers) == (429, True)
    else:
        assert [*tried, right.status_code] == [200] * (MAX_GUESSES + 1)
    assert journal.redis.delete("guesses:127.0.0.1") == has_password

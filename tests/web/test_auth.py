import logging

import pytest
from flask.testing import FlaskClient
from redis import Redis

from app.journal.redis_journal import RedisJournal
from app.redis.guesses import MAX_GUESSES
from app.web import sessions
from tests.support.servers import Server
from tests.web.conftest import MakeClient

TOKEN = "secret"
NETWORK_OF_ADDRESS = {
    "192.0.2.7": "192.0.2.7",
    "::ffff:192.0.2.7": "192.0.2.7",
    "2001:db8:1:2:3::4": "2001:db8:1:2::/64",
}


@pytest.fixture
def secured(client_with: MakeClient) -> FlaskClient:
    return client_with(admin_token=TOKEN)


def status(client: FlaskClient, token: str, address: str = "192.0.2.7") -> int:
    """What a report answers to this bearer token from this address."""
    return client.get(
        "/reports/clicks",
        headers={"Authorization": f"Bearer {token}"},
        environ_base={"REMOTE_ADDR": address},
    ).status_code


def guess_too_often(client: FlaskClient, address: str = "192.0.2.7") -> None:
    assert [status(client, "guess", address) for _ in range(MAX_GUESSES)] == [401] * MAX_GUESSES


def test_guesses_are_limited_and_then_even_the_right_token_is_refused(
    secured: FlaskClient,
) -> None:
    guess_too_often(secured)
    assert [status(secured, "guess"), status(secured, TOKEN)] == [429, 429]


@pytest.mark.parametrize(
    ("guessing", "same"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::ffff"),
    ],
)
def test_a_network_counts_as_one_and_locks_out_nobody_else(
    secured: FlaskClient, guessing: str, same: str
) -> None:
    guess_too_often(secured, guessing)
    assert status(secured, TOKEN, same) == 429
    assert status(secured, TOKEN, "192.0.2.8") == 200
    assert status(secured, TOKEN, "2001:db8:1:3::1") == 200


def test_all_web_processes_count_guesses_together(client_with: MakeClient) -> None:
    guess_too_often(client_with(admin_token=TOKEN))
    assert status(client_with(admin_token=TOKEN), TOKEN) == 429


def test_the_limit_expires(secured: FlaskClient, journal: RedisJournal) -> None:
    guess_too_often(secured)
    assert 0 < journal.redis.ttl("guesses:192.0.2.7") <= 60
    journal.redis.delete("guesses:192.0.2.7")
    assert status(secured, TOKEN) == 200


def test_an_operator_is_not_limited(secured: FlaskClient) -> None:
    assert {status(secured, TOKEN) for _ in range(3 * MAX_GUESSES)} == {200}


def test_a_request_without_a_token_is_not_a_guess(secured: FlaskClient) -> None:
    for _ in range(2 * MAX_GUESSES):
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Basic Og=="}):
            assert secured.get("/dead-letters", headers=headers).status_code == 401
    assert status(secured, TOKEN, "127.0.0.1") == 200


def test_a_session_continues_while_others_on_its_network_guess(
    secured: FlaskClient, client_with: MakeClient
) -> None:
    secured.post("/", data={"token": TOKEN})
    guess_too_often(client_with(admin_token=TOKEN), "127.0.0.1")
    assert secured.get("/reports/clicks").status_code == 200


@pytest.mark.parametrize(("address", "network"), NETWORK_OF_ADDRESS.items())
def test_a_guess_is_logged_with_its_network_but_without_its_content(
    secured: FlaskClient, caplog: pytest.LogCaptureFixture, address: str, network: str
) -> None:
    with caplog.at_level(logging.INFO):
        status(secured, "hunter2", address)
    assert caplog.messages == [f"a wrong token or password from {network}"]


def test_a_full_redis_prevents_neither_counting_guesses_nor_logging_in(
    secured: FlaskClient, redis: Server
) -> None:
    with Redis.from_url(redis.url) as client:
        client.config_set("maxmemory", 1)
        try:
            guess_too_often(secured)
            assert status(secured, TOKEN) == 429
            assert secured.post("/", data={"token": TOKEN}).status_code == 303
        finally:
            client.config_set("maxmemory", 0)


def test_without_redis_a_token_opens_reports_but_a_session_does_not(
    secured: FlaskClient, client_with: MakeClient, redis: Server
) -> None:
    browser = client_with(admin_token=TOKEN)
    browser.post("/", data={"token": TOKEN})
    redis.kill()
    try:
        assert [status(secured, TOKEN), status(secured, "guess")] == [200, 401]
        assert browser.get("/reports/clicks").status_code == 503
    finally:
        redis.start()


@pytest.mark.parametrize("value", ["", TOKEN, "guess", "a" * 4_000, "\u00ff\u0000"])
def test_a_cookie_that_is_not_a_session_opens_nothing(secured: FlaskClient, value: str) -> None:
    secured.set_cookie(sessions.COOKIE, value)
    assert secured.get("/reports/clicks").status_code == 401


def test_changing_the_admin_token_ends_all_sessions(client_with: MakeClient) -> None:
    before, after = client_with(admin_token=TOKEN), client_with(admin_token="another")
    before.post("/", data={"token": TOKEN})
    cookie = before.get_cookie(sessions.COOKIE)
    assert cookie is not None
    after.set_cookie(sessions.COOKIE, cookie.value)
    assert after.get("/reports/clicks").status_code == 401


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost", 202),
        ("https://localhost", 401),
        ("http://localhost:8080", 401),
        ("http://127.0.0.1", 401),
        ("null", 401),
    ],
)
def test_only_pages_with_the_same_scheme_host_and_port_can_use_a_session(
    secured: FlaskClient, origin: str, expected: int
) -> None:
    secured.post("/", data={"token": TOKEN})
    response = secured.post("/dead-letters/replay", headers={"Origin": origin})
    assert response.status_code == expected


@pytest.mark.parametrize(
    ("origin", "expected"), [("https://a.example", 202), ("http://a.example", 401)]
)
def test_behind_proxies_the_scheme_is_the_one_that_they_report(
    client_with: MakeClient, origin: str, expected: int
) -> None:
    client = client_with(admin_token=TOKEN, trusted_proxies=1)
    told = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "Host": "a.example"}
    over_tls = {"base_url": "https://a.example", "headers": told}
    client.post("/", data={"token": TOKEN}, **over_tls)
    asked = {"base_url": "https://a.example", "headers": told | {"Origin": origin}}
    assert client.post("/dead-letters/replay", **asked).status_code == expected


def test_a_page_of_another_origin_cannot_end_a_session(secured: FlaskClient) -> None:
    secured.post("/", data={"token": TOKEN})
    cookie = secured.get_cookie(sessions.COOKIE)
    assert cookie is not None
    secured.post("/logout", headers={"Origin": "http://localhost:8080"})
    secured.set_cookie(sessions.COOKIE, cookie.value)
    assert secured.get("/reports/clicks").status_code == 200


@pytest.mark.parametrize("token", ["sixteen=and=more", "sixteen, and more", 'a "quoted" token'])
def test_a_bearer_token_may_contain_any_characters(client_with: MakeClient, token: str) -> None:
    client = client_with(admin_token=token)
    bearer = {"Authorization": f"Bearer {token}"}
    assert client.get("/reports/clicks", headers=bearer).status_code == 200


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "Via", "X-Real-IP"])
def test_without_a_token_a_request_through_a_proxy_does_not_count_as_local(
    client: FlaskClient, header: str
) -> None:
    for path in ("/", "/reports/clicks", "/live/snapshot", "/dead-letters"):
        response = client.get(path, headers={header: "127.0.0.1"})
        assert response.status_code == 403
        assert "proxy" in response.text

import logging
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Blueprint, Response
from flask.testing import FlaskClient
from redis import Redis

from app.domain import share_links
from app.domain.share_links import Share
from app.journal.redis_journal import RedisJournal
from app.redis.guesses import MAX_GUESSES
from app.settings import Settings
from app.web import application, auth, context, sessions
from app.web.auth import LINK_COOKIE
from tests.support.servers import Server
from tests.support.waiting import wait_until
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


# Readers.


AWAY = {"REMOTE_ADDR": "203.0.113.5"}
SECRET = "a secret that signs links"
KEYS = {"k1": frozenset({"site1.com"}), "k2": frozenset[str]()}
PATHS_OF_OPERATORS = ["/dead-letters", "/ads", "/ads/1"]
PATHS_OF_EVERYBODY = ["/health", "/ready", "/metrics"]


def link(website: str | None = "site1.com", seconds: float = 600, secret: str = SECRET) -> str:
    until = int(time.time() + seconds)
    return share_links.PATH + share_links.text_of(Share(website, None, None, until), secret)


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("admin_token", [None, TOKEN])
@pytest.mark.parametrize("address", ["127.0.0.1", "203.0.113.5"])
def test_a_read_key_reads_wherever_it_comes_from_and_is_no_operators(
    client_with: MakeClient, admin_token: str | None, address: str
) -> None:
    client = client_with(admin_token=admin_token, read_keys=KEYS)
    here = {"environ_base": {"REMOTE_ADDR": address}, "headers": bearing("k1")}
    for path in ("/reports/clicks", "/live/snapshot", "/", "/openapi.json"):
        assert client.get(path, **here).status_code == 200
    for path in PATHS_OF_OPERATORS:
        assert client.get(path, **here).status_code == 404
    for path in ("/dead-letters/1", "/dead-letters?q=a", "/dead-letters"):
        assert client.delete(path, **here).status_code == 404
    for query in ("?format=ndjson", "?reason=a", "?unknown=a"):
        assert client.get(f"/dead-letters{query}", **here).status_code == 404
    assert client.put("/ads/1", json={}, **here).status_code == 404
    assert client.post("/metrics", **here).status_code == 404
    assert client.post("/dead-letters//replay", **here).status_code == 404


def test_without_an_admin_token_operators_paths_stay_for_this_machine(
    client_with: MakeClient,
) -> None:
    client = client_with(read_keys=KEYS, share_secret=SECRET)
    assert client.get("/dead-letters").status_code == 200
    assert client.get("/reports/clicks").status_code == 200
    assert client.get("/dead-letters", environ_base=AWAY).status_code == 403
    refused = client.get("/reports/clicks", environ_base=AWAY)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert client.get("/metrics", environ_base=AWAY).status_code == 200
    behind = client_with(read_keys=KEYS, trusted_proxies=1)
    assert behind.get("/reports/clicks", headers=bearing("k1")).status_code == 200
    assert behind.get("/reports/clicks").status_code == 401
    assert behind.get("/dead-letters").status_code == 403


@pytest.mark.parametrize("path", ["/reports/clicks", "/dead-letters"])
def test_a_wrong_token_makes_not_even_this_machine_an_operator(
    client_with: MakeClient, path: str
) -> None:
    client = client_with(read_keys=KEYS)
    assert client.get(path, headers=bearing("wrong")).status_code == 401


@pytest.mark.parametrize("path", PATHS_OF_EVERYBODY)
@pytest.mark.parametrize("token", ["k1", "of somebody else"])
def test_a_monitor_may_send_any_token(client_with: MakeClient, path: str, token: str) -> None:
    client = client_with(admin_token=TOKEN, read_keys=KEYS)
    for _ in range(MAX_GUESSES + 1):
        assert client.get(path, headers=bearing(token)).status_code == 200
    assert client.get("/reports/clicks", headers=bearing("k1")).status_code == 200


@pytest.mark.parametrize("path", ["/reports/clicks", "/dead-letters", "/openapi.json"])
def test_wrong_read_keys_are_guesses_on_every_path(client_with: MakeClient, path: str) -> None:
    client = client_with(admin_token=TOKEN, read_keys=KEYS)
    for _ in range(MAX_GUESSES):
        assert client.get(path, headers=bearing("guess")).status_code in (200, 401)
    assert client.get(path, headers=bearing("k1")).status_code == 429
    assert status(client, "k1", "127.0.0.1") == 429
    assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_a_login_with_a_read_key_opens_its_dashboard_until_the_key_is_gone(
    client_with: MakeClient, key: str
) -> None:
    client = client_with(read_keys=KEYS)
    away: dict[str, Any] = {"environ_base": AWAY}
    asked = client.get("/", **away)
    assert asked.status_code == 401
    assert "Admin token or read key" in asked.text
    assert client.post("/", data={"token": key}, **away).status_code == 303
    page = client.get("/", **away)
    assert page.status_code == 200
    assert "Queues" not in page.text
    assert client.get("/dead-letters", **away).status_code == 404
    cookie = client.get_cookie(sessions.COOKIE)
    assert cookie is not None
    without = client_with(read_keys={"k3": frozenset[str]()})
    without.set_cookie(sessions.COOKIE, cookie.value)
    assert without.get("/reports/clicks", **away).status_code == 401
    assert client.post("/logout", **away).status_code == 303
    client.set_cookie(sessions.COOKIE, cookie.value)
    assert client.get("/reports/clicks", **away).status_code == 401


@pytest.fixture
def sharing(client_with: MakeClient) -> FlaskClient:
    return client_with(admin_token=TOKEN, share_secret=SECRET)


def test_a_link_is_exchanged_for_a_cookie_and_leaves_the_address(sharing: FlaskClient) -> None:
    opened = sharing.get(link(), base_url="https://localhost")
    assert (opened.status_code, opened.headers["Location"]) == (303, "/")
    assert opened.headers["Cache-Control"] == "no-store"
    assert opened.headers["Referrer-Policy"] == "same-origin"
    said = opened.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Secure"} <= set(said)
    [age] = [int(part.partition("=")[2]) for part in said if part.startswith("Max-Age")]
    assert 590 <= age <= 600
    assert link().rpartition("/")[2] not in opened.text
    page = sharing.get("/", base_url="https://localhost")
    assert (page.status_code, "Queues" in page.text) == (200, False)


@pytest.mark.parametrize(
    "refused",
    [
        link(seconds=-1),
        link(secret="another secret, as long"),
        link()[:-2],
        f"{share_links.PATH}x",
        f"{share_links.PATH}{'x' * 4_000}",
        f"{share_links.PATH}%ff%00",
    ],
    ids=range(6),
)
def test_a_link_that_has_ended_or_is_not_ours_opens_nothing(
    sharing: FlaskClient, refused: str
) -> None:
    opened = sharing.get(refused)
    assert opened.status_code == 403
    assert "This link has ended" in opened.text
    assert "Set-Cookie" not in opened.headers
    sharing.set_cookie(LINK_COOKIE, refused.removeprefix(share_links.PATH))
    for path in ("/", "/reports/clicks", "/live/snapshot", "/dead-letters"):
        assert sharing.get(path).status_code == 401


def test_changing_or_removing_the_secret_ends_all_links(
    client_with: MakeClient, sharing: FlaskClient
) -> None:
    opened = link()
    sharing.get(opened)
    cookie = sharing.get_cookie(LINK_COOKIE)
    assert cookie is not None
    assert sharing.get("/reports/clicks").status_code == 200
    for secret, expected in (("another secret, as long", 403), (None, 404)):
        changed = client_with(admin_token=TOKEN, share_secret=secret)
        assert changed.get(opened).status_code == expected
        changed.set_cookie(LINK_COOKIE, cookie.value)
        assert changed.get("/reports/clicks").status_code == 401


def test_a_link_ends_while_it_is_open(sharing: FlaskClient) -> None:
    sharing.get(link(seconds=2))
    assert sharing.get("/reports/clicks").status_code == 200
    cookie = sharing.get_cookie(LINK_COOKIE)
    assert cookie is not None
    sharing.set_cookie(LINK_COOKIE, cookie.value)  # as if the browser went on sending it
    wait_until(lambda: sharing.get("/reports/clicks").status_code == 401)


def test_forged_links_are_guesses_but_those_that_have_ended_are_not(sharing: FlaskClient) -> None:
    for _ in range(2 * MAX_GUESSES):
        assert sharing.get(link(seconds=-1)).status_code == 403
    for _ in range(MAX_GUESSES):
        assert sharing.get(f"{share_links.PATH}x").status_code == 403
    assert sharing.get(link()).status_code == 429
    assert status(sharing, TOKEN, "127.0.0.1") == 429


def test_whoever_opens_a_link_sees_what_it_is_for_until_the_next_login_or_logout(
    sharing: FlaskClient,
) -> None:
    sharing.post("/", data={"token": TOKEN})
    sharing.get(link())
    assert sharing.get("/dead-letters").status_code == 404
    sharing.post("/", data={"token": TOKEN})
    assert sharing.get_cookie(LINK_COOKIE) is None
    assert sharing.get("/dead-letters").status_code == 200
    sharing.get(link())
    sharing.post("/logout")
    assert sharing.get("/reports/clicks").status_code == 401


def test_a_page_of_another_origin_cannot_use_a_link(sharing: FlaskClient) -> None:
    sharing.get(link())
    for origin, expected in (("http://localhost", 200), ("http://localhost:8080", 401)):
        answer = sharing.get("/reports/clicks", headers={"Origin": origin})
        assert answer.status_code == expected


def test_a_blueprint_that_asks_nobody_is_closed_to_readers(
    settings: Settings, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful = Blueprint("forgetful", __name__)
    forgetful.add_url_rule("/forgetful", view_func=lambda: Response("all there is"))
    monkeypatch.setattr(application, "metrics", SimpleNamespace(blueprint=forgetful))
    config = replace(settings, read_keys=KEYS, share_secret=SECRET)
    client = application.create_app(config).test_client()
    assert client.get("/forgetful").status_code == 200
    assert client.get("/forgetful", headers=bearing("k2")).status_code == 404
    client.get(link(None))
    assert client.get("/forgetful").status_code == 404


def test_tokens_are_compared_in_constant_time(
    client_with: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_with(admin_token=TOKEN, read_keys=KEYS)
    compared: list[set[str]] = []

    def which_of(given: str, secrets: list[str]) -> str | None:
        compared.append(set(secrets))
        return context.which_of(given, secrets)

    monkeypatch.setattr(auth, "which_of", which_of)
    assert [status(client, token) for token in ("k1", TOKEN, "k3")] == [200, 200, 401]
    assert compared == [{TOKEN, "k1", "k2"}] * 3

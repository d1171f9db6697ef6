import logging

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.redis import guesses
from app.redis.guesses import MAX_GUESSES
from app.web import sessions
from tests.support.servers import Server
from tests.web.conftest import MakeClient

AWAY = {"REMOTE_ADDR": "203.0.113.5"}


@pytest.fixture
def secured(client_with: MakeClient) -> FlaskClient:
    return client_with(admin_token="secret")


def login(client: FlaskClient, token: str = "secret", path: str = "/") -> TestResponse:
    return client.post(path, data={"token": token})


def test_the_dashboard_answers_on_the_collectors_own_machine(client: FlaskClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert "dashboard/main.js" in response.text
    assert "Log out" not in response.text


def test_without_a_token_it_answers_nowhere_else(client: FlaskClient) -> None:
    response = client.get("/", environ_base=AWAY)
    assert response.status_code == 403
    assert "ADMIN_TOKEN" in response.text
    assert "dashboard/main.js" not in response.text


def test_with_a_token_it_asks_for_the_token(secured: FlaskClient) -> None:
    response = secured.get("/")
    assert response.status_code == 401
    assert 'name="token"' in response.text
    assert "dashboard/main.js" not in response.text


def test_a_login_opens_everything_that_the_page_reads(secured: FlaskClient) -> None:
    response = login(secured, path="/?website=site1.com")
    assert response.status_code == 303
    assert response.headers["Location"] == "/?website=site1.com"
    assert "Log out" in secured.get("/").text
    for path in ("/reports/clicks", "/dead-letters", "/live/snapshot"):
        assert secured.get(path, environ_base=AWAY).status_code == 200


def test_a_wrong_token_gets_a_message_and_opens_nothing(secured: FlaskClient) -> None:
    response = login(secured, "guess")
    assert response.status_code == 401
    assert "That is not the admin token." in response.text
    assert "Set-Cookie" not in response.headers
    assert secured.get("/reports/clicks").status_code == 401


def test_the_cookie_is_only_for_this_site_and_holds_no_secret(secured: FlaskClient) -> None:
    cookie = login(secured).headers["Set-Cookie"]
    assert "secret" not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    over_tls = secured.post("/", data={"token": "secret"}, base_url="https://localhost")
    assert "Secure" in over_tls.headers["Set-Cookie"].split("; ")


@pytest.mark.parametrize("path", ["/", "/?website=site1.com"])
def test_after_too_many_guesses_the_page_says_when_to_try_again(
    secured: FlaskClient, path: str
) -> None:
    for _ in range(MAX_GUESSES):
        assert login(secured, "guess").status_code == 401
    refused = login(secured, path=path)
    assert refused.status_code == 429
    assert f"in {refused.headers['Retry-After']} seconds" in refused.text
    assert "Set-Cookie" not in refused.headers
    bearing = secured.get(path, headers={"Authorization": "Bearer secret"})
    assert bearing.status_code == 429


def test_logins_are_logged_with_their_address_but_not_the_token(
    secured: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        login(secured, "hunter2")
        login(secured)
    assert caplog.messages == [
        "a wrong token or password from 127.0.0.1",
        "a login from 127.0.0.1",
    ]


def test_a_logout_ends_the_session_even_for_a_copy_of_its_cookie(secured: FlaskClient) -> None:
    login(secured)
    session = secured.get_cookie(sessions.COOKIE)
    assert session is not None
    assert secured.post("/logout").status_code == 303
    assert secured.get_cookie(sessions.COOKIE) is None
    secured.set_cookie(sessions.COOKIE, session.value)
    assert secured.get("/reports/clicks").status_code == 401


@pytest.mark.parametrize(
    "of_page",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    ],
)
def test_a_page_of_another_site_cannot_log_out_or_use_up_guesses(
    secured: FlaskClient, of_page: dict[str, str]
) -> None:
    login(secured)
    refused = secured.post("/logout", headers=of_page)
    assert refused.status_code == 403
    assert "Set-Cookie" not in refused.headers
    for _ in range(2 * guesses.MAX_GUESSES):
        assert secured.post("/", data={"token": "wrong"}, headers=of_page).status_code == 403
    login(secured)
    assert secured.get("/reports/clicks").status_code == 200


@pytest.mark.parametrize(
    "of_page", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}]
)
def test_the_dashboard_itself_can_log_out(secured: FlaskClient, of_page: dict[str, str]) -> None:
    login(secured)
    assert secured.post("/logout", headers=of_page).status_code == 303
    assert secured.get("/reports/clicks").status_code == 401


def test_a_logout_that_cannot_be_stored_is_refused(secured: FlaskClient, redis: Server) -> None:
    login(secured)
    redis.kill()
    try:
        refused = secured.post("/logout")
    finally:
        redis.start()
    assert refused.status_code == 503
    assert "Set-Cookie" not in refused.headers


@pytest.mark.parametrize("path", ["/", "/static/dashboard/main.js", "/static/uplot/uPlot.min.css"])
def test_a_page_runs_only_scripts_from_its_own_files(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert "unsafe" not in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/static/../context.py", "/static/%2e%2e/context.py", "/static/"])
def test_no_other_file_is_served(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404

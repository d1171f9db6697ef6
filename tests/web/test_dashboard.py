import time

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.web import context
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
    assert "dashboard.js" in response.text
    assert "Log out" not in response.text


def test_without_a_token_it_answers_nowhere_else(client: FlaskClient) -> None:
    response = client.get("/", environ_base=AWAY)
    assert response.status_code == 403
    assert "ADMIN_TOKEN" in response.text
    assert "dashboard.js" not in response.text


def test_with_a_token_it_asks_for_it(secured: FlaskClient) -> None:
    response = secured.get("/")
    assert response.status_code == 401
    assert 'name="token"' in response.text
    assert "dashboard.js" not in response.text


def test_a_login_opens_all_that_the_page_reads(secured: FlaskClient) -> None:
    response = login(secured, path="/?website=site1.com")
    assert response.status_code == 303
    assert response.headers["Location"] == "/?website=site1.com"
    assert "Log out" in secured.get("/").text
    for path in ("/reports/clicks", "/dead-letters", "/live/snapshot"):
        assert secured.get(path, environ_base=AWAY).status_code == 200


def test_a_wrong_token_is_told_and_opens_nothing(secured: FlaskClient) -> None:
    response = login(secured, "guess")
    assert response.status_code == 401
    assert "That is not the admin token." in response.text
    assert "Set-Cookie" not in response.headers
    assert secured.get("/reports/clicks").status_code == 401


def test_the_cookie_is_for_this_site_alone_and_holds_no_secret(secured: FlaskClient) -> None:
    cookie = login(secured).headers["Set-Cookie"]
    assert "secret" not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    over_tls = secured.post("/", data={"token": "secret"}, base_url="https://localhost")
    assert "Secure" in over_tls.headers["Set-Cookie"].split("; ")


NOW = int(time.time())


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="nothing"),
        pytest.param("secret", id="the token"),
        pytest.param(context.session("another", NOW + 9_999), id="of another token"),
        pytest.param(context.session("secret", NOW - 1), id="ended"),
        pytest.param(context.session("secret", NOW + 9_999).replace(".", "0."), id="prolonged"),
        pytest.param(f"{'9' * 1000}.x", id="long"),
        pytest.param("²³.x", id="no number"),
    ],
)
def test_a_session_that_is_none_opens_nothing(secured: FlaskClient, value: str) -> None:
    secured.set_cookie(context.SESSION_COOKIE, value)
    assert secured.get("/reports/clicks").status_code == 401


def test_a_page_of_another_port_can_not_use_the_session(secured: FlaskClient) -> None:
    login(secured)
    for origin, status in (("http://localhost:8080", 401), ("http://localhost", 202)):
        response = secured.post("/dead-letters/replay", headers={"Origin": origin})
        assert response.status_code == status


def test_a_logout_ends_the_session(secured: FlaskClient) -> None:
    login(secured)
    assert secured.post("/logout").status_code == 303
    assert secured.get("/reports/clicks").status_code == 401


@pytest.mark.parametrize("path", ["/", "/static/dashboard.js", "/static/uplot/uPlot.min.css"])
def test_a_page_runs_no_script_but_those_of_its_own_files(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/static/../context.py", "/static/%2e%2e/context.py", "/static/"])
def test_no_other_file_is_served(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404

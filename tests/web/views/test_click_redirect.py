import signal
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.domain.click_links import signature
from app.domain.events import AdClick
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from tests.support.servers import Server
from tests.web.conftest import MakeClient
from tests.web.views.test_events import journalled
from tests.web.views.test_metrics import scrape, value

SECRET = "a secret of the operator"
TO = "https://shop.example/shoes?size=42"


@pytest.fixture
def client(client_with: MakeClient) -> FlaskClient:
    return client_with(click_secret=SECRET)


def link(to: str = TO, url: str = "site1.com/a", ad: str = "34", **more: str) -> dict[str, str]:
    """The query of a signed link, for user u1."""
    fixed = {"to": to, "url": url, "ad": ad}
    signed = {name: text for name, text in fixed.items() if text}
    return signed | {"sig": signature(SECRET, **fixed), "user": "u1"} | more


def click(client: FlaskClient, query: dict[str, str], **more: Any) -> TestResponse:
    return client.get("/click", query_string=query, **more)


def leads_on(response: TestResponse, to: str = TO) -> bool:
    return (response.status_code, response.headers.get("Location")) == (302, to)


def test_a_signed_link_is_a_click_and_leads_on(client: FlaskClient, journal: RedisJournal) -> None:
    response = click(client, link(id="e1"))
    assert leads_on(response)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    (event,) = journalled(journal, "ad_click", AdClick)
    assert (event.website, event.ad_id, event.user_id) == ("site1.com", "34", "u1")
    assert event.event_id == "e1"


def test_the_referer_is_the_page_if_the_link_names_none(
    client: FlaskClient, journal: RedisJournal
) -> None:
    assert leads_on(click(client, link(url=""), headers={"Referer": "https://site2.com/b"}))
    (event,) = journalled(journal, "ad_click", AdClick)
    assert event.website == "site2.com"


def test_without_a_secret_there_are_no_links(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    response = click(client_with(), link())
    assert (response.status_code, "Location" in response.headers) == (404, False)
    assert sum(journal.waiting().values()) == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"to": "https://evil.example/"}, "sig"),
        ({"to": TO + "&x"}, "sig"),
        ({"url": "site2.com/a"}, "sig"),
        ({"ad": "35"}, "sig"),
        ({"sig": "0" * 64}, "sig"),
        ({"sig": ""}, "sig"),
        ({"sig": "é\0"}, "sig"),
        ({"ad": "34\n"}, "sig"),
        ({"sig": None}, "sig"),
        ({"to": None}, "to"),
    ],
)
def test_an_unsigned_link_leads_nowhere_and_is_not_a_click(
    client: FlaskClient, journal: RedisJournal, changes: Any, field: str
) -> None:
    query = {name: text for name, text in (link() | changes).items() if text is not None}
    response = click(client, query)
    assert (response.status_code, "Location" in response.headers) == (400, False)
    assert response.json
    assert list(response.json["errors"]) == [field]
    assert sum(journal.waiting().values()) == 0


def test_a_second_target_is_never_followed(client: FlaskClient) -> None:
    signed = [*link().items(), ("to", "https://evil.example/")]
    assert leads_on(client.get("/click", query_string=signed))
    first = [("to", "https://evil.example/"), *link().items()]
    assert client.get("/click", query_string=first).status_code == 400


@pytest.mark.parametrize("to", ["javascript:alert(1)", "//evil.example", "ftp://a.com", "/a", "x"])
def test_even_a_signed_link_leads_only_to_http_and_https(client: FlaskClient, to: str) -> None:
    response = click(client, link(to))
    assert (response.status_code, "Location" in response.headers) == (400, False)
    assert response.json
    assert list(response.json["errors"]) == ["to"]


def test_the_user_is_redirected_even_if_the_event_is_bad(
    client: FlaskClient, journal: RedisJournal
) -> None:
    assert leads_on(click(client, link(user="")))
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert letter.reason == {"Meta": {"UserId": ["Missing data for required field."]}}


def test_without_a_broker_the_user_is_redirected_and_the_event_counted_as_lost(
    client: FlaskClient, journal: RedisJournal, redis: Server
) -> None:
    redis.kill()
    try:
        assert leads_on(click(client, link()))
    finally:
        redis.start()
    samples = scrape(client)
    assert value(samples, "events_lost_total", path="click") == 1
    assert value(samples, "requests_unavailable_total", part="broker") == 0
    assert sum(journal.waiting().values()) == 0


def test_the_user_is_redirected_while_the_broker_hangs(client: FlaskClient, redis: Server) -> None:
    redis.signal(signal.SIGSTOP)
    try:
        assert leads_on(click(client, link()))
    finally:
        redis.signal(signal.SIGCONT)


def test_the_user_is_redirected_without_a_write_key(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(click_secret=SECRET, write_keys={"k1": frozenset()})
    assert leads_on(click(client, link()))
    assert sum(journal.waiting().values()) == 0
    assert value(scrape(client), "events_lost_total", path="click") == 1
    assert leads_on(click(client, link(key="k1")))
    assert len(journalled(journal, "ad_click", AdClick)) == 1


def test_the_user_is_redirected_beyond_the_rate_limit(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(click_secret=SECRET, rate_limit="1/hour")
    assert leads_on(click(client, link()))
    assert leads_on(click(client, link()))
    assert click(client, link(ad="1") | {"ad": "2"}).status_code == 429
    assert len(journalled(journal, "ad_click", AdClick)) == 1
    assert value(scrape(client), "events_lost_total", path="click") == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-GPC": "1"},
        {"DNT": "1"},
        {"Sec-Purpose": "prefetch;anonymous-client-ip"},
        {"Purpose": "prefetch"},
        {"X-Purpose": "preview"},
        {"X-Moz": "prefetch"},
    ],
)
def test_do_not_track_and_prefetch_requests_are_redirected_uncounted(
    client: FlaskClient, journal: RedisJournal, headers: dict[str, str]
) -> None:
    assert leads_on(click(client, link(), headers=headers))
    assert sum(journal.waiting().values()) == 0


def test_a_head_request_is_not_a_click(client: FlaskClient, journal: RedisJournal) -> None:
    assert leads_on(client.head("/click", query_string=link()))
    assert sum(journal.waiting().values()) == 0

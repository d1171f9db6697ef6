import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.domain.events import AdClick, AdImpression, PageView
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from app.web.views.pixel import GIF
from tests.support.servers import Server
from tests.web.conftest import MakeClient
from tests.web.views.test_events import journalled
from tests.web.views.test_metrics import scrape, value

AD = {"url": "site1.com/a", "user": "u1", "ad": "34"}


def pixel(client: FlaskClient, status: int = 200, /, headers: Any = None, **query: str) -> None:
    response: TestResponse = client.get("/pixel.gif", query_string=query, headers=headers)
    assert (response.status_code, response.data) == (status, GIF)
    assert response.content_type == "image/gif"
    assert response.headers["Cache-Control"] == "no-store"


def test_the_pixels_query_is_an_event(client: FlaskClient, journal: RedisJournal) -> None:
    pixel(client, type="PageView", url="https://www.site1.com/page1?x=1", id="e1")
    pixel(client, type="adImpression", **AD)
    pixel(client, type="AdClick", **AD)
    (view,) = journalled(journal, "page_view", PageView)
    assert (view.website, view.page, view.event_id) == ("site1.com", "/page1", "e1")
    (impression,) = journalled(journal, "ad_impression", AdImpression)
    assert (impression.website, impression.ad_id, impression.user_id) == ("site1.com", "34", "u1")
    assert len(journalled(journal, "ad_click", AdClick)) == 1


def test_without_a_url_the_page_is_the_referer(client: FlaskClient, journal: RedisJournal) -> None:
    pixel(client, type="PageView", headers={"Referer": "https://site2.com/b"})
    (view,) = journalled(journal, "page_view", PageView)
    assert (view.website, view.page) == ("site2.com", "/b")


@pytest.mark.parametrize(
    ("query", "kept", "errors"),
    [
        ({}, {"Meta": {"UserId": None, "AdId": None}}, {"Type", "Url"}),
        ({"type": "AdClick", **AD, "user": ""}, None, {"Meta"}),
        ({"type": "PageView", "url": "ftp://a.com"}, None, {"Url"}),
        ({"type": "PageView", "url": "a.com", "id": "x" * 129}, None, {"EventId"}),
    ],
)
def test_a_bad_event_gets_the_image_and_becomes_a_dead_letter(
    client: FlaskClient, journal: RedisJournal, query: Any, kept: Any, errors: set[str]
) -> None:
    pixel(client, **query)
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert isinstance(letter.reason, dict)
    assert set(letter.reason) == errors
    if kept:
        assert json.loads(bytes(letter.event)) == kept
    assert sum(journal.waiting().values()) == 0


def test_a_write_key_is_required(client_with: MakeClient, journal: RedisJournal) -> None:
    client = client_with(write_keys={"k1": frozenset()})
    pixel(client, 401, type="PageView", url="a.com")
    pixel(client, 401, type="PageView", url="a.com", key="k2")
    pixel(client, type="PageView", url="a.com", key="k1")
    assert len(journalled(journal, "page_view", PageView)) == 1
    assert value(scrape(client), "events_lost_total", path="pixel") == 2


def test_only_pages_of_allowed_origins_may_load_it(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(allowed_origins=("https://a.com",))
    for referer in ("https://a.com.evil.com/", "http://a.com/"):
        pixel(client, 403, type="PageView", headers={"Referer": referer})
    pixel(client, type="PageView", headers={"Referer": "https://a.com/x"})
    pixel(client, type="PageView", url="https://a.com/y")
    pages = {view.page for view in journalled(journal, "page_view", PageView)}
    assert pages == {"/x", "/y"}


def test_beyond_the_rate_limit_the_image_is_sent_and_the_event_counted_as_lost(
    client_with: MakeClient,
) -> None:
    client = client_with(rate_limit="1/hour")
    pixel(client, type="PageView", url="a.com")
    pixel(client, 429, type="PageView", url="a.com")
    assert value(scrape(client), "events_lost_total", path="pixel") == 1


def test_without_a_broker_the_image_is_sent_and_the_event_counted_as_lost(
    client: FlaskClient, journal: RedisJournal, redis: Server
) -> None:
    redis.kill()
    try:
        pixel(client, 503, type="PageView", url="a.com")
    finally:
        redis.start()
    samples = scrape(client)
    assert value(samples, "events_lost_total", path="pixel") == 1
    assert value(samples, "requests_unavailable_total", part="broker") == 1
    assert journalled(journal, "page_view", PageView) == []


@pytest.mark.parametrize("signal", ["Sec-GPC", "DNT"])
def test_do_not_track_allows_only_page_views_without_a_user(
    client: FlaskClient, journal: RedisJournal, signal: str
) -> None:
    for kind in ("AdImpression", "AdClick", "nonsense"):
        pixel(client, type=kind, headers={signal: "1"}, **AD)
    pixel(client, type="pageview", headers={signal: "1"}, **AD)
    # A bad event is kept as it was accepted: without the user.
    pixel(client, type="PageView", headers={signal: "1"}, user="u1", url="ftp://a.com")
    assert sum(journal.waiting().values()) == 1
    assert len(journalled(journal, "page_view", PageView)) == 1
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert b"u1" not in bytes(letter.event)
    pixel(client, type="AdClick", headers={signal: "0"}, **AD)
    assert len(journalled(journal, "ad_click", AdClick)) == 1


def test_a_head_request_is_not_an_event(client: FlaskClient, journal: RedisJournal) -> None:
    response = client.head("/pixel.gif", query_string={"type": "PageView", "url": "a.com"})
    assert (response.status_code, response.content_type) == (200, "image/gif")
    assert sum(journal.waiting().values()) == 0


def test_a_key_for_one_website_cannot_write_for_others(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(write_keys={"k1": frozenset({"a.com"})})
    for page in ("a.com/x", "b.com/y"):
        pixel(client, type="PageView", url=page, key="k1")
    assert [view.page for view in journalled(journal, "page_view", PageView)] == ["/x"]
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert letter.reason == {"Url": ["This key may not write for b.com."]}


def test_a_robots_request_is_marked_as_invalid_traffic(
    client: FlaskClient, journal: RedisJournal
) -> None:
    pixel(client, type="PageView", url="a.com", headers={"User-Agent": "Googlebot/2.1"})
    (view,) = journalled(journal, "page_view", PageView)
    assert view.invalid.reason == "robot"

from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.domain.events import OTHER, Actual, AdClick, PageView
from app.journal.redis_journal import RedisJournal
from app.redis.known_names import LOADED_KEY
from tests.web.conftest import MakeClient
from tests.web.views.test_events import journalled, post
from tests.web.views.test_metrics import scrape, value


@pytest.fixture(autouse=True)
def _loaded(journal: RedisJournal) -> None:
    journal.redis.set(LOADED_KEY, 1)


def view(url: str) -> dict[str, Any]:
    return {"Type": "PageView", "Url": url}


def post_from(address: str, client: FlaskClient, *urls: str, **headers: str) -> Any:
    """The answer to views of these pages that are posted from an address."""
    peer = {"REMOTE_ADDR": address}
    response: TestResponse = post(
        client, [view(url) for url in urls], environ_overrides=peer, headers=headers
    )
    assert response.status_code == 202
    return response.json


def test_events_beyond_a_budget_are_accepted_and_reported_in_answer_and_metric(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(max_websites=1, max_pages=2)
    urls = ["a.com/1", "a.com/2", "a.com/3", "b.com/1", "b.com/2"]
    answered = post_from("192.0.2.1", client, *urls)
    assert answered == {"accepted": 5, "rejected": [], "other": 3}
    kept = [(event.website, event.page, event.actual) for event in views(journal)]
    assert kept == [
        ("a.com", "/1", None),
        ("a.com", "/2", None),
        ("a.com", OTHER, Actual("a.com", "/3")),
        (OTHER, OTHER, Actual("b.com", "/1")),
        (OTHER, OTHER, Actual("b.com", "/2")),
    ]
    samples = scrape(client)
    numbers = {
        kind: value(samples, "events_other_total", kind=kind) for kind in ("website", "page", "ad")
    }
    assert numbers == {"website": 2, "page": 1, "ad": 0}


def views(journal: RedisJournal) -> list[PageView]:
    return journalled(journal, "page_view", PageView)


def test_an_answer_mentions_no_other_events_if_there_are_none(client: FlaskClient) -> None:
    assert post_from("192.0.2.1", client, "a.com/1") == {"accepted": 1, "rejected": []}


def test_a_sender_is_an_ipv4_address_or_an_ipv6_network(client_with: MakeClient) -> None:
    client = client_with(max_pages=1)
    assert "other" not in post_from("192.0.2.1", client, "a.com/1")
    assert "other" not in post_from("192.0.2.2", client, "a.com/2")
    assert post_from("::ffff:192.0.2.2", client, "a.com/3")["other"] == 1
    assert "other" not in post_from("2001:db8::1", client, "a.com/4")
    assert post_from("2001:db8::2", client, "a.com/5")["other"] == 1


def test_a_sender_is_its_write_key_wherever_it_posts_from(client_with: MakeClient) -> None:
    client = client_with(max_pages=1, write_keys={"k1": frozenset(), "k2": frozenset()})
    assert "other" not in post_from("192.0.2.1", client, "a.com/1", X_Write_Key="k1")
    assert post_from("192.0.2.2", client, "a.com/2", X_Write_Key="k1")["other"] == 1
    assert "other" not in post_from("192.0.2.2", client, "a.com/2", X_Write_Key="k2")


def test_an_unknown_key_is_not_a_sender_of_its_own(client_with: MakeClient) -> None:
    client = client_with(max_pages=1)
    post_from("192.0.2.1", client, "a.com/1", X_Write_Key="made up")
    assert post_from("192.0.2.1", client, "a.com/2", X_Write_Key="another")["other"] == 1


@pytest.mark.parametrize(
    ("changes", "headers", "limited"),
    [
        ({}, {}, False),
        ({}, {"Origin": "http://localhost:8100"}, False),
        ({}, {"Origin": "https://evil.example"}, True),
        ({"trusted_proxies": 1}, {"X-Forwarded-For": "127.0.0.1"}, True),
    ],
)
def test_this_machine_itself_has_no_budget(
    client_with: MakeClient, changes: Any, headers: dict[str, str], limited: bool
) -> None:
    client = client_with(max_pages=0, **changes)
    assert ("other" in post(client, view("a.com/1"), headers=headers).json) is limited


def test_pixels_have_the_same_budget(client_with: MakeClient, journal: RedisJournal) -> None:
    client = client_with(max_ads=0)
    asked = {"type": "AdClick", "url": "a.com", "user": "u1", "ad": "34"}
    client.get("/pixel.gif", query_string=asked, environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
    (click,) = journalled(journal, "ad_click", AdClick)
    assert (click.ad_id, click.actual) == (OTHER, Actual("a.com", "34"))


def test_events_that_redis_cannot_decide_on_are_not_accepted(
    client: FlaskClient, journal: RedisJournal
) -> None:
    journal.redis.config_set("maxmemory", 1)
    try:
        assert post(client, view("a.com/1")).status_code == 503
    finally:
        journal.redis.config_set("maxmemory", 0)
    assert sum(journal.waiting().values()) == 0

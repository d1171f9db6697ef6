from typing import Any

import pytest
from flask.testing import FlaskClient

from app.journal.redis_journal import RedisJournal
from tests.support.servers import Server
from tests.web.conftest import MakeClient
from tests.web.views.test_events import VIEW, post


def status(client: FlaskClient, events: int = 1, address: str = "192.0.2.7") -> Any:
    body = [VIEW] * events
    return post(client, body, environ_overrides={"REMOTE_ADDR": address}).status_code


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("192.0.2.7", "192.0.2.7:4711", True),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "[2001:db8::2]:4711", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_a_sender_is_a_network_however_its_address_is_written(
    client_with: MakeClient, first: str, second: str, is_same: bool
) -> None:
    client = client_with(rate_limit="1/hour")
    assert status(client, address=first) == 202
    assert status(client, address=second) == (429 if is_same else 202)


@pytest.mark.parametrize(("events", "weight"), [(1, 1), (100, 1), (101, 2), (900, 9), (1_000, 10)])
def test_a_request_counts_once_per_hundred_events_or_part_of_it(
    client_with: MakeClient, events: int, weight: int
) -> None:
    client = client_with(rate_limit="10/hour")
    statuses = [status(client, events)] + [status(client) for _ in range(10 - weight + 1)]
    assert statuses == [202] * (10 - weight + 1) + [429]


def test_a_request_larger_than_the_remaining_limit_is_refused_whole(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(rate_limit="4/hour")
    assert status(client) == 202
    refused = post(client, [VIEW] * 400, environ_overrides={"REMOTE_ADDR": "192.0.2.7"})
    assert refused.status_code == 429
    assert refused.json == {"error": "Too many requests. Try again later."}
    assert 0 < int(refused.headers["Retry-After"]) <= 3_600
    assert len(journal.redis.hvals("journal:page_view")) == 1
    # It counted as one request, so the rest of the limit is still there.
    assert [status(client, 200), status(client)] == [202, 429]


def test_a_request_larger_than_the_whole_limit_passes_if_it_comes_first(
    client_with: MakeClient,
) -> None:
    for rate in ("1/hour", "3/hour"):
        client = client_with(rate_limit=rate)
        address = f"192.0.2.{rate[0]}"
        assert [status(client, 5_000, address), status(client, 1, address)] == [202, 429]


def test_each_of_several_limits_applies(client_with: MakeClient) -> None:
    client = client_with(rate_limit="9/hour;4/day")
    assert [status(client, events) for events in (201, 200, 1)] == [202, 429, 429]


def test_an_unavailable_redis_is_reported_instead_of_the_rate_limit(
    client_with: MakeClient, redis: Server
) -> None:
    client = client_with(rate_limit="100/hour")
    redis.kill()
    try:
        assert status(client, 200) == 503, "it says that the broker is unavailable"
    finally:
        redis.start()

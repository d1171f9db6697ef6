"""Whatever a client sends, the server has no internal error and keeps nothing invalid."""

import itertools
import json
import zlib
from typing import Any, cast

import msgspec
import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.events import QUEUES
from app.domain.urls import website_and_page
from app.journal.redis_journal import RedisJournal
from app.web.views.events import MAX_UNPACKED_BYTES

VIEW = {"Type": "PageView", "Url": "site1.com/a", "Meta": {"UserId": "u", "AdId": "1"}}
NASTY = [
    {"$gt": ""},
    {"$where": "sleep(1000)"},
    ["$ne", None],
    "$where",
    "a.b.$c",
    "\0",
    "\u202e\ufeff",
    "<script>alert(1)</script>",
    "'; DROP TABLE events; --",
    "=cmd|' /C calc'!A0",
    "x" * 1_000_000,
    "é" * 129,
    -1,
    0,
    2**63,
    10**200,
    1e308,
    1.5,
    True,
    None,
    [],
    {},
    [[[[[[]]]]]],
]


def check(response: Any, journal: RedisJournal) -> None:
    assert response.status_code in (202, 400, 413, 415)
    assert "Traceback" not in response.text
    answer = response.get_json()
    assert ("error" in answer) != ("accepted" in answer)
    for queue, kind in QUEUES.items():
        for payload in cast(list[bytes], journal.redis.hvals(f"journal:{queue}")):
            for event in msgspec.json.decode(payload, type=list[kind]):  # type: ignore[valid-type]
                kept = cast(Any, event)
                page = getattr(kept, "page", "/")
                assert website_and_page(kept.website + page) == (kept.website, page)
                for name in ("event_id", "ad_id", "user_id"):
                    text = getattr(kept, name, None)
                    assert text is None or 1 <= len(text) <= 128


@pytest.mark.parametrize(
    "field", ["Type", "Url", "Meta", "UserId", "AdId", "EventId", "Timestamp", "$set", "a.b", ""]
)
def test_no_field_value_does_harm(client: FlaskClient, journal: RedisJournal, field: str) -> None:
    for value, kind in itertools.product(NASTY, ("PageView", "AdImpression", "AdClick")):
        event: dict[str, Any] = VIEW | {"Type": kind}
        if field in ("UserId", "AdId"):
            event["Meta"] = {"UserId": "u", "AdId": "1"} | {field: value}
        else:
            event[field] = value
        check(client.post("/events", data=json.dumps(event), content_type="text/plain"), journal)


@settings(max_examples=150)
@given(body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_do_harm(client: FlaskClient, journal: RedisJournal, body: bytes) -> None:
    for media in ("application/json", "application/x-ndjson"):
        for encoding in ("identity", "gzip"):
            response = client.post(
                "/events",
                data=body,
                content_type=media,
                headers={"Content-Encoding": encoding},
            )
            check(response, journal)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)
events = st.fixed_dictionaries(
    {"Type": st.sampled_from(["PageView", "AdImpression", "AdClick"]) | json_values},
    optional={
        "Url": st.text(max_size=40).map("http://a.com/".__add__) | json_values,
        "Meta": st.fixed_dictionaries({}, optional={"UserId": json_values, "AdId": json_values}),
        "EventId": json_values,
        "Timestamp": json_values,
    },
)


@settings(max_examples=150)
@given(batch=st.lists(events | json_values, max_size=5))
def test_no_json_does_harm(client: FlaskClient, journal: RedisJournal, batch: list[Any]) -> None:
    check(client.post("/events", json=batch), journal)


@settings(max_examples=150)
@given(
    path=st.sampled_from(["page-views", "page-views/daily", "impressions", "clicks"]),
    query=st.dictionaries(
        st.sampled_from(
            ["website", "page", "from", "to", "month", "ad_id", "limit", "cursor", "format"]
        ),
        st.text(max_size=20) | st.sampled_from(["2026-11-01", "9999-12-31", "5", "csv", "*"]),
    ),
)
def test_no_report_query_does_harm(client: FlaskClient, path: str, query: dict[str, str]) -> None:
    response = client.get(f"/reports/{path}", query_string=query)
    assert response.status_code in (200, 400)
    assert "Traceback" not in response.text


def test_a_string_of_ten_megabytes_is_too_large(client: FlaskClient) -> None:
    body = json.dumps(VIEW | {"Url": "x" * 10_000_000})
    assert client.post("/events", data=body, content_type="text/plain").status_code == 413


def test_a_gzip_bomb_is_not_unpacked_beyond_the_limit(client: FlaskClient) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    megabyte = b"\0" * 2**20
    bomb = b"".join(packer.compress(megabyte) for _ in range(100)) + packer.flush()
    assert len(bomb) < 2 * 2**20 < MAX_UNPACKED_BYTES
    response = client.post(
        "/events",
        data=bomb,
        content_type="application/json",
        headers={"Content-Encoding": "gzip"},
    )
    assert response.status_code == 413

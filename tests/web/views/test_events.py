import gzip
import json
import logging
from functools import partial
from typing import Any, cast

import msgspec
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.domain.bodies import MAX_BODY_BYTES
from app.domain.events import AdClick, PageView
from app.domain.user_ids import UserHash
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from app.web.sockets.places import Room
from app.web.views import events
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.web.conftest import MakeClient

VIEW = {"Type": "PageView", "Url": "site1.com/page1", "Meta": {"UserId": "u1", "AdId": "34"}}
SECRET = "a secret of some length"
CLICK = {"Type": "AdClick", "Url": "site1.com/page1", "Meta": {"UserId": "u1", "AdId": "34"}}


def post(client: FlaskClient, body: Any, media: str = "application/json", **more: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body)
    response: TestResponse = client.post("/events", data=data, content_type=media, **more)
    return response


def journalled(journal: RedisJournal, queue: str, kind: Any) -> list[Any]:
    payloads: list[bytes] = journal.redis.hvals(f"journal:{queue}")  # type: ignore[assignment]
    return [
        event for payload in payloads for event in msgspec.json.decode(payload, type=list[kind])
    ]


def test_an_event_is_accepted_into_the_journal(client: FlaskClient, journal: RedisJournal) -> None:
    response = post(client, VIEW)
    assert (response.status_code, response.json) == (202, {"accepted": 1, "rejected": []})
    (event,) = journalled(journal, "page_view", PageView)
    assert (event.website, event.page) == ("site1.com", "/page1")


def test_each_kind_goes_to_the_queue_of_its_task(
    client: FlaskClient, journal: RedisJournal
) -> None:
    kinds = {"PageView": "page_view", "AdImpression": "ad_impression", "AdClick": "ad_click"}
    assert post(client, [VIEW | {"Type": kind} for kind in kinds]).json["accepted"] == 3

    for queue in kinds.values():
        wait_until(partial(is_rung_for, journal, queue))  # the message is sent after the answer


def is_rung_for(journal: RedisJournal, queue: str) -> bool:
    """Whether the queue has a message for the one batch in its journal."""
    (batch_id,) = cast(list[bytes], journal.redis.hkeys(f"journal:{queue}"))
    messages = cast(list[bytes], journal.redis.lrange(queue, 0, -1))
    headers = [json.loads(message)["headers"] for message in messages]
    rung = [(header["task"], header["id"]) for header in headers]
    return (f"tasks.{queue}", batch_id.decode()) in rung


@pytest.mark.parametrize(
    "media", ["application/json", "text/plain", "text/plain;charset=UTF-8", "Application/JSON"]
)
def test_json_is_accepted_under_its_own_media_type_and_as_plain_text(
    client: FlaskClient, media: str
) -> None:
    assert post(client, [VIEW, CLICK], media).json == {"accepted": 2, "rejected": []}


def test_each_line_of_ndjson_is_an_event(client: FlaskClient, journal: RedisJournal) -> None:
    body = b"\n".join([json.dumps(VIEW).encode(), b"", json.dumps(CLICK).encode() + b"\r", b""])
    assert post(client, body, "application/x-ndjson").json == {"accepted": 2, "rejected": []}
    assert len(journalled(journal, "ad_click", AdClick)) == 1


def test_only_the_bad_lines_of_ndjson_are_rejected(client: FlaskClient) -> None:
    body = json.dumps(VIEW).encode() + b"\n{\n\xff\n"
    assert post(client, body, "application/x-ndjson").json == {
        "accepted": 1,
        "rejected": [
            {"index": 1, "errors": {"_schema": ["Not a JSON object."]}},
            {"index": 2, "errors": {"_schema": ["Not a JSON object."]}},
        ],
    }


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "X-GZip"])
def test_gzip_is_unpacked(client: FlaskClient, encoding: str) -> None:
    body = gzip.compress(json.dumps([VIEW] * 100).encode())
    assert post(client, body, headers={"Content-Encoding": encoding}).json["accepted"] == 100


def test_several_gzip_members_make_up_one_body(client: FlaskClient) -> None:
    line = gzip.compress(json.dumps(VIEW).encode() + b"\n", mtime=0)
    rest = gzip.compress(b"\n", mtime=0) + gzip.compress(b"", mtime=0)
    long = gzip.compress(json.dumps(VIEW | {"X": "x" * 3 * events.PIECE_BYTES}).encode() + b"\n")
    body = line * 2 + rest + long + line * 97
    response = post(client, body, "application/x-ndjson", headers={"Content-Encoding": "gzip"})
    assert response.json == {"accepted": 100, "rejected": []}


def test_the_number_of_gzip_members_is_limited(client: FlaskClient) -> None:
    line = gzip.compress(json.dumps(VIEW).encode() + b"\n", mtime=0)
    empty = gzip.compress(b"", mtime=0)
    for number, status in ((events.MAX_MEMBERS - 1, 202), (events.MAX_MEMBERS, 400)):
        body = line + empty * number
        response = post(client, body, "application/x-ndjson", headers={"Content-Encoding": "gzip"})
        assert response.status_code == status


def test_good_events_of_a_batch_are_accepted_and_bad_ones_named_and_kept(
    client: FlaskClient, journal: RedisJournal
) -> None:
    bad = {"Type": "AdClick", "Url": "site1.com", "Meta": {"AdId": 1}}
    response = post(client, [VIEW, bad])
    errors = {"Meta": {"UserId": ["Missing data for required field."]}}
    assert response.status_code == 202
    assert response.json == {"accepted": 1, "rejected": [{"index": 1, "errors": errors}]}
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert (json.loads(bytes(letter.event)), letter.reason) == (bad, errors)


def test_a_request_without_any_good_event_is_a_bad_request(
    client: FlaskClient, journal: RedisJournal
) -> None:
    response = post(client, {"Type": "PageView"})
    assert response.status_code == 400
    assert response.json == {
        "accepted": 0,
        "rejected": [{"index": 0, "errors": {"Url": ["Missing data for required field."]}}],
    }
    assert sum(journal.waiting().values()) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"{'Type': 'PageView'}",
        b'{"Type": "\xff}',
        b"nan",
        b"[" * 100_000,
        json.dumps([VIEW] * 5_001).encode(),
    ],
)
def test_a_body_without_valid_json_or_with_no_or_too_many_events_is_refused(
    client: FlaskClient, journal: RedisJournal, body: bytes
) -> None:
    response = post(client, body)
    assert response.status_code == 400
    assert set(response.json) == {"error"}
    assert journal.redis.dbsize() == 0


@pytest.mark.parametrize("wrong", [rb'"cut \ud83d"', b'"caf\xe9"', b"NaN"])
def test_text_that_parsers_refuse_costs_at_most_its_own_event(
    client: FlaskClient, wrong: bytes
) -> None:
    view = json.dumps(VIEW).encode()
    in_no_field = view[:-1] + b',"Title":' + wrong + b"}"
    in_a_field = view[:-1] + b',"EventId":' + wrong + b"}"
    response = post(client, b"[" + b",".join([in_no_field, in_a_field, view]) + b"]")
    errors = {"EventId": ["Not a valid string."]}
    assert response.json == {"accepted": 2, "rejected": [{"index": 1, "errors": errors}]}
    (letter,) = client.get("/dead-letters").get_json()["items"]
    assert letter["reason"] == errors
    assert "page1" in letter["event"]

    assert post(client, in_no_field).status_code == 202
    alone = post(client, in_a_field)
    assert (alone.status_code, alone.json["rejected"][0]["errors"]) == (400, errors)


@pytest.mark.parametrize("depth", [500, 5_000, 500_000])
def test_deeply_nested_json_is_refused(client: FlaskClient, depth: int) -> None:
    for nested in (b"[" * depth + b"]" * depth, b'{"Meta":' * depth + b"1" + b"}" * depth):
        response = post(client, nested)
        assert response.status_code == (413 if len(nested) > MAX_BODY_BYTES else 400)
        assert response.json.get("accepted", 0) == 0


def test_too_many_lines_are_refused_before_they_are_read(client: FlaskClient) -> None:
    response = post(client, b"1\n" * 5_001, "application/x-ndjson")
    assert (response.status_code, set(response.json)) == (400, {"error"})


def test_the_maximum_number_of_events_is_accepted(
    client: FlaskClient, journal: RedisJournal
) -> None:
    assert post(client, [VIEW] * 5_000).json["accepted"] == 5_000
    assert len(journalled(journal, "page_view", PageView)) == 5_000


@pytest.mark.parametrize(
    "media", ["application/x-www-form-urlencoded", "application/xml", "multipart/form-data", ""]
)
def test_another_media_type_is_refused(client: FlaskClient, media: str) -> None:
    assert post(client, VIEW, media).status_code == 415


def test_another_content_encoding_is_refused(client: FlaskClient) -> None:
    assert post(client, VIEW, headers={"Content-Encoding": "br"}).status_code == 415


WHOLE = gzip.compress(b"[]", mtime=0)


@pytest.mark.parametrize(
    "packed", [b"", b"no gzip", WHOLE[:-4], WHOLE + b"x", WHOLE * 2, WHOLE + WHOLE[:-9]]
)
def test_a_broken_gzip_is_a_bad_request(client: FlaskClient, packed: bytes) -> None:
    response = post(client, packed, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, set(response.json)) == (400, {"error"})


def test_a_body_over_the_limit_is_too_large(client: FlaskClient) -> None:
    bound = 2 * 1024 * 1024
    padding = " " * (bound - len(json.dumps(VIEW)))
    assert post(client, (json.dumps(VIEW) + padding).encode()).status_code == 202
    assert post(client, (json.dumps(VIEW) + padding + " ").encode()).status_code == 413


def test_a_body_without_room_gets_503_while_a_small_one_is_accepted(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(4_000)
    monkeypatch.setattr(events, "_room", room)
    body = gzip.compress(json.dumps(VIEW).encode().ljust(1_500))
    headers = {"Content-Encoding": "gzip"}
    with room.share("192.0.2.7") as other:
        assert other.grow(2_000)
        response = post(client, body, headers=headers)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert post(client, VIEW).status_code == 202
    for _ in range(3):
        assert post(client, body, headers=headers).status_code == 202


def test_gzip_that_unpacks_beyond_the_limit_is_too_large(client: FlaskClient) -> None:
    for size, status in ((events.MAX_UNPACKED_BYTES, 202), (events.MAX_UNPACKED_BYTES + 1, 413)):
        body = gzip.compress(json.dumps(VIEW).encode().ljust(size))
        response = post(client, body, headers={"Content-Encoding": "gzip"})
        assert response.status_code == status


def test_another_method_is_refused_with_a_json_error(client: FlaskClient) -> None:
    response = client.put("/events")
    assert response.status_code == 405
    assert set(response.get_json()) == {"error"}
    assert "POST" in response.headers["Allow"]


def test_without_a_broker_a_post_gets_503_and_nothing_is_accepted(
    client: FlaskClient, journal: RedisJournal, redis: Server
) -> None:
    redis.kill()
    response = post(client, VIEW)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert set(response.json) == {"error"}
    redis.start()
    assert sum(journal.waiting().values()) == 0
    assert post(client, VIEW).status_code == 202


def test_a_post_to_a_full_broker_gets_503(client: FlaskClient, journal: RedisJournal) -> None:
    journal.redis.config_set("maxmemory", 1)
    try:
        assert post(client, VIEW).status_code == 503
    finally:
        journal.redis.config_set("maxmemory", 0)


def test_events_are_accepted_while_the_database_is_unavailable(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(mongodb_url="mongodb://127.0.0.1:1/nowhere")
    assert post(client, VIEW).status_code == 202
    assert len(journalled(journal, "page_view", PageView)) == 1


def test_any_origin_may_post(client: FlaskClient) -> None:
    response = post(client, VIEW, headers={"Origin": "https://site1.com"})
    assert response.headers["Access-Control-Allow-Origin"] == "https://site1.com"
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert response.headers["Vary"] == "Origin"


def test_errors_can_be_read_by_the_page_that_caused_them(client: FlaskClient) -> None:
    response = post(client, b"{", headers={"Origin": "https://site1.com"})
    assert response.status_code == 400
    assert response.headers["Access-Control-Allow-Origin"] == "https://site1.com"


def test_a_preflight_is_answered(client: FlaskClient) -> None:
    response = client.options(
        "/events",
        headers={
            "Origin": "https://site1.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, x-write-key, content-encoding",
        },
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "https://site1.com"
    # A beacon with a JSON Blob is sent with credentials, whatever its page wants.
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    allowed = response.headers["Access-Control-Allow-Headers"].lower()
    assert {"content-type", "x-write-key", "content-encoding"} <= set(allowed.split(", "))


@pytest.mark.parametrize("media", [None, "application/octet-stream"])
def test_a_page_can_read_which_media_type_to_send(client: FlaskClient, media: str | None) -> None:
    response = client.post(
        "/events", data=b"{}", content_type=media, headers={"Origin": "https://site1.com"}
    )
    assert response.status_code == 415
    assert "application/json" in response.get_json()["error"]
    assert response.headers["Access-Control-Allow-Origin"] == "https://site1.com"


def test_only_listed_origins_may_post_if_any_are_listed(client_with: MakeClient) -> None:
    client = client_with(allowed_origins=("https://site1.com",))
    good = post(client, VIEW, headers={"Origin": "https://site1.com"})
    assert good.status_code == 202
    assert good.headers["Access-Control-Allow-Origin"] == "https://site1.com"
    bad = post(client, VIEW, headers={"Origin": "https://evil.com"})
    assert bad.status_code == 403
    assert "Access-Control-Allow-Origin" not in bad.headers
    assert post(client, VIEW).status_code == 202, "a server sends no origin"


def test_an_origin_may_be_an_ipv6_address(client_with: MakeClient) -> None:
    origin = "http://[2001:db8::1]:3000"
    client = client_with(allowed_origins=(origin,))
    answer = post(client, VIEW, headers={"Origin": origin})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (202, origin)
    for other in ("http://2:3000", "http://[2001:db8::2]:3000", f"{origin}0"):
        answer = post(client, VIEW, headers={"Origin": other})
        assert answer.status_code == 403
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_write_key_is_required_if_any_are_set(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(write_keys=dict.fromkeys(("first", "second"), frozenset()))
    for headers in ({}, {"X-Write-Key": "third"}, {"X-Write-Key": "é"}):
        refused = post(client, VIEW, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"]
    assert journal.redis.dbsize() == 0
    assert post(client, VIEW, headers={"X-Write-Key": "second"}).status_code == 202
    assert post(client, VIEW, query_string={"key": "first"}).status_code == 202


ONE_SITE = {"narrow": frozenset({"site1.com", "*.site3.com"}), "wide": frozenset[str]()}


def test_a_key_for_some_websites_cannot_write_for_others(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(write_keys=ONE_SITE)
    bad = VIEW | {"Url": 7}
    other = VIEW | {"Url": "WWW.Site2.com/a"}
    events = [other, VIEW, bad, other, VIEW | {"Url": "shop.site3.com"}]
    response = post(client, events, headers={"X-Write-Key": "narrow"})
    refused = {"Url": ["This key may not write for site2.com."]}
    assert response.status_code == 202
    assert response.json == {
        "accepted": 2,
        "rejected": [
            {"index": 0, "errors": refused},
            {"index": 2, "errors": {"Url": ["Not a valid string."]}},
            {"index": 3, "errors": refused},
        ],
    }
    letters = dead_letters.newest(journal.redis, 10)
    assert [letter.refused for letter in letters] == [True] * 3, (
        "the website of the second can't be determined"
    )
    assert (json.loads(bytes(letters[0].event)), letters[0].reason) == (other, refused)
    websites = [event.website for event in journalled(journal, "page_view", PageView)]
    assert websites == ["site1.com", "shop.site3.com"]
    assert post(client, other, headers={"X-Write-Key": "narrow"}).status_code == 400
    for event, kept_back in ((other, True), (VIEW, False)):
        # This error goes away with time.
        late = event | {"Timestamp": "2099-01-01T00:00:00Z"}
        assert post(client, late, headers={"X-Write-Key": "narrow"}).status_code == 400
        assert dead_letters.newest(journal.redis, 1)[0].refused is kept_back
    assert post(client, events, headers={"X-Write-Key": "wide"}).json["accepted"] == 4


def test_a_key_may_contain_non_ascii_characters(client_with: MakeClient) -> None:
    client = client_with(write_keys={"Schlüssel": frozenset({"site1.com"})})
    sent = {"X-Write-Key": "Schlüssel".encode().decode("latin-1")}
    assert post(client, VIEW, headers=sent).status_code == 202
    assert post(client, VIEW | {"Url": "site2.com"}, headers=sent).status_code == 400


def test_each_sender_gets_429_beyond_the_rate_limit(client_with: MakeClient) -> None:
    client = client_with(rate_limit="2/hour")
    assert [post(client, VIEW).status_code for _ in range(3)] == [202, 202, 429]
    refused = post(client, VIEW)
    assert int(refused.headers["Retry-After"]) > 0
    assert set(refused.json) == {"error"}
    other = post(client, VIEW, environ_overrides={"REMOTE_ADDR": "192.0.2.7"})
    assert other.status_code == 202


def test_made_up_write_keys_are_not_separate_senders(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(rate_limit="2/hour")
    statuses = [
        post(client, VIEW, headers={"X-Write-Key": f"made up {n}"}).status_code for n in range(3)
    ]
    assert statuses == [202, 202, 429]
    keyed = client_with(rate_limit="2/hour", write_keys=dict.fromkeys("ab", frozenset()))
    for key in ("a", "b"):
        for status in (202, 202, 429):
            assert post(keyed, VIEW, headers={"X-Write-Key": key}).status_code == status
    limits = cast(list[bytes], journal.redis.keys("LIMITS*"))
    assert len(limits) == 3


def test_a_senders_posts_and_pixels_share_one_rate_limit(client_with: MakeClient) -> None:
    client = client_with(rate_limit="1/hour")
    assert post(client, VIEW).status_code == 202
    told = client.get("/pixel.gif", query_string={"type": "PageView", "url": "a.com"})
    assert told.status_code == 429


def test_behind_proxies_the_sender_is_the_address_that_the_outermost_proxy_saw(
    client_with: MakeClient,
) -> None:
    client = client_with(rate_limit="1/hour", trusted_proxies=2)

    def status(forwarded: str) -> Any:
        return post(client, VIEW, headers={"X-Forwarded-For": forwarded}).status_code

    assert status("192.0.2.7, 198.51.100.1") == 202
    assert status("192.0.2.7, 198.51.100.2") == 429
    assert status("192.0.2.8, 198.51.100.1") == 202
    assert status("made up, 192.0.2.7, 198.51.100.1") == 429, "the client's own claim is ignored"


def test_without_proxies_the_sender_is_whoever_connects(client_with: MakeClient) -> None:
    client = client_with(rate_limit="1/hour")
    for address, status in (("192.0.2.7", 202), ("192.0.2.8", 429)):
        assert post(client, VIEW, headers={"X-Forwarded-For": address}).status_code == status


def test_preflights_are_not_limited(client_with: MakeClient) -> None:
    client = client_with(rate_limit="1/hour")
    for _ in range(3):
        assert client.options("/events", headers={"Origin": "https://a.com"}).status_code == 200
    assert post(client, VIEW).status_code == 202


def test_the_rate_limit_does_not_hide_that_the_broker_is_unavailable(
    client_with: MakeClient, redis: Server
) -> None:
    client = client_with(rate_limit="100/hour")
    redis.kill()
    try:
        assert post(client, VIEW).status_code == 503
    finally:
        redis.start()


def test_a_refused_request_is_logged_without_its_key_and_address(
    client_with: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_with(rate_limit="1/hour", write_keys={"a-write-key": frozenset()})
    caplog.set_level(logging.INFO)
    for status in (202, 429):
        posted = client.post("/events", json=VIEW, headers={"X-Write-Key": "a-write-key"})
        assert posted.status_code == status
    assert "127.0.0.1" not in caplog.text
    assert "a-write-key" not in caplog.text


def test_user_ids_are_hashed_before_they_are_stored_if_a_secret_is_set(
    client_with: MakeClient, journal: RedisJournal, caplog: pytest.LogCaptureFixture
) -> None:
    for secret, kept in ((None, "u1"), (SECRET, UserHash(SECRET)("u1", ""))):
        caplog.clear()
        client = client_with(user_hash_secret=secret)
        assert ("no USER_HASH_SECRET" in caplog.text) is (secret is None)
        journal.redis.flushall()
        assert post(client, CLICK).status_code == 202
        (event,) = journalled(journal, "ad_click", AdClick)
        assert event.user_id == kept

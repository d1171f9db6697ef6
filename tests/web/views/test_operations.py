import json
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest
from flask.testing import FlaskClient
from msgspec.structs import replace

from app.domain.events import OTHER, AdClick, Collision
from app.domain.invalid_traffic import Invalid
from app.domain.user_ids import UserHash
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from app.settings import Settings
from app.web.connections import SEND_BYTES, Socket
from app.web.views import operations
from app.web.worker import MAX_BUFFERED_BYTES
from tests.journal.test_opener import redis_with
from tests.support.servers import Server
from tests.web.conftest import MakeClient, gunicorn

OLD: dict[Any, Any] = {"reason": "{}", "event": '{"Type":"PageView","Url":"site1.com"}'}
BAD = {"Type": "AdClick", "Url": "site1.com"}
MISSING = "Missing data for required field."
NO_USER_AND_AD = f"Meta.UserId: {MISSING} Meta.AdId: {MISSING}"
ONE_OF = "Type: Must be one of: PageView, AdImpression, AdClick."
HOSTILE: list[bytes] = [
    b"5",
    b"\xff",
    b'{"Type": "\\u001b]0;a\\u0007\\u202e", "Url": "a.com"}',
    b'{"type\\u0000": 1, "Url": "\\ud800", "\\ud800": 1}',
    b'{"Pad": "' + b"x" * 8_000 + b'"}',
    b'{"Pad": "' + b"x" * 20_000 + b'"}',
    b'{"type": "PageView", "X":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"X":' + b'{"a":' * 900 + b"1" + b"}" * 901,
    b"{" + b",".join(b'"%d":1' % n for n in range(800)) + b"}",
]


def letters(client: FlaskClient, **query: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/dead-letters", query_string=query).get_json()
    return found


def test_health_depends_only_on_the_process(client: FlaskClient, redis: Server) -> None:
    redis.kill()
    try:
        assert client.get("/health").status_code == 200
    finally:
        redis.start()


def test_ready_means_that_broker_and_database_answer(client: FlaskClient) -> None:
    response = client.get("/ready")
    assert response.status_code == 200
    assert response.get_json() == {"broker": "ok", "database": "ok"}


def test_ready_names_the_part_that_is_unavailable(
    client: FlaskClient, redis: Server, client_with: MakeClient
) -> None:
    redis.kill()
    try:
        response = client.get("/ready")
    finally:
        redis.start()
    assert response.status_code == 503
    assert response.get_json() == {"broker": "away", "database": "ok"}
    response = client_with(mongodb_url="mongodb://127.0.0.1:1/x").get("/ready")
    assert response.status_code == 503
    assert response.get_json() == {"broker": "ok", "database": "away"}


def test_ready_says_why_a_redis_cannot_be_used(tmp_path: Path, client_with: MakeClient) -> None:
    with redis_with(tmp_path, "--cluster-enabled", "yes", "--appendonly", "yes") as url:
        response = client_with(redis_url=url, broker_url=url).get("/ready")
    assert response.status_code == 503
    assert response.get_json() == {
        "broker": "Redis is a cluster, which Celery can't use; use a Redis without cluster mode.",
        "database": "ok",
    }


def test_a_full_broker_is_not_ready(client: FlaskClient, journal: RedisJournal) -> None:
    journal.redis.config_set("maxmemory", 1)
    try:
        assert client.get("/ready").get_json() == {"broker": "away", "database": "ok"}
    finally:
        journal.redis.config_set("maxmemory", 0)


def test_events_of_any_depth_can_be_listed(client: FlaskClient) -> None:
    for depth in (900, 950, 980, 984, 990):
        deep = '{"X":' + "[" * depth + "]" * depth + "}"
        client.post("/events", data=deep, content_type="text/plain")
    assert client.get("/dead-letters").status_code == 200


def test_dead_letters_are_listed_newest_first_in_pages(client: FlaskClient) -> None:
    for number in range(3):
        client.post("/events", json=BAD | {"N": number})
    first = letters(client, limit=2)
    assert [item["event"]["N"] for item in first["items"]] == [2, 1]
    assert first["items"][0]["reason"]["Meta"]["UserId"] == ["Missing data for required field."]
    second = letters(client, limit=2, cursor=first["next_cursor"])
    assert [item["event"]["N"] for item in second["items"]] == [0]
    assert second["next_cursor"] is None


def test_a_wrong_parameter_of_the_list_is_named(client: FlaskClient) -> None:
    for query in ({"limit": "x"}, {"cursor": "+"}, {"cursor": "1-1) ("}):
        response = client.get("/dead-letters", query_string=query)
        assert response.status_code == 400
        assert list(response.get_json()["errors"]) == list(query)


def test_an_event_that_is_now_valid_is_replayed_once(
    client: FlaskClient, journal: RedisJournal
) -> None:
    good = {"Type": "PageView", "Url": "site1.com"}
    journal.redis.xadd("dead_letters:events", {"reason": "{}", "event": json.dumps(good)})
    (letter,) = letters(client)["items"]
    replay = f"/dead-letters/{letter['id']}/replay"
    response = client.post(replay)
    assert response.status_code == 202
    assert response.get_json() == {"accepted": 1, "rejected": []}
    assert letters(client)["items"] == []
    assert journal.redis.hget("journal:page_view", f"dead-letter-{letter['id']}") is not None
    assert client.post(replay).status_code == 404


def test_an_event_that_is_still_invalid_stays_a_dead_letter(client: FlaskClient) -> None:
    client.post("/events", json=BAD)
    (letter,) = letters(client)["items"]
    response = client.post(f"/dead-letters/{letter['id']}/replay")
    assert response.status_code == 400
    assert response.get_json()["accepted"] == 0
    assert response.get_json()["rejected"][0]["errors"] == letter["reason"]
    assert letters(client)["items"] == [letter]


def test_a_rejected_event_can_be_replayed_with_a_correction(
    client: FlaskClient, journal: RedisJournal
) -> None:
    client.post("/events", json=BAD)
    (letter,) = letters(client)["items"]
    replay = f"/dead-letters/{letter['id']}/replay"
    assert client.post(replay, json={"Type": "PageView"}).status_code == 400
    assert client.post(replay, json={"Type": "PageView", "Url": "site1.com/x"}).status_code == 202
    kept = journal.redis.hget("journal:page_view", f"dead-letter-{letter['id']}")
    assert json.loads(kept or b"")[0]["page"] == "/x"
    assert letters(client)["items"] == []


def test_a_batch_cannot_be_replayed_with_a_correction(
    client: FlaskClient, journal: RedisJournal
) -> None:
    journal.bury(Batch("b1", "page_view", b"[]"), "a fault")
    (letter,) = letters(client)["items"]
    response = client.post(f"/dead-letters/{letter['id']}/replay", json={"Type": "PageView"})
    assert response.status_code == 400
    assert letters(client)["items"] == [letter]


def test_an_event_with_the_id_of_another_is_replayed_only_with_a_new_id(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(user_hash_secret="s" * 16)
    hashed = UserHash("s" * 16)("u1", "2026-11")
    event = AdClick("e1", "site1.com", "34", hashed, int(time.time() * 1000))
    dead_letters.keep_collisions(journal.redis, [Collision("b1", 0, event)])
    (letter,) = letters(client)["items"]
    assert letter["collides"]
    replay = f"/dead-letters/{letter['id']}/replay"
    for same in (None, letter["event"], letter["event"] | {"EventId": None}, {"EventId": "e1"}):
        refused = client.post(replay, json=same) if same else client.post(replay)
        assert list(refused.get_json()["rejected"][0]["errors"]) == ["EventId"]
    assert client.post(replay, json=letter["event"] | {"EventId": "e2"}).status_code == 202
    kept = journal.redis.hget("journal:ad_click", f"dead-letter-{letter['id']}")
    assert json.loads(kept or b"") == [msgspec.to_builtins(replace(event, event_id="e2"))]


def test_a_colliding_event_of_invalid_traffic_stays_so_when_replayed(
    client: FlaskClient, journal: RedisJournal
) -> None:
    robot = Invalid("robot", f"{datetime.now(UTC):%F}")
    event = AdClick("e1", "site1.com", "34", "u1", int(time.time() * 1000), robot)
    dead_letters.keep_collisions(journal.redis, [Collision("b1", 0, event)])
    (letter,) = letters(client)["items"]
    replay = f"/dead-letters/{letter['id']}/replay"
    assert client.post(replay, json=letter["event"] | {"EventId": "e2"}).status_code == 202
    kept = journal.redis.hget("journal:ad_click", f"dead-letter-{letter['id']}")
    assert json.loads(kept or b"")[0]["invalid"]["reason"] == "robot"


def test_only_operators_can_drop_a_dead_letter_and_only_once(
    client: FlaskClient, client_with: MakeClient, journal: RedisJournal
) -> None:
    client.post("/events", json=BAD)
    journal.bury(Batch("b1", "ad_click", b"[]"), "it can't be counted")
    batch, event = letters(client)["items"]
    stranger = client_with(admin_token="secret")
    assert stranger.delete(f"/dead-letters/{event['id']}").status_code == 401
    for letter in (batch, event):
        response = client.delete(f"/dead-letters/{letter['id']}")
        assert (response.status_code, response.data) == (204, b"")
        assert client.delete(f"/dead-letters/{letter['id']}").status_code == 404
    assert letters(client)["items"] == []
    assert client.delete("/dead-letters/x").status_code == 404


def test_a_failed_batch_is_replayed_under_its_own_id(
    client: FlaskClient, journal: RedisJournal
) -> None:
    batch = Batch("b1", "ad_click", b'[{"any":1}]')
    journal.bury(batch, "a fault that has been mended")
    (letter,) = letters(client)["items"]
    assert (letter["queue"], letter["batch"]) == ("ad_click", [{"any": 1}])
    assert client.post(f"/dead-letters/{letter['id']}/replay").status_code == 202
    assert journal.redis.hget("journal:ad_click", "b1") == batch.payload
    assert letters(client)["items"] == []


def test_a_truncated_event_cannot_be_replayed(client: FlaskClient) -> None:
    client.post("/events", json=BAD | {"Pad": "x" * dead_letters.MAX_EVENT_BYTES})
    (letter,) = letters(client)["items"]
    assert client.post(f"/dead-letters/{letter['id']}/replay").status_code == 400


def test_all_dead_letters_are_replayed_at_once(client: FlaskClient, journal: RedisJournal) -> None:
    good = {"Type": "PageView", "Url": "site1.com"}
    for _ in range(150):
        journal.redis.xadd("dead_letters:events", {"reason": "{}", "event": json.dumps(good)})
    client.post("/events", json=BAD)
    response = client.post("/dead-letters/replay")
    assert response.status_code == 202
    assert response.get_json() == {"accepted": 150, "remaining": 1}
    assert [letter["event"] for letter in letters(client)["items"]] == [BAD]
    assert journal.waiting()["page_view"] == 150


def test_a_letter_without_a_timestamp_is_counted_on_the_day_it_came_in(
    client: FlaskClient, journal: RedisJournal
) -> None:
    good = {"Type": "PageView", "Url": "site1.com"}
    three_days_ago = datetime.now(UTC) - timedelta(days=3)
    letter_id = f"{int(three_days_ago.timestamp() * 1000)}-0"
    journal.redis.xadd(
        "dead_letters:events", {"reason": "{}", "event": json.dumps(good)}, id=letter_id
    )
    assert client.post(f"/dead-letters/{letter_id}/replay").status_code == 202
    payload = journal.redis.hget("journal:page_view", f"dead-letter-{letter_id}")
    assert payload is not None
    assert json.loads(payload)[0]["day"] == f"{three_days_ago:%Y-%m-%d}"


def test_replaying_an_unknown_letter_is_not_found(client: FlaskClient) -> None:
    for letter_id in ("1-1", "x", "-", "+", "1-1%20+"):
        assert client.post(f"/dead-letters/{letter_id}/replay").status_code == 404


def test_an_unknown_path_gets_a_404_in_json(client: FlaskClient) -> None:
    response = client.get("/nothing")
    assert response.status_code == 404
    assert set(response.get_json()) == {"error"}


def test_an_event_that_its_key_may_not_write_is_replayed_only_individually(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(write_keys={"k": frozenset({"site1.com"})})
    refused = {"Type": "PageView", "Url": "site2.com"}
    client.post("/events", json=refused, headers={"X-Write-Key": "k"})
    (letter,) = letters(client)["items"]
    assert (letter["event"], letter["refused"]) == (refused, True)
    assert client.post("/dead-letters/replay").get_json() == {"accepted": 0, "remaining": 1}
    assert client.post(f"/dead-letters/{letter['id']}/replay").status_code == 202
    assert letters(client)["items"] == []
    assert journal.waiting()["page_view"] == 1


def test_a_letter_of_invalid_traffic_stays_so_when_replayed(
    client: FlaskClient, journal: RedisJournal
) -> None:
    good = {"Type": "PageView", "Url": "site1.com"}
    letter_id = "1764000000000-0"
    fields = {"reason": "{}", "event": json.dumps(good), "invalid": "robot"}
    journal.redis.xadd("dead_letters:events", cast(Any, fields), id=letter_id)
    assert client.post(f"/dead-letters/{letter_id}/replay").status_code == 202
    payload = journal.redis.hget("journal:page_view", f"dead-letter-{letter_id}")
    assert payload is not None
    assert json.loads(payload)[0]["invalid"] == {"reason": "robot", "day": "2025-11-24"}


# Groups, filters and downloads.


def test_the_list_counts_the_letters_of_each_reason_most_first(client: FlaskClient) -> None:
    for event in (BAD, BAD, {"Type": "Sale", "Url": "site1.com"}):
        client.post("/events", json=event)
    found = letters(client, limit=1)
    assert [item["summary"] for item in found["items"]] == [ONE_OF]
    assert found["total"] == 3
    assert found["reasons"] == [
        {"reason": NO_USER_AND_AD, "letters": 2},
        {"reason": ONE_OF, "letters": 1},
    ]
    assert found["next_cursor"] is not None


def test_filters_cursor_and_limit_work_together(client: FlaskClient) -> None:
    for number in range(6):
        client.post("/events", json=BAD | {"N": f"number{number % 2}"})
        client.post("/events", json={"Type": "Sale", "N": "number0"})
    filters = {"reason": NO_USER_AND_AD, "q": "NUMBER0", "limit": 2}
    first = letters(client, **filters)
    second = letters(client, **filters, cursor=first["next_cursor"])
    assert [len(page["items"]) for page in (first, second)] == [2, 1]
    for page in (first, second):
        assert page["total"] == 3
        assert page["reasons"] == [{"reason": NO_USER_AND_AD, "letters": 3}]
        assert {item["event"]["N"] for item in page["items"]} == {"number0"}
        assert {item["summary"] for item in page["items"]} == {NO_USER_AND_AD}
    assert second["next_cursor"] is None
    assert letters(client, q="nowhere") == {
        "items": [],
        "next_cursor": None,
        "total": 0,
        "reasons": [],
    }


def test_letters_that_came_or_went_are_counted_at_once(client: FlaskClient) -> None:
    for expected in (1, 2, 3):
        client.post("/events", json=BAD)
        assert letters(client)["total"] == expected
    client.delete(f"/dead-letters/{letters(client)['items'][0]['id']}")
    assert letters(client)["total"] == 2


def test_a_letter_has_a_hint_if_a_name_is_only_misspelt(client: FlaskClient) -> None:
    client.post("/events", json={"type": "PageView", "Url": "site1.com"})
    client.post("/events", json={"Type": "page_view", "Url": "site1.com"})
    client.post("/events", json=BAD)
    hints = [item.get("hint") for item in letters(client)["items"]]
    assert hints == [None, "Did you mean PageView?", "Did you mean Type instead of type?"]


@pytest.mark.parametrize(
    "query",
    [
        {"reason": "x" * 501},
        {"q": "x" * 201},
        {"reason": OTHER},
        {"format": "csv"},
        {"reson": NO_USER_AND_AD},
    ],
)
def test_a_filter_that_cannot_be_used_is_refused_and_nothing_is_changed(
    client: FlaskClient, query: dict[str, str]
) -> None:
    client.post("/events", json=BAD)
    paths = {"GET": "/dead-letters", "DELETE": "/dead-letters", "POST": "/dead-letters/replay"}
    for method, path in paths.items():
        response = client.open(path, method=method, query_string=query)
        assert response.status_code == 400, method
        assert list(response.get_json()["errors"]) == list(query)
    twice = client.delete("/dead-letters?q=site1&q=nothing")
    assert (twice.status_code, list(twice.get_json()["errors"])) == (400, ["q"])
    assert letters(client)["total"] == 1


def test_letters_are_dropped_by_reason_and_text_but_never_all_of_them(
    client: FlaskClient,
) -> None:
    for number in range(4):
        client.post("/events", json=BAD | {"N": f"number{number}"})
        client.post("/events", json={"Type": "Sale", "N": f"number{number}"})
    for nothing in ("", "?", "?reason=&q="):
        refused = client.delete(f"/dead-letters{nothing}")
        assert (refused.status_code, refused.get_json()) == (
            400,
            {"error": "Say which dead letters to drop, with reason or q."},
        )
    filters = {"reason": NO_USER_AND_AD, "q": "Number2"}
    for dropped in (1, 0):
        answered = client.delete("/dead-letters", query_string=filters)
        assert (answered.status_code, answered.get_json()) == (200, {"dropped": dropped})
    answered = client.delete("/dead-letters", query_string={"reason": NO_USER_AND_AD})
    assert answered.get_json() == {"dropped": 3}
    assert [item["event"]["N"] for item in letters(client)["items"]] == [
        f"number{number}" for number in (3, 2, 1, 0)
    ]


def test_only_letters_that_fit_are_replayed(client: FlaskClient, journal: RedisJournal) -> None:
    for number in range(3):
        good = {"Type": "PageView", "Url": f"site{number}.com"}
        wrong = json.dumps({"Url": ["Wrong."]})
        journal.redis.xadd("dead_letters:events", {"reason": wrong, "event": json.dumps(good)})
    client.post("/events", json=BAD)
    replay = "/dead-letters/replay"
    some = client.post(replay, query_string={"reason": "Url: Wrong.", "q": "SITE1"})
    assert (some.status_code, some.get_json()) == (202, {"accepted": 1, "remaining": 0})
    assert letters(client)["total"] == 3
    others = client.post(replay, query_string={"reason": NO_USER_AND_AD})
    assert others.get_json() == {"accepted": 0, "remaining": 1}
    assert client.post(f"{replay}?reason=&q=").get_json() == {"accepted": 2, "remaining": 1}
    assert [item["event"] for item in letters(client)["items"]] == [BAD]


def lines_of(response: Any) -> list[Any]:
    return [json.loads(line) for line in response.data.splitlines()]


def test_all_letters_that_fit_are_downloaded_whole_as_a_file(
    client: FlaskClient, journal: RedisJournal
) -> None:
    for number in range(120):
        client.post("/events", json=BAD | {"N": number, "Pad": "x" * 5_000})
    journal.bury(Batch("b1", "ad_click", b'[{"any":1}]'), "a fault")
    response = client.get("/dead-letters?format=ndjson&limit=5")
    assert response.mimetype == "application/x-ndjson"
    disposition = response.headers["Content-Disposition"]
    assert re.fullmatch(
        r'attachment; filename="dead-letters-\d{4}-\d\d-\d\dT\d{6}Z\.ndjson"', disposition
    )
    found = lines_of(response)
    assert found == letters(client, limit=1_000)["items"]
    assert [item["event"]["N"] for item in found if item["event"]] == list(range(119, -1, -1))
    some = client.get("/dead-letters", query_string={"format": "ndjson", "q": '"N": 7,'})
    assert [item["event"]["N"] for item in lines_of(some)] == [7]
    none = client.get("/dead-letters?format=ndjson&q=nowhere")
    assert (none.status_code, none.data) == (200, b"")


def test_hostile_events_can_be_listed_counted_searched_and_downloaded(client: FlaskClient) -> None:
    for event in HOSTILE:
        client.post("/events", data=event, content_type="text/plain")
    found = letters(client, limit=1_000)
    number = found["total"]
    assert number >= len(HOSTILE) - 1  # what is not UTF-8 holds no event
    assert lines_of(client.get("/dead-letters?format=ndjson")) == found["items"]
    for reason in found["reasons"]:
        assert letters(client, reason=reason["reason"])["total"] == reason["letters"]
        assert reason["reason"].isprintable()
    assert letters(client, q="\x1b")["total"] == 1
    assert letters(client, q="\x00")["total"] == 1
    assert client.get("/dead-letters?q=%ff%00%ed%a0%80").status_code == 200
    assert client.delete("/dead-letters?q=%22").get_json() == {"dropped": number}


def bury_large(journal: RedisJournal, number: int, size: int) -> None:
    for n in range(number):
        journal.bury(Batch(f"b{n}", "ad_click", b'["%0*d"]' % (size, n)), "a fault")


def test_a_download_is_read_from_redis_only_as_fast_as_by_the_client(
    client: FlaskClient, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "DOWNLOAD_SECONDS", 0)
    bury_large(journal, 20, SEND_BYTES)
    ours, its = socket.socketpair()
    with Socket(ours) as sending, its:
        response = client.get(
            "/dead-letters?format=ndjson", environ_overrides={"gunicorn.socket": sending}
        )
        received = bytearray()

        def read() -> None:
            while data := its.recv(65_536):
                received.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        for line in response.iter_encoded():
            assert len(sending.unsent) <= SEND_BYTES
            sending.sendall(line)
        while sending.unsent:
            sending.flush()
        sending.shutdown(socket.SHUT_WR)
        reader.join(10)
    ids = [json.loads(line)["batch_id"] for line in received.splitlines()]
    assert ids == [f"b{n}" for n in range(19, -1, -1)]


def test_a_client_that_stops_reading_a_download_is_disconnected(
    client: FlaskClient, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "DOWNLOAD_SECONDS", 0.01)
    monkeypatch.setattr(operations, "DOWNLOAD_BYTES_PER_SECOND", 10**9)
    bury_large(journal, 20, SEND_BYTES)
    ours, its = socket.socketpair()
    with Socket(ours) as sending, its:
        response = client.get(
            "/dead-letters?format=ndjson", environ_overrides={"gunicorn.socket": sending}
        )
        with pytest.raises(ConnectionResetError):
            list(map(sending.sendall, response.iter_encoded()))


def test_a_client_that_reads_each_letter_in_time_but_all_of_them_too_slowly_is_disconnected(
    client: FlaskClient, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "DOWNLOAD_SECONDS", 0.5)
    monkeypatch.setattr(operations, "DOWNLOAD_BYTES_PER_SECOND", 10**9)
    bury_large(journal, 20, SEND_BYTES)
    ours, its = socket.socketpair()
    with Socket(ours) as sending, its:
        response = client.get(
            "/dead-letters?format=ndjson", environ_overrides={"gunicorn.socket": sending}
        )

        def read() -> None:
            while its.recv(SEND_BYTES // 16):
                time.sleep(0.005)  # this client is slow

        reader = threading.Thread(target=read)
        reader.start()
        try:
            with pytest.raises(ConnectionResetError):
                list(map(sending.sendall, response.iter_encoded()))
        finally:
            sending.shutdown(socket.SHUT_WR)
            reader.join(10)


def test_a_download_larger_than_the_buffers_arrives_completely_even_if_its_client_pauses(
    settings: Settings, journal: RedisJournal, tmp_path: Path
) -> None:
    number, size = 45, 10**6
    bury_large(journal, number, size)
    assert number * size > MAX_BUFFERED_BYTES
    with (
        gunicorn(settings, tmp_path, "--workers", "1", "wsgi:app") as url,
        httpx.stream("GET", f"{url}/dead-letters?format=ndjson", timeout=30) as response,
    ):
        received = response.iter_bytes(65_536)
        length = len(next(received))
        for _ in range(300):  # meanwhile, the server could read all the letters
            assert httpx.get(f"{url}/health").status_code == 200
        length += sum(map(len, received))
    assert response.status_code == 200
    assert number * size < length < number * (size + 1_000)


@pytest.mark.parametrize("query", ["", "?format=ndjson", "?q=x"])
def test_without_redis_letters_are_unavailable(
    client: FlaskClient, redis: Server, query: str
) -> None:
    redis.kill()
    try:
        assert client.get(f"/dead-letters{query}").status_code == 503
        assert client.delete("/dead-letters?q=x").status_code == 503
        assert client.post("/dead-letters/replay").status_code == 503
    finally:
        redis.start()

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
from flask.testing import FlaskClient
from msgspec.structs import replace

from app.domain.events import AdClick, Collision
from app.domain.invalid_traffic import Invalid
from app.domain.user_ids import UserHash
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from tests.journal.test_opener import redis_with
from tests.support.servers import Server
from tests.web.conftest import MakeClient

OLD: dict[Any, Any] = {"reason": "{}", "event": '{"Type":"PageView","Url":"site1.com"}'}
BAD = {"Type": "AdClick", "Url": "site1.com"}


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

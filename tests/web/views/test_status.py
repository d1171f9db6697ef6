from pathlib import Path

from flask.testing import FlaskClient

from app.journal.redis_journal import RedisJournal
from tests.support.servers import Server
from tests.web.conftest import MakeClient


def test_it_tells_of_queues_workers_letters_memory_and_disk(
    client_with: MakeClient, journal: RedisJournal, tmp_path: Path
) -> None:
    client = client_with(data_dir=tmp_path)
    client.post("/events", json=[{"Type": "PageView", "Url": "a.com"}, {"Type": "none"}])
    found = client.get("/status").get_json()
    assert found["parts"] == {"broker": "ok", "database": "ok"}
    queues = {queue.pop("queue"): queue for queue in found["queues"]}
    waiting = queues["page_view"]
    assert (waiting["waiting"], waiting["taken"]) == (1, 0)
    assert 0 <= waiting["oldest_seconds"] < 60
    assert queues["ad_click"] == {"waiting": 0, "taken": 0, "oldest_seconds": 0.0}
    assert found["workers"] == 0
    assert found["dead_letters"] == {"events": 1, "batches": 0}
    assert found["reports_behind_seconds"] == 0
    assert found["redis"]["used_bytes"] > 0
    assert 0 < found["disk"]["free_bytes"] < found["disk"]["total_bytes"]
    journal.take("page_view")
    taken = client.get("/status").get_json()["queues"][0]
    assert (taken["queue"], taken["waiting"], taken["taken"]) == ("page_view", 0, 1)


def test_a_part_that_is_away_is_named_and_the_others_still_tell(
    client: FlaskClient, redis: Server, mongodb: Server
) -> None:
    for server, part, missing in (
        (redis, "broker", "queues"),
        (mongodb, "database", "reports_behind_seconds"),
    ):
        server.kill()
        try:
            response = client.get("/status")
        finally:
            server.start()
        assert response.status_code == 200
        found = response.get_json()
        assert found["parts"] == {"broker": "ok", "database": "ok"} | {part: "away"}
        assert missing not in found


def test_it_is_for_operators(client_with: MakeClient) -> None:
    client = client_with(admin_token="secret", read_keys={"reads": frozenset()})
    assert client.get("/status").status_code == 401
    assert client.get("/status", headers={"Authorization": "Bearer reads"}).status_code == 404

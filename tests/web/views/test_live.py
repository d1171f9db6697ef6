import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import msgspec
import pytest
from flask.testing import FlaskClient

from app.domain.events import AdClick, PageView
from app.domain.invalid_traffic import Invalid
from app.domain.share_links import Share, text_of
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis import counters, live, spikes
from app.redis.live import Counted, Counts
from app.redis.spikes import Spike
from app.settings import Settings
from app.store import ads, tops
from app.store.ads import AdEntry
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.web import cache
from app.web.auth import LINK_COOKIE
from app.web.server import threads
from tests.support.counting import count_batch
from tests.support.waiting import wait_until
from tests.web.conftest import MakeClient, gunicorn


@pytest.fixture(scope="module")
def server(shared_settings: Settings) -> Iterator[str]:
    """The URL of a gunicorn with one worker."""
    with gunicorn(shared_settings, shared_settings.data_dir, "--workers", "1", "wsgi:app") as url:
        yield url


@contextmanager
def watching(server: str) -> Iterator[Iterator[str]]:
    """The lines of a live stream."""
    with httpx.stream("GET", f"{server}/live", timeout=20) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        lines = response.iter_lines()
        assert next(lines) == "retry: 2000"
        yield lines


def is_of(pid: str, port: str) -> bool:
    try:
        return f"PORT={port}\0" in Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return False


def test_viewers_that_leave_release_their_files(server: str) -> None:
    # Runs before the other tests here: their viewers are closed only a moment after they leave.
    def open_files() -> int:
        return max(
            len(os.listdir(f"/proc/{pid}/fd"))
            for pid in os.listdir("/proc")
            if pid.isdecimal() and is_of(pid, server.rpartition(":")[2])
        )

    with watching(server):
        before = open_files()
        with ExitStack() as open_until_the_end:
            for _ in range(30):
                open_until_the_end.enter_context(watching(server))
            assert open_files() >= before + 25
        wait_until(lambda: open_files() <= before + 2)


def record_clicks(journal: RedisJournal) -> None:
    counts = Counts()
    counts.add("clicks", ("*",), [2, 1])
    live.record(journal.redis, "ad_click", Counted({"*": 2, "site1.com": 2}, counts), time.time())


def test_counts_are_streamed_within_a_second(server: str, journal: RedisJournal) -> None:
    with watching(server) as lines:
        told = time.monotonic()
        record_clicks(journal)
        event = next(line for line in lines if line.startswith("event:"))
        assert (event, next(lines)) == (
            "event: counts",
            'data: {"queue":"ad_click","folds":0,"first":1,'
            '"clicks":[{"website":"*","hits":2,"clicks":1}]}',
        )
        assert time.monotonic() - told < 1


@pytest.mark.proof
def test_more_viewers_than_threads_do_not_keep_the_server_from_taking_events(
    server: str, journal: RedisJournal
) -> None:
    with ExitStack() as open_until_the_end:
        viewers = [open_until_the_end.enter_context(watching(server)) for _ in range(2 * threads)]
        for _ in range(20):
            posted = httpx.post(f"{server}/events", json={"Type": "PageView", "Url": "a.com"})
            assert posted.status_code == 202
        record_clicks(journal)
        for lines in viewers:
            assert next(line for line in lines if line.startswith("event:")) == "event: counts"


def test_a_head_request_gets_only_the_head(server: str) -> None:
    response = httpx.head(f"{server}/live")
    assert response.headers["Content-Type"].startswith("text/event-stream")


@pytest.mark.parametrize("path", ["/live", "/live/snapshot"])
def test_only_operators_may_watch(client: FlaskClient, client_with: MakeClient, path: str) -> None:
    assert client.get(path, environ_base={"REMOTE_ADDR": "203.0.113.5"}).status_code == 403
    secured = client_with(admin_token="secret")
    assert secured.get(path).status_code == 401
    allowed = secured.get(path, headers={"Authorization": "Bearer secret"})
    assert allowed.status_code == (501 if path == "/live" else 200)


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(cache, "SHARE", math.inf)


def snapshot(client: FlaskClient, **query: Any) -> Any:
    return client.get("/live/snapshot", query_string=query).get_json()


def test_the_snapshot_has_the_minutes_of_one_or_all_websites(
    client: FlaskClient, journal: RedisJournal
) -> None:
    record_clicks(journal)
    assert sum(minute["ad_click"] for minute in snapshot(client)["minutes"]) == 2
    for website, hits in (("site1.com", 2), ("other.com", 0)):
        of_website = snapshot(client, website=website)["minutes"]
        assert sum(minute["ad_click"] for minute in of_website) == hits


def test_the_snapshot_says_when_it_is_and_whether_anything_was_counted(
    database: Database, client_with: MakeClient
) -> None:
    client = client_with(timezone=ZoneInfo("Asia/Kolkata"))
    found = snapshot(client)
    assert (found["is_empty"], found["unknown"]) == (True, False)
    assert found["timezone"] == "Asia/Kolkata"
    assert found["now"].endswith("+05:30")
    assert found["now"].startswith(found["today"])
    assert snapshot(client, website="a.com")["unknown"]
    views = [PageView(None, "a.com", "/", "2026-11-24")]
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", PageView, views)
    assert not snapshot(client)["is_empty"]
    assert not snapshot(client, website="https://WWW.a.com/any")["unknown"]
    assert snapshot(client, website="b.com")["unknown"]


def test_websites_are_suggested_by_how_they_begin(
    database: Database, client_with: MakeClient
) -> None:
    client = client_with(admin_token="secret", read_keys={"reads": frozenset({"shop.com"})})
    views = [PageView(None, name, "/", "2026-11-24") for name in ("shop.com", "shoes.com")]
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", PageView, views)
    for token, given, found in (
        ("secret", "WWW.Sho", ["shoes.com", "shop.com"]),
        ("secret", "shop", ["shop.com"]),
        ("secret", "x", []),
        ("reads", "sho", ["shop.com"]),
        ("reads", "shoe", []),
    ):
        headers = {"Authorization": f"Bearer {token}"}
        answer = client.get("/live/websites", query_string={"q": given}, headers=headers)
        assert answer.get_json() == {"items": found}
    assert client.get("/live/websites").status_code == 401


def test_where_a_readers_ads_were_is_looked_up_once_for_all_beginnings(
    database: Database, client_with: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEPT_SECONDS", 60)
    client = client_with(admin_token="secret", share_secret="signs links")
    share = Share(None, "autumn", None, int(time.time()) + 600)
    client.set_cookie(LINK_COOKIE, text_of(share, "signs links"))
    ads.put(database, [AdEntry("1", campaign="autumn")])

    def websites(beginning: str) -> Any:
        return client.get("/live/websites", query_string={"q": beginning}).get_json()["items"]

    def hit(batch: str, website: str, ad_id: str) -> None:
        clicks = [AdClick(None, website, ad_id, "u", 1_800_000_000_000)]
        count_batch(database, Counting(database, ClickRule(3, "user")), batch, AdClick, clicks)

    hit("b1", "shop.com", "1")
    hit("b2", "shoes.com", "2")
    assert websites("sho") == ["shop.com"]
    hit("b3", "shirts.com", "1")
    assert websites("s") == ["shop.com"]
    assert websites("x") == []


def test_the_snapshot_has_all_hits_and_clicks_of_one_or_all_websites(
    database: Database, client: FlaskClient
) -> None:
    hits = [AdClick(None, f"site{n % 2}.com", str(n), "u1", n) for n in range(9)]
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", AdClick, hits)
    assert snapshot(client)["clicks"] == {"hits": 9, "clicks": 3}
    assert snapshot(client, website="site0.com")["clicks"] == {"hits": 5, "clicks": 2}
    assert snapshot(client, website="none.com")["clicks"] == {"hits": 0, "clicks": 0}


def test_the_snapshot_is_read_again_if_counts_are_folded_meanwhile(
    database: Database, client: FlaskClient, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    read, batches = tops.pages, iter("ab")

    def read_and_count(*filters: Any) -> tops.Top:
        found = read(*filters)
        if batch := next(batches, None):
            today = datetime.now(UTC).date().isoformat()
            count_batch(database, counting, batch, PageView, [PageView(None, "a.com", "/", today)])
            live.folded(journal.redis, "page_view")
        return found

    monkeypatch.setattr(tops, "pages", read_and_count)
    found = snapshot(client)
    assert found["folds"] == {"page_view": 2, "ad_impression": 0, "ad_click": 0}
    assert found["views"] == 2
    assert [row["views"] for row in found["pages"]] == [2]


def test_the_snapshot_has_the_views_of_any_number_of_days(
    database: Database, client: FlaskClient
) -> None:
    views = [PageView(None, "a.com", "/", day) for day in ("2020-02-29", "2026-11-24")]
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", PageView, views)
    assert snapshot(client, **{"from": "2010-01-01", "to": "2030-12-31"})["views"] == 2
    assert snapshot(client, **{"from": "2020-03-01", "to": "9999-12-31"})["views"] == 1


def test_the_snapshot_says_how_much_is_waiting_and_for_how_long(
    client: FlaskClient, journal: RedisJournal
) -> None:
    journal.write([Batch("b1", "page_view", b"[]"), Batch("b2", "page_view", b"[]")])
    journal.redis.zadd("journal:page_view:waiting", {"b1": time.time() - 100})
    by_queue = {queue.pop("queue"): queue for queue in snapshot(client)["queues"]}
    assert by_queue["page_view"]["waiting"] == 2
    assert 100 <= by_queue["page_view"]["oldest_seconds"] < 110
    assert by_queue["ad_click"] == {"waiting": 0, "oldest_seconds": None}


def test_the_snapshot_has_the_spikes_and_drops_of_one_or_all_websites(
    client: FlaskClient, journal: RedisJournal
) -> None:
    this_minute = int(time.time() // 60)
    by_minute = {
        (f"site{n}.com", "/a", this_minute - ago): views
        for n in range(2)
        for ago, views in ((20, 1), (0, 20))
    }
    live.record(journal.redis, "page_view", Counted({}, Counts(), by_minute), time.time())
    spikes.announce(journal.redis, time.time(), 3, {"page_view": 15})
    drop = Spike("page_view", "site1.com", "", 20, 100.0, 3_600, kind="drop")
    spikes.announce_drops(journal.redis, [drop], time.time())
    assert len(snapshot(client)["spikes"]) == 3
    of_site1 = snapshot(client, website="site1.com")["spikes"]
    assert of_site1[0] == msgspec.to_builtins(drop)
    assert [(spike["website"], spike.get("kind")) for spike in of_site1] == [
        ("site1.com", "drop"),
        ("site1.com", None),
    ]


def test_the_snapshot_has_the_views_of_today_or_of_the_requested_days(
    database: Database, client: FlaskClient
) -> None:
    today = snapshot(client)["today"]
    views = [PageView(None, "site1.com", "/a", day) for day in (today, today, "2026-01-01")]
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", PageView, views)
    assert snapshot(client)["views"] == 2
    assert snapshot(client)["pages"] == [{"website": "site1.com", "page": "/a", "views": 2}]
    assert snapshot(client, to="2026-01-02")["views"] == 1
    assert snapshot(client, website="other.com")["views"] == 0


def test_the_snapshot_has_the_filtered_events_of_the_requested_days(
    database: Database, client: FlaskClient
) -> None:
    today = snapshot(client)["today"]
    views = [
        PageView(None, "site1.com", "/a", day, invalid=Invalid("robot", day))
        for day in (today, today, "2026-01-01")
    ]
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", PageView, views)
    row = {"website": "site1.com", "type": "PageView", "reason": "robot"}
    assert snapshot(client)["filtered"] == [row | {"events": 2}]
    assert snapshot(client, to="2026-01-02")["filtered"] == [row | {"events": 1}]
    assert snapshot(client, website="other.com")["filtered"] == []
    assert snapshot(client)["views"] == 0


def test_a_wrong_parameter_of_the_snapshot_is_named(client: FlaskClient) -> None:
    response = client.get("/live/snapshot", query_string={"from": "yesterday"})
    assert response.status_code == 400
    assert list(response.get_json()["errors"]) == ["from"]


def test_a_snapshot_of_too_many_pages_has_the_largest_known_and_says_so(
    database: Database, client: FlaskClient, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = snapshot(client)["today"]
    assert snapshot(client)["partial"] == []
    monkeypatch.setattr(tops, "MAX_ROWS", 5)
    counting = Counting(database, ClickRule(3, "user"))
    made_up = [f"/{n}" for n in range(10)]
    viewed = [*made_up, *["/lately"] * 2, *["/always"] * 3]
    views = [PageView(None, "a.com", page, today) for page in viewed]
    old = [PageView(None, "a.com", f"/old/{n % 60}", "2020-01-01") for n in range(180)]
    count_batch(database, counting, "b1", PageView, [*views, *old])
    minute = int(time.time() // 60)
    by_minute = {("a.com", "/lately", minute): 2, ("b.com", "/of-another", minute): 2}
    told = Counted({"*": 2}, Counts(), by_minute)
    live.record(journal.redis, "page_view", told, time.time())
    monkeypatch.setattr(tops, "ALL_TIME", 1)
    for website in (None, "a.com"):
        found = snapshot(client, website=website)
        assert found["partial"] == ["pages"]
        assert found["views"] == 15
        assert [(row["page"], row["views"]) for row in found["pages"]] == [
            ("/always", 3),
            ("/lately", 2),
        ]


def test_the_snapshot_says_how_many_events_are_counted_as_other(
    client: FlaskClient, journal: RedisJournal
) -> None:
    journal.add_counts({f"{counters.OTHER.name}|page": 3})
    assert snapshot(client)["other"] == {"website": 0, "page": 3, "ad": 0}
    assert snapshot(client, website="a.com")["other"] == {}

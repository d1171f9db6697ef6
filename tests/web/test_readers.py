"""What readers are answered: as if there were nothing but what they may read."""

import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pymongo
import pytest
import websocket
from flask.testing import FlaskClient
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from socketio import Client
from socketio.exceptions import ConnectionError as Refused

from app.domain.events import QUEUES, AdClick, AdImpression, Event, PageView, Rejection
from app.domain.invalid_traffic import Invalid
from app.domain.share_links import Share, text_of
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters, live, spikes
from app.redis.live import TABLES, Counted, Counts
from app.redis.spikes import Spike
from app.settings import Settings
from app.store import ads, migrations, months
from app.store.ads import AdEntry
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.web.auth import LINK_COOKIE
from tests.support.counting import count_batch
from tests.support.servers import Server, url_in
from tests.web.conftest import MakeClient, gunicorn

ADMIN_TOKEN = "a token of operators"
SECRET = "a secret that signs links"
KEY = "a-read-key"
SITES = ("a.com", "a.co", "sub.a.com", "b.com", "c.com:8080")
ADS = ("1", "2", "3 x", '"4"')
ENTRIES = (
    AdEntry("1", "One", "autumn", "ACME"),
    AdEntry("2", "Two", "autumn", "Other"),
    AdEntry("3 x", "Three", "winter", "ACME"),
)
TODAY = datetime.now(UTC).date()
MONTHS = sorted({str(TODAY - timedelta(days=back))[:7] for back in range(70)})
FIRST = str(TODAY - timedelta(days=40))
DAYS = f"from={FIRST}&to={TODAY}"
REPORTS = [
    *("page-views", f"page-views?{DAYS}", "page-views/daily", f"page-views/daily?page=/1&{DAYS}"),
    *("impressions", f"impressions?month={MONTHS[0]}", f"impressions?month={MONTHS[-1]}"),
    *("clicks", "clicks?ad_id=1", "filtered", f"filtered?{DAYS}", "ads", f"ads?by=website&{DAYS}"),
    *("ads?by=ad,website,month", f"ads?by=campaign,day&{DAYS}&sort=reach", "ads?by=advertiser"),
    *("ads?campaign=autumn", "ads?ad_id=2&by=week", f"ads?by=website&{DAYS}&compare=previous"),
    *("traffic", f"traffic?by=hour&from={TODAY}&to={TODAY}", "traffic?by=week", "traffic?by=month"),
    *("frequency", f"frequency?month={MONTHS[0]}&ad_id=1", f"frequency?month={MONTHS[-1]}"),
    *("differences", f"differences?ad_id=1&{DAYS}"),
]
OF_WEBSITE = [
    f"{path}{'&' if '?' in path else '?'}website={website}"
    for path, website in product(REPORTS, ("a.com", "b.com", "never.example", "*"))
]


def some_paths(seed: int) -> list[str]:
    return random.Random(seed).sample(REPORTS, 14) + random.Random(seed).sample(OF_WEBSITE, 16)


def random_events(seed: int) -> list[Event]:
    rng = random.Random(seed)
    events: list[Event] = []
    for number in range(rng.randrange(20, 120)):
        day = TODAY - timedelta(days=rng.choice([0, 0, 1, rng.randrange(70)]))
        time_of = int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp() * 1000)
        site, ad, user = rng.choice(SITES), rng.choice(ADS), f"u{rng.randrange(12)}"
        robot = Invalid("robot", str(day)) if rng.random() < 0.2 else None
        kind = rng.randrange(3)
        if kind == 0:
            page = f"/{rng.randrange(6)}"
            events.append(PageView(None, site, page, str(day), time_of, invalid=robot))
        elif kind == 1:
            viewable = rng.choice([None, None, True, False])
            month = str(day)[:7]
            events.append(
                AdImpression(None, site, ad, user, month, time_of, viewable=viewable, invalid=robot)
            )
        else:
            events.append(AdClick(None, site, ad, user, time_of + number))
    return events


def count(database: Database, events: Sequence[Event], entries: Sequence[AdEntry]) -> None:
    # By ad: a user's hits on one website must not complete a click on another.
    counting = Counting(database, ClickRule(2, "ad"))
    for kind in (PageView, AdImpression, AdClick):
        count_batch(database, counting, kind.__name__, kind, [e for e in events if type(e) is kind])
    ads.put(database, entries)
    for month in MONTHS[:-1]:
        months.aggregate(database, month, datetime.now(UTC))


class Collectors:
    """Makes clients of collectors that have counted some events, each in its own database."""

    def __init__(self, mongodb: Server, client_with: MakeClient) -> None:
        self._mongodb, self._client_with = mongodb, client_with
        self.names: list[str] = []

    def of(
        self, events: Sequence[Event], entries: Sequence[AdEntry], **settings: Any
    ) -> FlaskClient:
        self.names.append(f"readers_{os.getpid()}_{time.monotonic_ns()}")
        url = url_in(self._mongodb, self.names[-1])
        with closing(Database(url)) as database:
            migrations.prepare(database)
            count(database, events, entries)
        return self._client_with(mongodb_url=url, admin_token=ADMIN_TOKEN, **settings)


@pytest.fixture
def collectors(mongodb: Server, client_with: MakeClient) -> Iterator[Collectors]:
    made = Collectors(mongodb, client_with)
    yield made
    with pymongo.MongoClient[dict[str, object]](mongodb.url) as client:
        for name in made.names:
            client.drop_database(name)


def whole(client: FlaskClient, path: str, token: str | None) -> Any:
    """All pages of a report, and what else it says."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    pages: list[Any] = []
    cursor = None
    while True:
        query = {} if path.startswith("frequency") else {"limit": "5"}
        query |= {"cursor": cursor} if cursor else {}
        more = "&".join(f"{name}={quote(text)}" for name, text in query.items())
        url = f"/reports/{path}{'&' if '?' in path else '?'}{more}"
        answer = client.get(url, headers=headers)
        said = answer.get_json()
        assert answer.status_code == 200, said
        as_csv = client.get(f"{url}&format=csv", headers=headers)
        assert as_csv.status_code == 200
        assert ("Link" in as_csv.headers) == (said["next_cursor"] is not None)
        cursor = said.pop("next_cursor")
        pages.append((said, as_csv.text))
        if cursor is None:
            return pages


@hypothesis_settings(max_examples=3, phases=[Phase.generate])  # shrinking takes minutes
@given(
    seed=st.integers(0, 10**6),
    scope=st.sets(st.sampled_from([*SITES, "*.a.com"]), min_size=1, max_size=4),
)
def test_a_reader_of_websites_is_answered_as_if_there_were_no_others(
    collectors: Collectors, seed: int, scope: set[str]
) -> None:
    websites = {
        site
        for site in SITES
        if site in scope or ("*.a.com" in scope and site in ("a.com", "sub.a.com"))
    }
    events = random_events(seed)
    everything = collectors.of(events, ENTRIES, read_keys={KEY: frozenset(scope)})
    theirs = collectors.of([event for event in events if event.website in websites], ENTRIES)
    for path in some_paths(seed):
        assert whole(everything, path, KEY) == whole(theirs, path, ADMIN_TOKEN), path


@hypothesis_settings(max_examples=3, phases=[Phase.generate])  # shrinking takes minutes
@given(
    seed=st.integers(0, 10**6),
    website=st.sampled_from([None, "a.com", "b.com"]),
    campaign=st.sampled_from([None, "autumn", "winter", "never"]),
    advertiser=st.sampled_from([None, "ACME", "Other"]),
)
def test_a_link_of_a_campaign_or_advertiser_is_answered_as_if_there_were_no_other_ads(
    collectors: Collectors,
    seed: int,
    website: str | None,
    campaign: str | None,
    advertiser: str | None,
) -> None:
    campaign = campaign or (None if advertiser else "autumn")
    own = {
        entry.ad_id: entry
        for entry in ENTRIES
        if campaign in (None, entry.campaign) and advertiser in (None, entry.advertiser)
    }
    events = random_events(seed)
    everything = collectors.of(events, ENTRIES, share_secret=SECRET)
    share = Share(website, campaign, advertiser, int(time.time()) + 600)
    everything.set_cookie(LINK_COOKIE, text_of(share, SECRET))
    theirs = collectors.of(
        [
            event
            for event in events
            if isinstance(event, AdImpression | AdClick)
            if event.ad_id in own and website in (None, event.website)
        ],
        list(own.values()),
    )
    for path in some_paths(seed):
        if path.startswith(("page-views", "filtered")):
            assert all(not said["items"] for said, _ in whole(everything, path, None)), path
        elif "by=hour" in path:
            assert everything.get(f"/reports/{path}").status_code == 400
        elif path.startswith("traffic"):
            found = [row for said, _ in whole(everything, path, None) for row in said["items"]]
            assert all(row.pop("views") is None for row in found)
            rows = [row for said, _ in whole(theirs, path, ADMIN_TOKEN) for row in said["items"]]
            assert all(row.pop("views") == 0 for row in rows)
            assert found == rows, path
        else:
            assert whole(everything, path, None) == whole(theirs, path, ADMIN_TOKEN), path


# A collector that holds what others have, under names that tell.


OWN, FOREIGN = "mine.example", "foreign.example"
TELLTALE = "foreign"
QUERIES = [
    *("", "format=csv", f"website={FOREIGN}", f"website={OWN}", "website=*", f"website=sub.{OWN}"),
    *(f"ad_id={TELLTALE}ad", f"campaign={TELLTALE}campaign", f"advertiser={TELLTALE}advertiser"),
    *("by=website", "by=advertiser,campaign", "by=ad,website&format=csv", "limit=1", "by=month"),
    *(f"from={FIRST}", f"to={TODAY}", f"page=/{TELLTALE}page", "limit=1&format=csv"),
]
OPERATORS = {"ads", "metrics", "operations", "status"}
"""The tags of the paths that are for operators."""
PATHS_OF_EVERYBODY = {"/health", "/ready", "/metrics"}


def hold_telltales(database: Database, journal: RedisJournal) -> None:
    now = int(time.time() * 1000)
    events: list[Event] = []
    for site, name in ((OWN, "my"), (FOREIGN, TELLTALE)):
        robot = Invalid("robot", str(TODAY))
        for number in range(1 if site == OWN else 9):
            at = now - number
            events += [
                PageView(None, site, f"/{name}page", str(TODAY), at),
                PageView(None, site, f"/{name}page2", str(TODAY), at, invalid=robot),
                AdImpression(None, site, f"{name}ad", f"{name}user", str(TODAY)[:7], at),
                AdClick(None, site, f"{name}ad", f"{name}user", at),
            ]
    entries = [
        AdEntry(f"{name}ad", f"{name}name", f"{name}campaign", f"{name}advertiser")
        for name in ("my", TELLTALE)
    ]
    count(database, events, entries)
    counts = Counts()
    names = {"*": 120, OWN: 20, FOREIGN: 100}
    of_name = {(OWN, "/mypage"): 19, (FOREIGN, f"/{TELLTALE}page"): 99, (OWN, "myad"): 19}
    minute = now // 60_000
    by_minute = {
        (*name, at): number
        for name, number_now in of_name.items()
        for at, number in ((minute - 20, 1), (minute, number_now))
    }
    for queue in QUEUES:
        live.record(journal.redis, queue, Counted(names, counts, by_minute), time.time())
    spikes.announce(journal.redis, time.time(), 3, dict.fromkeys(QUEUES, 15))
    drops = [drop_of(FOREIGN), drop_of(OWN), drop_of(FOREIGN + ".example")]
    spikes.announce_drops(journal.redis, drops, time.time())
    rejection = Rejection(0, f'{{"Url":"{FOREIGN}"}}'.encode(), {"Meta": ["Missing."]})
    journal.write([Batch("b1", "page_view", b"[]")], dead_letters.keeping([rejection]))


LINKS = {
    "of a website": Share(OWN, None, None, 0),
    "of a campaign": Share(None, "mycampaign", None, 0),
    "of an advertiser": Share(OWN, None, "myadvertiser", 0),
}


@pytest.fixture(params=["a key", *LINKS])
def reader(
    request: pytest.FixtureRequest,
    client_with: MakeClient,
    database: Database,
    journal: RedisJournal,
) -> FlaskClient:
    """A client that may read OWN, or the ads of a campaign or an advertiser there."""
    hold_telltales(database, journal)
    client = client_with(
        admin_token=ADMIN_TOKEN,
        read_keys={KEY: frozenset({OWN})},
        share_secret=SECRET,
        write_keys={"a-write-key": frozenset[str]()},
    )
    if request.param == "a key":
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {KEY}"
    else:
        share = LINKS[request.param]._replace(until=int(time.time()) + 600)
        client.set_cookie(LINK_COOKIE, text_of(share, SECRET))
    return client


def described(client: FlaskClient, **headers: str) -> Any:
    return client.get("/openapi.json", headers=headers).get_json()["paths"]


def test_no_path_tells_a_reader_anything_of_others(reader: FlaskClient) -> None:
    every = described(reader, Authorization=f"Bearer {ADMIN_TOKEN}")
    assert {"/dead-letters", "/metrics", "/ads", "/reports/ads", "/live/snapshot"} <= set(every)
    nothing = reader.get("/nothing-is-here")
    for path, methods in every.items():
        filled = path.replace("{ad_id}", f"{TELLTALE}ad").replace("{letter_id}", "1-0")
        for (method, operation), query in product(methods.items(), QUERIES):
            answer = reader.open(f"{filled}?{query}", method=method)
            told = f"{answer.data.decode('latin-1')} {answer.headers}"
            assert TELLTALE not in told, (method, path, query)
            if path in PATHS_OF_EVERYBODY:
                assert answer.status_code == 200
            elif OPERATORS & set(operation["tags"]):
                assert (answer.status_code, answer.text) == (404, nothing.text), (method, path)
            elif path.startswith(("/reports", "/live/snap")):
                assert answer.status_code in (200, 400), (path, query, answer.text)
        for other in {"GET", "POST", "PUT", "DELETE"} - {method.upper() for method in methods}:
            if OPERATORS & {tag for operation in methods.values() for tag in operation["tags"]}:
                refused = reader.open(filled, method=other)
                assert (refused.status_code, refused.text) == (404, nothing.text), (other, path)


def test_what_is_described_for_readers_is_what_is_there_for_them(reader: FlaskClient) -> None:
    every = described(reader, Authorization=f"Bearer {ADMIN_TOKEN}")
    theirs = described(reader)
    for path, methods in every.items():
        tags = {tag for operation in methods.values() for tag in operation["tags"]}
        assert (path in theirs) == (not OPERATORS & tags)
    page = reader.get("/docs").text
    assert "/reports/ads" in page
    assert "dead-letters" not in page
    assert "DeadLetter" not in reader.get("/openapi.json").text


def test_the_dashboard_of_a_reader_has_nothing_of_operators(reader: FlaskClient) -> None:
    page = reader.get("/")
    assert page.status_code == 200
    assert "Ads" in page.text
    for text in ("Queues", "letters", "Operations"):
        assert text not in page.text
    as_operator = reader.get("/", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    assert {"Queues", "letters"} <= set(re.findall("Queues|letters", as_operator.text))


def test_the_snapshot_of_a_reader_has_only_theirs(reader: FlaskClient) -> None:
    found = reader.get("/live/snapshot").get_json()
    is_of_ads = found["views"] is None
    assert found["views"] in (None, 1)
    assert found["clicks"] == {"hits": 1, "clicks": 0}
    assert [(row["website"], row["impressions"]) for row in found["months"]] == [("*", 1)]
    assert [row["ad_id"] for row in found["ads"]] == ["myad"]
    assert [row["page"] for row in found["pages"]] == ([] if is_of_ads else ["/mypage"])
    assert (found["queues"], found["other"], found["folds"], found["told"]) == ([], {}, {}, {})
    drops = [spike["website"] for spike in found["spikes"] if spike.get("kind") == "drop"]
    assert drops == ([] if is_of_ads else [OWN])
    names = {(spike["queue"], spike["website"], spike["name"]) for spike in found["spikes"]}
    of_ads = {("ad_impression", OWN, "myad"), ("ad_click", OWN, "myad")}
    assert of_ads <= names
    assert {website for _, website, _ in names} == {OWN}
    assert not any("more" in spike for spike in found["spikes"])
    assert sum(minute["ad_click"] for minute in found["minutes"]) == 20
    views = {minute["page_view"] for minute in found["minutes"]}
    assert (views == {None}) == is_of_ads
    assert is_of_ads or sum(views) == 20
    elsewhere = reader.get(f"/live/snapshot?website={FOREIGN}").get_json()
    assert elsewhere["clicks"] == {"hits": 0, "clicks": 0}
    assert (elsewhere["months"], elsewhere["ads"], elsewhere["spikes"]) == ([], [], [])


def test_what_is_kept_for_one_reader_is_shown_to_no_other(
    client_with: MakeClient, database: Database, journal: RedisJournal
) -> None:
    hold_telltales(database, journal)
    client = client_with(
        admin_token=ADMIN_TOKEN,
        read_keys={KEY: frozenset({OWN}), "other-key": frozenset({FOREIGN}), "all": frozenset()},
    )
    found = {
        token: client.get("/live/snapshot", headers={"Authorization": f"Bearer {token}"}).get_json()
        for token in (ADMIN_TOKEN, KEY, "other-key", "all", KEY)
    }
    assert [snapshot["views"] for snapshot in found.values()] == [10, 1, 9, 10]
    assert [bool(snapshot["queues"]) for snapshot in found.values()] == [True, False, False, False]


def test_a_read_key_does_not_write_and_a_write_key_does_not_read(reader: FlaskClient) -> None:
    event = {"Type": "PageView", "Url": f"{OWN}/a"}
    for sent in ({"X-Write-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {}):
        assert reader.post("/events", json=event, headers=sent).status_code == 401
        assert reader.post(f"/events?key={KEY}", json=event).status_code == 401
    assert reader.post("/events?key=a-write-key", json=event).status_code == 202
    reader.delete_cookie(LINK_COOKIE)
    for sent in ({"Authorization": "Bearer a-write-key"}, {"Authorization": ""}):
        for path in ("/reports/clicks?key=a-write-key", "/live/snapshot"):
            headers = sent | {"X-Write-Key": "a-write-key"}
            assert reader.get(path, headers=headers).status_code == 401


# Over real connections.


@pytest.fixture(scope="module")
def server(shared_settings: Settings) -> Iterator[str]:
    """The URL of a gunicorn with a read key, links and a write key."""
    with gunicorn(
        shared_settings,
        shared_settings.data_dir,
        *("--workers", "1", "wsgi:app"),
        READ_KEYS=f"{KEY}={OWN}",
        SHARE_SECRET=SECRET,
        WRITE_KEYS="a-write-key",
        ADMIN_TOKEN=ADMIN_TOKEN,
    ) as url:
        with closing(Database(shared_settings.mongodb_url)) as database:
            ads.put(database, [AdEntry("myad", campaign="mycampaign")])
        yield url


@contextmanager
def watching(url: str, **identity: Any) -> Iterator[Iterator[str]]:
    """The events of a live stream with their data."""
    with httpx.stream("GET", f"{url}/live", timeout=20, **identity) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert next(lines) == "retry: 2000"
        yield (f"{line} {next(lines)}" for line in lines if line.startswith("event:"))


def tell(journal: RedisJournal, queue: str, table: str, *names: tuple[str, ...]) -> None:
    counts = Counts()
    for number, of in enumerate(names, 1):
        counts.add(table, of, [number, 0][: len(TABLES[table].counts)])
    live.record(journal.redis, queue, Counted({}, counts), time.time())


def drop_of(website: str) -> Spike:
    return Spike("ad_click", website, "", 20, 100.0, 3_600, kind="drop")


@pytest.mark.parametrize("campaign", [None, "mycampaign"])
def test_the_live_stream_tells_a_reader_only_of_theirs(
    server: str, journal: RedisJournal, campaign: str | None
) -> None:
    share = Share(None if campaign else OWN, campaign, None, int(time.time()) + 600)
    identity: dict[str, Any] = {"cookies": {LINK_COOKIE: text_of(share, SECRET)}}
    with watching(server, **identity) as events:
        tell(journal, "page_view", "views", ("*", "2026-11-24"), (FOREIGN, "2026-11-24"))
        tell(journal, "ad_click", "ads", (FOREIGN, f"{TELLTALE}ad"), (OWN, "myad"))
        for website, ad_id in ((FOREIGN, f"{TELLTALE}ad"), (OWN, "myad")):
            spike = Spike("ad_click", website, ad_id, 20, 1.0, 60, more=7)
            journal.redis.publish(live.SPIKE_CHANNEL, msgspec.json.encode(spike))
            journal.redis.publish(live.DROP_CHANNEL, msgspec.json.encode(drop_of(website)))
        told = [next(events) for _ in range(2 if campaign else 3)]
    assert not any(TELLTALE in event for event in told)
    data = {event.split()[1]: json.loads(event.partition("data: ")[2]) for event in told}
    assert campaign or data["drop"] == msgspec.to_builtins(drop_of(OWN))
    assert data["spike"] == msgspec.to_builtins(Spike("ad_click", OWN, "myad", 20, 1.0, 60))
    of_ad = {"website": OWN, "ad_id": "myad", "hits": 2, "clicks": 0}
    assert data["counts"].pop("ads") == [of_ad]
    assert data["counts"].pop("queue") == "ad_click"
    if campaign:
        sums = [{"website": name, "hits": 2, "clicks": 0} for name in (OWN, "*")]
        assert data["counts"].pop("clicks") == sums
    assert data["counts"] == {}


def test_a_read_key_watches_over_a_real_connection_and_a_write_key_does_not(
    server: str, journal: RedisJournal
) -> None:
    with watching(server, headers={"Authorization": f"Bearer {KEY}"}) as events:
        tell(journal, "page_view", "views", (FOREIGN, "2026-11-24"), (OWN, "2026-11-24"))
        told = next(events)
    assert OWN in told
    assert TELLTALE not in told
    for headers in ({}, {"Authorization": "Bearer a-write-key"}, {"X-Write-Key": "a-write-key"}):
        assert httpx.get(f"{server}/live", headers=headers).status_code == 401


def test_a_live_stream_ends_with_its_link(server: str) -> None:
    share = Share(OWN, None, None, int(time.time()) + 3)
    with watching(server, cookies={LINK_COOKIE: text_of(share, SECRET)}) as events:
        assert list(events) == []


def test_a_read_key_posts_nothing_over_a_socket(server: str) -> None:
    for auth in ({"key": KEY}, {"key": ADMIN_TOKEN}):
        client = Client(reconnection=False)
        with pytest.raises(Refused):
            client.connect(
                server,
                transports=["websocket"],
                auth=auth,
                headers={"Authorization": f"Bearer {KEY}"},
            )
    handshake = {"EIO": "4", "transport": "websocket"}
    raw = websocket.create_connection(
        f"{server.replace('http', 'ws', 1)}/socket.io/?{httpx.QueryParams(handshake)}",
        header=[f"Authorization: Bearer {KEY}", f"X-Write-Key: {KEY}"],
        timeout=20,
    )
    assert str(raw.recv()).startswith("0{")
    raw.send("40")
    assert "A write key is needed." in str(raw.recv())
    raw.close()

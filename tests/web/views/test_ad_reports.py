from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from flask.testing import FlaskClient

from app.domain.events import AdClick, AdImpression, PageView
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from tests.support.counting import count_batch
from tests.support.waiting import wait_until
from tests.web.conftest import MakeClient


def ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


NOON = ms("2026-11-24T12:30:00Z")
DAY = 24 * 3600 * 1000


def shown(user: str, ad_id: str, time: int = NOON, website: str = "a.com") -> AdImpression:
    month = datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m")
    return AdImpression(None, website, ad_id, user, month, time)


@pytest.fixture
def counted(database: Database, client: FlaskClient) -> FlaskClient:
    """A client of a collector that has counted two ads on two websites over two days."""
    counting = Counting(database, ClickRule(3, "user"))
    views = [PageView(None, "a.com", "/", "2026-11-24", NOON)]
    impressions = [
        *(shown("u1", "34") for _ in range(2)),
        shown("u2", "34", website="b.com"),
        shown("u1", "34", NOON - DAY),
        shown("u3", "=5"),
    ]
    hits = [AdClick(None, "a.com", "34", "u1", NOON + n) for n in range(3)]
    for kind, events in ((PageView, views), (AdImpression, impressions), (AdClick, hits)):
        count_batch(database, counting, str(kind), kind, events)
    return client


def get(client: FlaskClient, path: str, **query: str) -> Any:
    response = client.get(f"/reports/{path}?{urlencode(query)}")
    assert response.status_code == 200, response.text
    return response.get_json()


def test_ads_are_reported_with_all_their_figures_and_totals(counted: FlaskClient) -> None:
    counted.put("/ads/34", json={"name": "Autumn", "campaign": "c1", "advertiser": "ACME"})
    report = get(counted, "ads")
    assert report["items"][0] == {
        "ad_id": "34",
        "name": "Autumn",
        "campaign": "c1",
        "advertiser": "ACME",
        "impressions": 4,
        "reach": 2,
        "frequency": 2.0,
        "hits": 3,
        "clicks": 1,
        "ctr": 0.25,
        "hit_rate": 0.75,
        "rendered": 4,
        "viewable_rate": 1.0,
    }
    assert (report["totals"]["impressions"], report["totals"]["reach"]) == (5, 3)
    assert set(report) == {"items", "totals", "next_cursor"}


def test_an_ad_on_one_website_is_reported_by_day(counted: FlaskClient) -> None:
    report = get(
        counted,
        "ads",
        **{"by": "day", "website": "WWW.a.com", "ad_id": "34", "from": "2026-11-20", "sort": "day"},
    )
    assert [
        (row["day"], row["impressions"], row["reach"], row["clicks"], row["ctr"])
        for row in report["items"]
    ] == [("2026-11-23", 1, 1, 0, 0.0), ("2026-11-24", 2, 1, 1, 0.5)]
    assert report["totals"]["reach"] == 1


def test_a_campaign_unites_its_ads_and_ads_without_one_are_under_null(
    counted: FlaskClient,
) -> None:
    for ad_id in ("34", "=5"):
        counted.put(f"/ads/{ad_id}", json={"campaign": "both"})
    report = get(counted, "ads", by="campaign")
    assert [(row["campaign"], row["reach"]) for row in report["items"]] == [("both", 3)]
    counted.delete("/ads/=5")
    report = get(counted, "ads", by="campaign", sort="reach")
    assert [(row["campaign"], row["reach"]) for row in report["items"]] == [("both", 2), (None, 1)]
    assert get(counted, "ads", campaign="both")["totals"]["impressions"] == 4
    assert get(counted, "ads", campaign="none")["items"] == []


def test_the_previous_days_are_reported_alongside(counted: FlaskClient) -> None:
    days = {"from": "2026-11-24", "to": "2026-11-24", "compare": "previous"}
    report = get(counted, "ads", **days)
    assert [(row["ad_id"], row["previous"]["impressions"]) for row in report["items"]] == [
        ("34", 1),
        ("=5", 0),
    ]
    assert report["totals"]["previous"]["reach"] == 1
    assert report["compared"] == {"from": "2026-11-23", "to": "2026-11-23"}
    text = counted.get(f"/reports/ads?{urlencode(days | {'format': 'csv'})}").text.splitlines()
    assert text[0].split(",")[-1] == "previous_viewable_rate"
    assert text[1].split(",")[:5] == ["34", "", "", "", "3"]
    assert text[2].startswith("'=5,")


def test_the_pages_of_an_ad_report_are_linked(counted: FlaskClient) -> None:
    first = get(counted, "ads", limit="1")
    second = get(counted, "ads", limit="1", cursor=first["next_cursor"])
    assert [row["ad_id"] for page in (first, second) for row in page["items"]] == ["34", "=5"]
    assert first["totals"] == second["totals"]
    assert second["next_cursor"] is None


def test_a_cursor_is_valid_only_for_its_own_report_and_order(counted: FlaskClient) -> None:
    cursor = get(counted, "ads", limit="1")["next_cursor"]
    for other in ({"by": "website"}, {"sort": "reach"}):
        response = counted.get("/reports/ads", query_string={"cursor": cursor, **other})
        assert response.status_code == 400
        assert set(response.get_json()["errors"]) == {"cursor"}


def test_traffic_is_in_order_with_empty_hours_and_days(counted: FlaskClient) -> None:
    days = {"from": "2026-11-23", "to": "2026-11-24"}
    rows = get(counted, "traffic", by="hour", limit="1000", **days)["items"]
    assert len(rows) == 48
    assert rows[36] == {
        "time": "2026-11-24T12+00:00",
        "views": 1,
        "impressions": 4,
        "hits": 3,
        "clicks": 1,
    }
    assert sum(row["impressions"] for row in rows) == 5
    by_day = get(counted, "traffic", website="a.com", **{"from": "2026-11-22", "to": "2026-11-24"})
    assert [tuple(row.values()) for row in by_day["items"]] == [
        ("2026-11-22", 0, 0, 0, 0),
        ("2026-11-23", 0, 1, 0, 0),
        ("2026-11-24", 1, 3, 3, 1),
    ]
    assert [row["time"] for row in get(counted, "traffic", by="week")["items"]] == ["2026-W48"]
    assert [row["impressions"] for row in get(counted, "traffic", by="month")["items"]] == [5]


def test_traffic_is_paged(counted: FlaskClient) -> None:
    days = {"from": "2026-11-23", "to": "2026-11-25", "limit": "2"}
    first = get(counted, "traffic", **days)
    second = get(counted, "traffic", cursor=first["next_cursor"], **days)
    times = [row["time"] for page in (first, second) for row in page["items"]]
    assert times == ["2026-11-23", "2026-11-24", "2026-11-25"]
    assert second["next_cursor"] is None


def test_the_hour_repeated_in_autumn_is_listed_twice(
    database: Database, client_with: MakeClient
) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    client = client_with(timezone=berlin)
    counting = Counting(database, ClickRule(3, "user"), berlin)
    moments = [ms("2026-10-25T00:30:00Z"), *[ms("2026-10-25T01:30:00Z")] * 2]
    events = [AdImpression(None, "a.com", "1", "u", "2026-10", moment) for moment in moments]
    count_batch(database, counting, "b", AdImpression, events)
    days = {"from": "2026-10-25", "to": "2026-10-25"}
    rows = get(client, "traffic", by="hour", **days)["items"]
    assert len(rows) == 25
    assert [(row["time"], row["impressions"]) for row in rows[2:4]] == [
        ("2026-10-25T02+02:00", 1),
        ("2026-10-25T02+01:00", 2),
    ]
    spring = {"from": "2026-03-29", "to": "2026-03-29"}
    assert len(get(client, "traffic", by="hour", **spring)["items"]) == 23


def test_frequency_covers_one_month_by_default_the_current_one(counted: FlaskClient) -> None:
    rows = get(counted, "frequency", month="2026-11")["items"]
    assert [row["users"] for row in rows] == [2, 0, 1, 0, 0, 0, 0, 0]
    assert rows[-1]["impressions"] == "8+"
    of_ad = get(counted, "frequency", month="2026-11", ad_id="=5", website="a.com")["items"]
    assert of_ad[0] == {"impressions": 1, "users": 1}
    assert len(get(counted, "frequency")["items"]) == 8
    text = counted.get("/reports/frequency?month=2026-11&format=csv").text
    assert text.splitlines()[:2] == ["impressions,users", "1,2"]


@pytest.mark.parametrize("path", ["ads", "traffic", "frequency"])
def test_an_unknown_website_is_reported(client: FlaskClient, path: str) -> None:
    query = {"website": "never.example"}
    if path == "traffic":
        assert get(client, path, **query)["unknown"] == ["website"]
    elif path == "ads":
        report = get(client, path, **query)
        assert (report["items"], report["unknown"]) == ([], ["website"])
        assert report["totals"]["impressions"] == 0


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("ads?by=", "by"),
        ("ads?by=ad,ad", "by"),
        ("ads?by=hour", "by"),
        ("ads?by=day,week", "by"),
        ("ads?by=ad,website,campaign,day", "by"),
        ("ads?sort=name", "sort"),
        ("ads?sort=day", "sort"),
        ("ads?compare=previous", "from"),
        ("ads?compare=last&from=2026-11-01", "compare"),
        ("ads?compare=year&from=0001-01-01", "from"),
        ("ads?compare=previous&from=0001-01-01", "from"),
        ("ads?from=2026-11-02&to=2026-11-01", "to"),
        ("ads?month=2026-11", "month"),
        ("ads?cursor=zzz", "cursor"),
        ("ads?ad_id=1&ad_id=2", "ad_id"),
        ("ads?compare=previous&from=9000-01-01", "from"),
        ("traffic?by=hour&from=9999-12-31", "from"),
        ("traffic?by=hour&to=9999-12-31", "to"),
        ("traffic?by=hour&from=0001-01-01&to=0001-01-01", "from"),
        ("traffic?by=minute", "by"),
        ("traffic?by=hour&from=2020-01-01&to=2026-01-01", "from"),
        ("traffic?from=0001-01-01&to=9999-12-31", "from"),
        ("traffic?from=2026-11-02&to=2026-11-01", "to"),
        ("traffic?ad_id=34", "ad_id"),
        ("traffic?cursor=zzz", "cursor"),
        ("frequency?month=2026-13", "month"),
        ("frequency?from=2026-11-01", "from"),
        ("frequency?limit=10", "limit"),
    ],
)
def test_a_wrong_or_unsuitable_parameter_is_named(
    counted: FlaskClient, query: str, parameter: str
) -> None:
    response = counted.get(f"/reports/{query}")
    assert response.status_code == 400, response.text
    assert set(response.get_json()["errors"]) == {parameter}


@pytest.mark.parametrize("path", ["ads", "traffic", "frequency"])
def test_an_operator_must_show_the_admin_token(client_with: MakeClient, path: str) -> None:
    client = client_with(admin_token="secret")
    assert client.get(f"/reports/{path}").status_code == 401
    headers = {"Authorization": "Bearer secret"}
    assert client.get(f"/reports/{path}", headers=headers).status_code == 200


def test_websites_are_reported_with_views_and_the_figures_of_their_ads(
    counted: FlaskClient,
) -> None:
    report = get(counted, "websites", sort="views")
    assert [(row["website"], row["views"], row["impressions"]) for row in report["items"]] == [
        ("a.com", 1, 4),
        ("b.com", 0, 1),
    ]
    assert report["totals"]["reach"] == 3
    first = get(counted, "websites", limit="1")
    rest = get(counted, "websites", limit="1", cursor=first["next_cursor"])
    assert [*first["items"], *rest["items"]] == report["items"]
    lines = counted.get("/reports/websites?format=csv").text.splitlines()
    assert lines[0] == "website,views,impressions,reach,frequency,hits,clicks,ctr"
    assert lines[1].startswith("a.com,1,4,")
    assert get(counted, "websites", website="never.com")["unknown"] == ["website"]
    assert counted.get("/reports/websites?sort=rendered").status_code == 400


def test_an_answer_may_be_a_moment_old_only_for_a_client_that_says_so(
    database: Database, counted: FlaskClient
) -> None:
    stale = {"Cache-Control": "max-stale=1"}

    def impressions(path: str, **headers: str) -> Any:
        answer = counted.get(path, headers=headers).get_json()
        return answer["totals"]["impressions"]

    path = "/reports/ads?by=website"
    assert impressions(path, **stale) == 5
    counting = Counting(database, ClickRule(3, "user"))
    count_batch(database, counting, "later", AdImpression, [shown("u9", "34")])
    assert impressions(path) == 6
    assert impressions(path, **stale) in (5, 6)
    wait_until(lambda: impressions(path, **stale) == 6)
    csv = counted.get(f"{path}&format=csv", headers=stale)
    assert csv.mimetype == "text/csv"
    assert counted.get("/reports/ads?by=nothing", headers=stale).status_code == 400

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.cli.simulation import MAX_DAYS, Expectation, SimulatedEvent, simulate
from app.domain.reader import EventReader
from tests.support.collector import BIN, CLEAN, start_stack

END = datetime(2026, 11, 24, tzinfo=UTC)


def made(events: int = 500, seed: int = 1, days: int = 30) -> list[SimulatedEvent]:
    return list(simulate(events, seed, 3, 50, days, END))


def test_the_same_seed_makes_the_same_events() -> None:
    assert made(seed=7) == made(seed=7)
    assert made(seed=7) != made(seed=8)


def test_events_are_in_order_of_time_within_the_requested_days() -> None:
    times = [event.time for event in made(days=10)]
    assert times == sorted(times)
    assert END - timedelta(days=10) <= times[0]
    assert times[-1] < END


def test_every_kind_occurs_and_every_event_has_its_own_id() -> None:
    events = made()
    assert {event.kind for event in events} == {"PageView", "AdImpression", "AdClick"}
    assert len({event.sent["EventId"] for event in events}) == len(events)


def test_the_collector_reads_each_event_as_intended() -> None:
    events = made(2_000, days=MAX_DAYS)
    reader = EventReader(UTC, clock=END.timestamp)
    read, rejections = reader.read([json.dumps(event.sent).encode() for event in events])
    assert rejections == []
    for event, found in zip(events, read, strict=True):
        assert type(found).__name__ == event.kind
        assert found.website == event.website
        assert getattr(found, "page", event.page) == event.page
        assert getattr(found, "ad_id", event.ad) == event.ad
        assert getattr(found, "user_id", event.user) == event.user


def expected(*events: SimulatedEvent, **rule: Any) -> dict[str, list[tuple[Any, ...]]]:
    settings: dict[str, Any] = {
        "timezone": UTC,
        "click_hits": 3,
        "click_scope": "user",
        "now": END,
    } | rule
    expectation = Expectation(**settings)
    for event in events:
        expectation.add(event)
    return {
        path: [tuple(row.values()) for row in rows] for path, rows in expectation.reports().items()
    }


def event(kind: str, hours_ago: int, ad: str = "1") -> SimulatedEvent:
    return SimulatedEvent({}, kind, "a.com", "/p", "u", ad, END - timedelta(hours=hours_ago))


def test_the_expectation_counts_views_by_page_and_by_day() -> None:
    found = expected(event("PageView", 50), event("PageView", 1), event("PageView", 2))
    assert found["page-views"] == [("a.com", "/p", 3)]
    assert found["page-views/daily"] == [("2026-11-21", 1), ("2026-11-22", 0), ("2026-11-23", 2)]


def test_the_expectation_counts_days_and_months_in_the_time_zone() -> None:
    end_of_october = int((END - datetime(2026, 10, 31, 23, 30, tzinfo=UTC)).total_seconds() / 3600)
    found = expected(event("AdImpression", end_of_october), timezone=ZoneInfo("Asia/Tokyo"))
    assert found["impressions"] == [
        ("2026-11", "*", 1, 1, False),
        ("2026-11", "a.com", 1, 1, False),
    ]
    found = expected(event("AdImpression", end_of_october + 1))
    assert found["impressions"] == [("2026-10", "*", 1, 1, True), ("2026-10", "a.com", 1, 1, True)]


@pytest.mark.parametrize(
    ("scope", "rows"),
    [
        ("user", [("a.com", "2", 1, 1), ("a.com", "1", 3, 0)]),
        ("ad", [("a.com", "1", 3, 1), ("a.com", "2", 1, 0)]),
    ],
)
def test_the_expectation_follows_the_click_rule(scope: str, rows: list[tuple[Any, ...]]) -> None:
    hits = [event("AdClick", 9), event("AdClick", 8), event("AdClick", 7, "2"), event("AdClick", 6)]
    assert expected(*hits, click_scope=scope)["clicks"] == rows


def test_the_expectation_counts_ads_by_day_hour_and_frequency() -> None:
    shown = [event("AdImpression", hours) for hours in (30, 3, 2)]
    found = expected(*shown, *(event("AdClick", hours) for hours in (29, 2, 1)))
    assert [row[0:1] + row[4:9] for row in found["ads?by=ad"]] == [("1", 3, 1, 3.0, 3, 1)]
    assert [(row[2], *row[6:8], *row[9:11]) for row in found["ads?by=ad,website,day"]] == [
        ("2026-11-23", 2, 1, 2, 1),
        ("2026-11-22", 1, 1, 1, 0),
    ]
    hours = {row[0]: row[1:] for row in found["traffic?by=hour"]}
    assert len(hours) == 48
    assert {hour: counts for hour, counts in hours.items() if any(counts)} == {
        "2026-11-22T18+00:00": (0, 1, 0, 0),
        "2026-11-22T19+00:00": (0, 0, 1, 0),
        "2026-11-23T21+00:00": (0, 1, 0, 0),
        "2026-11-23T22+00:00": (0, 1, 1, 0),
        "2026-11-23T23+00:00": (0, 0, 1, 1),
    }
    assert found["frequency?month=2026-11"][2] == (3, 1)


def test_days_beyond_what_the_collector_accepts_are_dropped_with_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "eventstream", "simulate", "--events", "50", "--days", "45"],
        env=CLEAN | {"DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "34 days" in done.stderr
    read, rejections = EventReader(UTC).read(done.stdout.encode().splitlines())
    assert (len(read), rejections) == (50, [])


def test_live_traffic_needs_a_collector() -> None:
    command = [str(BIN / "eventstream"), "simulate", "--live", "--url", "nowhere"]
    done = subprocess.run(
        command, env=CLEAN, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert "nowhere/ is not the URL of a collector" in done.stderr


@pytest.mark.proof
def test_reports_of_simulated_traffic_match_exactly_even_if_it_is_sent_twice(
    tmp_path: Path,
) -> None:
    events, want = tmp_path / "e.ndjson", tmp_path / "want.json"
    # With rules that no other test uses: the tests of the archive cover the default ones.
    rules = {"CLICK_SCOPE": "ad", "CLICK_HITS": "2", "TIMEZONE": "America/New_York"}
    with start_stack(tmp_path, **rules) as stack:
        simulated = stack.run(
            *("eventstream", "simulate", "--events", "3000", "--seed", "7", "--days", "45"),
            *("--expect", str(want)),
        )
        events.write_text(simulated.stdout)
        wanted = json.loads(want.read_text())
        months = {row["month"] for row in wanted["impressions"]}
        assert len(months) > 1
        for _ in range(2):
            sent = stack.run("eventstream", "send", str(events))
            assert sent.stdout == "accepted 3000, rejected 0\n"
            stack.run("eventstream", "drain")
            for month in months:
                stack.run("eventstream", "aggregate", month)
            found = {path: stack.items(path) for path in wanted}
            assert found == wanted

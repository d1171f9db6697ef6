from collections.abc import Mapping
from typing import Any

import pytest

from app.domain.events import PageView
from app.redis import counters
from app.redis.counters import ACCEPTED, APPLIED, WRITE_SECONDS, Counts

VIEW = PageView(None, "site1.com", "/a", "2026-11-24")


def test_counts_are_handed_out_once() -> None:
    counts = Counts()
    counts.count(APPLIED, "PageView", 3)
    counts.count(APPLIED, "PageView")
    with counts.taken() as first, counts.taken(every=0) as second:
        assert first == {"eventstream_events_applied|PageView": 4}
        assert second == {}


def test_counts_that_could_not_be_written_are_kept_for_the_next_time() -> None:
    counts = Counts()
    counts.count(APPLIED, "PageView")
    with pytest.raises(OSError, match="away"), counts.taken():
        raise OSError("away")
    counts.count(APPLIED, "PageView")
    with counts.taken(every=0) as added:
        assert added == {"eventstream_events_applied|PageView": 2}


def test_counts_are_handed_out_no_more_often_than_requested() -> None:
    counts = Counts()
    with counts.taken():
        counts.count(APPLIED, "PageView")
    with counts.taken(every=1000) as added:
        assert added == {}
    with counts.taken(every=0) as added:
        assert added == {"eventstream_events_applied|PageView": 1}


@pytest.mark.parametrize(
    ("seconds", "bound"), [(0.0, "0.001"), (0.001, "0.001"), (0.0011, "0.0025"), (21.5, "+Inf")]
)
def test_an_amount_falls_into_the_first_bucket_that_holds_it(seconds: float, bound: str) -> None:
    counts = Counts()
    counts.observe(WRITE_SECONDS, seconds)
    with counts.taken() as added:
        assert added == {
            f"eventstream_write_seconds||{bound}": 1,
            "eventstream_write_seconds||sum": round(seconds * 1_000_000),
        }


MISSING = ["Missing data for required field."]


@pytest.mark.parametrize(
    ("errors", "field"),
    [
        ({"Url": MISSING}, "Url"),
        ({"Type": MISSING, "Url": MISSING}, "Type"),
        ({"Meta": {"UserId": MISSING, "AdId": MISSING}}, "Meta.UserId"),
        ({"Meta": {"_schema": MISSING}}, "Meta"),
        ({"Meta": MISSING}, "Meta"),
        ({"_schema": ["Not a JSON object."]}, "event"),
    ],
)
def test_a_rejected_event_is_counted_under_its_first_wrong_field(
    errors: Mapping[str, Any], field: str
) -> None:
    counts = counters.of_events([VIEW, VIEW], [errors])
    assert counts == {
        f"{ACCEPTED.name}|PageView": 2,
        f"eventstream_events_rejected|{field}": 1,
    }

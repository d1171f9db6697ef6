import logging
from datetime import UTC, datetime, timedelta

import pytest

from app.domain.events import PageView
from app.store import clock, documents, ledger
from app.store.counting import Counting
from app.store.database import Database
from tests.conftest import SetClock
from tests.support.counting import count_batch

DAYS = timedelta(days=9)


def test_the_clocks_of_this_machine_and_its_database_agree(
    database: Database, set_clock: SetClock
) -> None:
    set_clock(timedelta())
    assert abs(clock.difference(database)) < timedelta(seconds=1)
    assert clock.agree(database)


@pytest.mark.parametrize("ahead", [DAYS, timedelta(seconds=70), timedelta(seconds=-70), -DAYS])
def test_a_wrong_clock_is_detected_and_logged_at_most_once_a_minute(
    database: Database, set_clock: SetClock, ahead: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    set_clock(ahead)
    assert not clock.agree(database)
    assert not clock.agree(database)
    assert abs(clock.difference(database) - ahead) < timedelta(seconds=1)
    right = datetime.now(UTC)
    wrong = right + ahead
    near = timedelta(seconds=2)
    assert abs(clock.earliest(database) - min(right, wrong)) < near
    assert abs(clock.latest(database) - max(right, wrong)) < near
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert f"{ahead.total_seconds():+.0f} s from the database's" in record.message


def test_a_difference_of_less_than_a_minute_is_tolerated(
    database: Database, set_clock: SetClock
) -> None:
    set_clock(timedelta(seconds=50))
    assert clock.agree(database)


def test_a_claim_lives_for_seven_days_even_if_its_writers_clock_was_days_behind(
    database: Database, counting: Counting, set_clock: SetClock
) -> None:
    set_clock(-DAYS)
    count_batch(database, counting, "b1", PageView, [PageView("e1", "a.com", "/", "2026-11-24")])
    assert ledger.expire(database, datetime.now(UTC) + timedelta(days=6)) == 0
    assert database[documents.Claim].count_documents({}) == 1
    assert ledger.expire(database, datetime.now(UTC) + timedelta(days=8)) > 0

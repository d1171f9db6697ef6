import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.counting.forget import Forgotten, forget
from app.domain.events import AdClick, AdImpression, Rejection
from app.domain.user_ids import UserHash
from app.journal.redis_journal import RedisJournal
from app.outputs.archive import Archive
from app.redis import dead_letters
from app.store import documents, reports
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from tests.support.counting import count_batch

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
MONTHS = ("2026-10", "2026-11")
ONE, MONTHLY = (
    UserHash("a secret of some length"),
    UserHash("a secret of some length", monthly=True),
)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(f"file://{tmp_path}/archive")


def rows(database: Database) -> list[object]:
    return [
        reports.impressions(database, Page()).items,
        reports.clicks(database, Page()).items,
    ]


def keys(database: Database) -> str:
    found = (database[document].find({}) for document in (documents.User, documents.HitTally))
    return " ".join(row["_id"] for of_document in found for row in of_document)


@pytest.mark.parametrize("scope", ["user", "ad"])
@pytest.mark.parametrize("hash_user", [None, ONE, MONTHLY], ids=["as it came", "hashed", "monthly"])
def test_a_user_is_forgotten_under_every_id_and_all_counts_stay(
    database: Database,
    journal: RedisJournal,
    archive: Archive,
    scope: str,
    hash_user: UserHash | None,
) -> None:
    def known_as(user: str, month: str) -> str:
        return hash_user(user, month) if hash_user else user

    counting = Counting(database, ClickRule(3, scope))  # type: ignore[arg-type]
    shown = [
        AdImpression(None, website, "1", known_as(user, month), month)
        for website in ("a.com", "b.com")
        for user in ("user-1", "user-2")
        for month in MONTHS
    ]
    hits = [
        AdClick(None, "a.com", ad, known_as(user, month), int(f"2026{month[-2:]}"))
        for ad in ("1", "2")
        for user in ("user-1", "user-2")
        for month in MONTHS
    ]
    count_batch(database, counting, "b1", AdImpression, shown)
    count_batch(database, counting, "b2", AdClick, hits)
    archive.write("ad_impression", {"b1": shown})
    archive.write("ad_click", {"b2": hits})
    before = rows(database)

    found = forget("user-1", hash_user, database, archive, journal.redis, NOW)
    histories = (2 if scope == "ad" else 1) * (2 if hash_user is MONTHLY else 1)
    numbers = len(MONTHS) if hash_user is MONTHLY else 1
    assert found == Forgotten(numbers, histories, len(shown + hits) // 2, 0)
    assert rows(database) == before
    kept = keys(database) + "".join(
        str(archive.read(name))
        for queue in ("ad_impression", "ad_click")
        for name in archive.files(queue)
    )
    for month in MONTHS:
        assert known_as("user-1", month) not in kept
        assert known_as("user-2", month) in kept
    assert forget("user-1", hash_user, database, archive, journal.redis, NOW) == Forgotten(
        0, 0, 0, 0
    )


def test_ids_from_before_the_secret_was_set_are_forgotten_too(
    database: Database, journal: RedisJournal, archive: Archive
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    count_batch(database, counting, "b1", AdClick, [AdClick(None, "a.com", "1", "user-1", 5)])
    assert forget("user-1", ONE, database, archive, journal.redis, NOW).click_histories == 1


def test_a_forgotten_user_is_counted_as_a_new_one(
    database: Database, journal: RedisJournal, archive: Archive
) -> None:
    event = AdImpression(None, "a.com", "1", "user-1", "2026-11")
    count_batch(database, Counting(database, ClickRule(3, "user")), "b1", AdImpression, [event])
    forget("user-1", None, database, archive, journal.redis, NOW)
    count_batch(database, Counting(database, ClickRule(3, "user")), "b2", AdImpression, [event])
    assert [row["visitors"] for row in reports.impressions(database, Page()).items] == [
        2,
        2,
    ]


def test_only_the_users_rejected_events_are_dropped(
    database: Database, journal: RedisJournal, archive: Archive
) -> None:
    events: list[object] = [{"Meta": {"UserId": user}} for user in ("7", 7, "77", None)]
    events += [{"Meta": 7}, {"UserId": 7}, 7, None]
    rejections = [Rejection(0, json.dumps(event).encode(), {}) for event in events]
    journal.write([], dead_letters.keeping([*rejections, Rejection(0, b"{no json", {})]))
    assert forget("7", ONE, database, archive, journal.redis, NOW).dead_letters == 2
    kept = [bytes(letter.event) for letter in dead_letters.newest(journal.redis, 100)]
    assert kept[::-1][:-1] == [rejection.event for rejection in rejections[2:]]


def test_a_forgotten_user_is_a_new_visitor_even_if_a_worker_remembers_the_old_one(
    database: Database, journal: RedisJournal, archive: Archive
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    shown = [AdImpression(None, "a.com", "1", user, MONTHS[1]) for user in ("user-1", "user-2")]
    count_batch(database, counting, "before", AdImpression, shown)
    count_batch(database, counting, "again", AdImpression, shown)
    assert [row["visitors"] for row in reports.impressions(database, Page()).items] == [
        2,
        2,
    ]
    for times in (1, 2):
        forget("user-1", None, database, archive, journal.redis, NOW)
        count_batch(database, counting, f"after {times}", AdImpression, shown)
        found = [row["visitors"] for row in reports.impressions(database, Page()).items]
        assert found == [2 + times] * 2

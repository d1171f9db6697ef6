"""The schema: the version of a database, and the steps that bring it to this release's version.

The version is the number of MIGRATIONS that were applied to the database. A step is safe while
workers of this release and of the previous one are running. Running a step again changes nothing
more, so the next `migrate` completes one that was interrupted. Add a step for each change of a
document or an index.
"""

from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, timedelta
from typing import Any, NamedTuple

import msgspec
from pymongo import ReplaceOne, UpdateOne
from pymongo.errors import DuplicateKeyError

from app.domain.calendar import day_of
from app.errors import Unavailable
from app.store import clock, ledger
from app.store.database import Database, Session, deadline
from app.store.documents import (
    ALL_WEBSITES,
    COLLECTIONS,
    SEEN_SECONDS,
    Clicks,
    ClickTotals,
    HitTally,
    Schema,
    SeenEvent,
    key,
)
from app.store.errors import NewerDatabase

PREPARE_SECONDS = 20.0
START_SECONDS = 2.0
CHUNK_SECONDS = 60.0
INDEX_SECONDS = 24 * 3600.0
AT_ONCE = 500

_THIS = {"_id": "version"}


class Step(NamedTuple):
    """A step: a short description, and a function that returns how many documents it changed."""

    does: str
    run: Callable[[Database], int]


def prepare(database: Database) -> None:
    """Set up the database for this release if it is empty.

    Raises Unavailable if the database can't be reached or has another release's schema. The error
    says what to do.
    """
    with deadline(PREPARE_SECONDS):
        version = _version(database)
        if version != len(MIGRATIONS):
            raise Unavailable("database", _sentence(version))


def migrate(database: Database, say: Callable[[str], None]) -> None:
    """Bring the database to this release's schema. Calls `say` with a sentence after each step.

    Raises Unavailable if the database can't be reached or belongs to a newer release.
    """
    with deadline(PREPARE_SECONDS):
        version = _version(database)
    if version > len(MIGRATIONS):
        raise Unavailable("database", _sentence(version))
    for number, step in enumerate(MIGRATIONS[version:], version + 1):
        changed = step.run(database)
        with deadline(PREPARE_SECONDS):
            database[Schema].update_one(_THIS, {"$max": {"version": number}}, upsert=True)
        say(f"schema {number}: {step.does}, {changed} documents changed")


def version(database: Database) -> int:
    """The schema version of the database. Raises Unavailable if it can't be reached."""
    with deadline(PREPARE_SECONDS):
        return _version(database)


def refuse_newer(url: str) -> None:
    """Raise NewerDatabase if the database at this URL belongs to a newer release.

    If the database can't be reached, nothing is raised: accepted events wait for it. Call this
    before any fork.
    """
    try:
        with closing(Database(url)) as database, deadline(START_SECONDS):
            found = _stamp(database)
    except Unavailable:
        return
    if found is not None and found > len(MIGRATIONS):
        raise NewerDatabase(_sentence(found))


def is_empty(database: Database) -> bool:
    """Whether nothing has been counted into this database. Raises pymongo's errors."""
    return not any(
        database[document].find_one({}, {"_id": 1})
        for document in COLLECTIONS
        if document is not Schema
    )


def _version(database: Database) -> int:
    if _stamp(database) is None and is_empty(database):
        database.create_collections()
        made = {"$setOnInsert": {"version": len(MIGRATIONS)}}
        with suppress(DuplicateKeyError):  # another process was faster
            database[Schema].update_one(_THIS, made, upsert=True)
    # Read the version again, because another process may have set up the database just now.
    return _stamp(database) or 0


def _stamp(database: Database) -> int | None:
    found = database[Schema].find_one(_THIS)
    return found["version"] if found else None


def _sentence(version: int) -> str:
    if version > len(MIGRATIONS):
        return (
            f"The database is of a newer release (schema {version}, this one knows "
            f"{len(MIGRATIONS)}): upgrade this program."
        )
    return (
        f"The database is of an older release (schema {version}, this one needs "
        f"{len(MIGRATIONS)}): run `eventstream migrate`."
    )


def _make_indexes(database: Database) -> int:
    with deadline(INDEX_SECONDS):
        database.create_collections()
    return 0


def _date_click_histories(database: Database) -> int:
    """Add the day of the last hit to click histories, which would never expire without it."""
    changed = 0
    while True:
        with deadline(CHUNK_SECONDS):
            found = database.transaction(_date_chunk)
        if not found:
            return changed
        changed += found


def _date_chunk(session: Session) -> int:
    undated = session[HitTally].find({"last_day": {"$exists": False}}, {"latest": 1})
    updates = [
        UpdateOne({"_id": tally["_id"]}, {"$set": {"last_day": _last_day(tally)}})
        for tally in undated.limit(AT_ONCE)
    ]
    if updates:
        session[HitTally].bulk_write(updates, ordered=False)
    return len(updates)


def _last_day(tally: dict[str, Any]) -> str:
    times = [time for time, *_ in msgspec.json.decode(tally["latest"])]
    return day_of(max(times, default=0), UTC)


def _sum_up_clicks(database: Database) -> int:
    """Recompute the clicks of each website as the sums over its ads."""
    with deadline(CHUNK_SECONDS):
        return database.transaction(_sum_up_websites)


def _sum_up_websites(session: Session) -> int:
    # Folding clicks also writes the total of all websites. So if both happen at the same time, the
    # transactions conflict, and one of them runs again.
    totals: dict[str, dict[str, Any]] = {}
    for row in session[Clicks].find({}):
        for website in (row["website"], ALL_WEBSITES):
            new = {"_id": key(website), "website": website, "hits": 0, "clicks": 0}
            total = totals.setdefault(website, new)
            for count in ("hits", "clicks"):
                total[count] += row[count]
    if totals:
        session[ClickTotals].bulk_write(
            [ReplaceOne({"_id": total["_id"]}, total, upsert=True) for total in totals.values()],
            ordered=False,
        )
    return len(totals)


def _limit_seen_events(database: Database) -> int:
    """Set when the last id of the first release expires. Workers look them up until then."""
    database.create_collections()
    with deadline(CHUNK_SECONDS):
        if database[SeenEvent].find_one({}, {"_id": 1}) is None:
            return 0
        until = clock.latest(database) + timedelta(seconds=SEEN_SECONDS)
        database[Schema].update_one(
            ledger.SEEN_EVENTS, {"$setOnInsert": {"until": until}}, upsert=True
        )
    return 1


def _begin_outbox(_: Database) -> int:
    """Change nothing but the version: workers of 0.2 must stop counting, as they know no outbox."""
    return 0


MIGRATIONS = (
    Step("collections and indexes", _make_indexes),
    Step("the last day of click histories", _date_click_histories),
    Step("clicks of each website", _sum_up_clicks),
    Step("event ids of each website", _limit_seen_events),
    Step("an outbox for the archive and the mirror", _begin_outbox),
)

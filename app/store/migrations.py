"""The schema: the version of a database, and the steps that bring it to this release's version.

The version is the number of MIGRATIONS that the database has been through. A step is safe while
workers of this release and the one before run. Running it again changes nothing more, so the next
`migrate` completes one that was interrupted. Each change of a document or an index adds a step.
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
    """What a step does, and the function that does it, which returns how many documents changed."""

    does: str
    run: Callable[[Database], int]


def prepare(database: Database) -> None:
    """Set up the database for this release if it is empty.

    Raises Unavailable if it is away or has another release's schema. The error says what to do.
    """
    with deadline(PREPARE_SECONDS):
        version = _version(database)
        if version != len(MIGRATIONS):
            raise Unavailable("database", _sentence(version))


def migrate(database: Database, say: Callable[[str], None]) -> None:
    """Bring the database to this release's schema. `say` is called with what each step did.

    Raises Unavailable if the database is away or belongs to a newer release.
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
    """The version of the database. Raises Unavailable if it is away."""
    with deadline(PREPARE_SECONDS):
        return _version(database)


def refuse_newer(url: str) -> None:
    """Raise NewerDatabase if the database at this URL belongs to a newer release.

    A database that is away is no hindrance: accepted events wait for it. Call this before any fork.
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
    # Read again: another process may have set it up just now.
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


# The steps.


def _make_indexes(database: Database) -> int:
    with deadline(INDEX_SECONDS):
        database.create_collections()
    return 0


def _date_click_histories(database: Database) -> int:
    """Give click histories the day of their last hit; without it they would never expire."""
    changed = 0
    while True:
        with deadline(CHUNK_SECONDS):
            found = database.transaction(_date_some)
        if not found:
            return changed
        changed += found


def _date_some(session: Session) -> int:
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
    """Count the clicks of each website anew, as the sums over its ads."""
    with deadline(CHUNK_SECONDS):
        return database.transaction(_sum_up_websites)


def _sum_up_websites(session: Session) -> int:
    # Within one snapshot. Folding clicks writes the total of all websites too, so one of the two
    # transactions conflicts and runs again.
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
    """Have the ids of the first release looked up until the last of them has expired."""
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
    """Change nothing, but make workers of 0.2, which know no outbox, stop counting."""
    return 0


MIGRATIONS = (
    Step("collections and indexes", _make_indexes),
    Step("the last day of click histories", _date_click_histories),
    Step("clicks of each website", _sum_up_clicks),
    Step("event ids of each website", _limit_seen_events),
    Step("an outbox for the archive and the mirror", _begin_outbox),
)

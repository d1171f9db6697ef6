"""The schema: the version of a database, and the steps that bring it to this release's version.

The version is the number of MIGRATIONS that were applied to the database. A step is safe while
workers of this release and of the previous one are running. Running a step again changes nothing
more, so the next `migrate` completes one that was interrupted. Add a step for each change of a
document or an index.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from datetime import UTC, timedelta
from functools import partial
from itertools import islice
from operator import add
from typing import Any, NamedTuple

import msgspec
from mongoengine import Document
from pymongo import ReplaceOne, UpdateOne
from pymongo.errors import DuplicateKeyError

from app.domain.calendar import day_of
from app.errors import Unavailable
from app.store import ad_months, clock, ledger
from app.store.ad_months import ALL_ADS, NO_MONTH, WHOLE_MONTH, AddedImpressions, Cell
from app.store.database import Database, Session, deadline
from app.store.documents import (
    ALL_WEBSITES,
    COLLECTIONS,
    SEEN_SECONDS,
    ClickMonth,
    Clicks,
    ClickTotals,
    HitTally,
    ImpressionMonth,
    Impressions,
    MonthCounts,
    Schema,
    SeenEvent,
    Visitors,
    key,
)
from app.store.errors import NewerDatabase
from app.store.users import UserNumbers, latest_months

PREPARE_SECONDS = 20.0
START_SECONDS = 2.0
CHUNK_SECONDS = 60.0
INDEX_SECONDS = 24 * 3600.0
AT_ONCE = 500

_THIS = {"_id": "version"}
DAYS = {"_id": "days"}
"""The document of Schema that says since when (YYYY-MM-DD) counts of ads are kept by day; there is
none if that is so for all of them."""


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
            f"The database belongs to a newer release (schema {version}, this one knows "
            f"{len(MIGRATIONS)}): upgrade this program."
        )
    return (
        f"The database belongs to an older release (schema {version}, this one needs "
        f"{len(MIGRATIONS)}): run `eventstream migrate`."
    )


def _make_indexes(database: Database) -> int:
    with deadline(INDEX_SECONDS):
        database.create_collections()
    return 0


def _date_click_histories(database: Database) -> int:
    """Give click histories the day of their last hit; without it they would never expire."""
    return _repeat(database, _date_chunk)


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


def _begin_days(database: Database) -> int:
    """Move what is known about ads and their visitors to the documents that keep days.

    What was counted before has no day. The workers of 0.3 must have stopped.
    """
    database.create_collections()
    with deadline(CHUNK_SECONDS):
        since = f"{clock.latest(database) + timedelta(days=1):%Y-%m-%d}"
        database[Schema].update_one(DAYS, {"$setOnInsert": {"since": since}}, upsert=True)
    return (
        _repeat(database, _move_impressions)
        + _each(database, MonthCounts, _add_months)
        + _each(database, Clicks, _add_clicks)
        + _repeat(database, partial(_number_visitors, UserNumbers(database)))
        + _each(database, MonthCounts, _close_sets)
    )


def _repeat(database: Database, work: Callable[[Session], int]) -> int:
    """Run a transaction until it changes nothing more. Returns how many documents changed."""
    changed, _ = database.repeat(work, CHUNK_SECONDS)
    return changed


def _each(
    database: Database, document: type[Document], work: Callable[[list[Any], Session], int]
) -> int:
    """Run a transaction for each AT_ONCE documents. Returns how many documents changed."""
    changed = 0
    with deadline(INDEX_SECONDS):
        rows = database[document].find({})
        while some := list(islice(rows, AT_ONCE)):
            with deadline(CHUNK_SECONDS):
                changed += database.transaction(partial(work, some))
    return changed


def _move_impressions(session: Session) -> int:
    rows = list(session[Impressions].find({}).limit(AT_ONCE))
    sums: Counter[Cell] = Counter()
    for row in rows:
        for website in (row["website"], ALL_WEBSITES):
            sums[Cell(website, row["ad_id"], row["month"])] += row["impressions"]
    ad_months.add_impressions(
        {cell: {WHOLE_MONTH: AddedImpressions(number, number)} for cell, number in sums.items()},
        session,
    )
    if rows:
        session[Impressions].delete_many({"_id": {"$in": [row["_id"] for row in rows]}})
    return len(rows)


def _add_months(rows: list[Any], session: Session) -> int:
    months = {
        Cell(row["website"], ALL_ADS, row["month"]): {
            WHOLE_MONTH: AddedImpressions(row["impressions"], row["impressions"])
        }
        for row in rows
    }
    new = _without_known(months, ImpressionMonth, session)
    ad_months.add_impressions({cell: months[cell] for cell in new}, session)
    return len(new)


def _add_clicks(rows: list[Any], session: Session) -> int:
    """Add the clicks of these ads to those whose month is not known, and then to all totals."""
    clicks = {
        Cell(row["website"], row["ad_id"], NO_MONTH): [row["hits"], row["clicks"]] for row in rows
    }
    added: defaultdict[Cell, dict[int, list[int]]] = defaultdict(lambda: {WHOLE_MONTH: [0, 0]})
    new = _without_known(clicks, ClickMonth, session)
    for cell in new:
        for of in ad_months.with_totals(*cell):
            added[of][WHOLE_MONTH] = list(map(add, added[of][WHOLE_MONTH], clicks[cell]))
    ad_months.add_clicks(added, session)
    return len(new)


def _without_known(cells: Iterable[Cell], document: type[Document], session: Session) -> list[Cell]:
    by_key = {cell.key: cell for cell in cells}
    for row in session[document].find({"_id": {"$in": list(by_key)}}, {"_id": 1}):
        del by_key[row["_id"]]
    return list(by_key.values())


def _number_visitors(numbers: UserNumbers, session: Session) -> int:
    """Move some visitors to the sets of their month and website."""
    names = [row["_id"] for row in session[Visitors].find({}, {"_id": 1}).limit(AT_ONCE)]
    visitors = [name.split(" ", 2) for name in names]
    numbers.begin()
    number_of = numbers.of(latest_months((user, month) for month, _, user in visitors), session)
    users: defaultdict[Cell, list[int]] = defaultdict(list)
    for month, website, user in visitors:
        users[Cell(website, ALL_ADS, month)].append(number_of[user])
    ad_months.add_impressions(
        {cell: {WHOLE_MONTH: AddedImpressions(0, 0, of)} for cell, of in users.items()}, session
    )
    if names:
        session[Visitors].delete_many({"_id": {"$in": names}})
    return len(names)


def _close_sets(rows: list[Any], session: Session) -> int:
    """Let no more users join the sets of months whose visitors were dropped."""
    cells = {Cell(row["website"], ALL_ADS, row["month"]).key: row["visitors"] for row in rows}
    expired = [
        UpdateOne({"_id": row["_id"]}, {"$set": {"expired": True, "visitors": cells[row["_id"]]}})
        for row in session[ImpressionMonth].find({"_id": {"$in": list(cells)}})
        if row["visitors"] < cells[row["_id"]]
    ]
    if expired:
        session[ImpressionMonth].bulk_write(expired, ordered=False)
    return len(expired)


MIGRATIONS = (
    Step("collections and indexes", _make_indexes),
    Step("the last day of click histories", _date_click_histories),
    Step("clicks of each website", _sum_up_clicks),
    Step("event ids of each website", _limit_seen_events),
    Step("an outbox for the archive and the mirror", _begin_outbox),
    Step("ads by day, and numbers for users", _begin_days),
    Step("what makes figures differ, by ad and day", _make_indexes),
    Step("statements of months", _make_indexes),
)

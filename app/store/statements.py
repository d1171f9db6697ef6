"""The statements of months: which are made and corrected, and how far their delivery is.

From its first day on, each month has a row that waits for its end, so that no month is missed. The
month before the first one has a row too. Once a month is closed, one worker at a time reads its
figures: it holds a lease, which runs out if the worker dies. The figures are stored with the
statement before anything is sent. After that they are read again once a day, for as long as late
events may arrive, and if they differ from those sent last, a correction is stored.

Each channel's delivery is recorded separately. An attempt postpones the next one by more time than
it can take itself. So there is never more than one attempt at a time, and if its worker dies,
another one follows.
"""

import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, tzinfo
from functools import partial
from typing import Any, NamedTuple

from pymongo.errors import DuplicateKeyError

from app.domain.calendar import closing, month_before, month_of
from app.store import statement_figures
from app.store.database import Database, Session, deadline
from app.store.documents import Statement, key
from app.store.statement_figures import Content

CHANNELS = ("webhook", "mail")
SECONDS = 10.0
RECENT_MONTHS = 5
LEASE = timedelta(minutes=3)
"""Longer than a task may take, even if the clocks of two workers differ as far as they may."""
READ_AGAIN = timedelta(days=1)
READ_EMPTY_AGAIN = timedelta(minutes=5)
"""A new collector may get the events of its last month right after it starts."""
CORRECTED = timedelta(days=44)
"""For how long after its end a month is corrected. An event may be 35 days old when it arrives, and
then wait 7 days among the dead letters."""
LONGEST_PAUSE = timedelta(hours=6)
GIVE_UP = timedelta(days=7)
DUE, DELIVERED, GIVEN_UP = "due", "delivered", "given up"
_CLAIMED = {"read_by": "", "read_until": ""}

Row = dict[str, Any]


class Owed(NamedTuple):
    """A statement to deliver. `reached` holds the addresses that have received the mail."""

    month: str
    number: int
    token: str
    made_at: datetime
    content: Content
    reached: frozenset[str]

    @property
    def id(self) -> str:
        """Its id, which no other statement has."""
        return _id(self.month, self.number, self.token)

    @property
    def corrects(self) -> str | None:
        """The id of the statement that it corrects, if it is a correction."""
        return _id(self.month, 0, self.token) if self.number else None

    @property
    def name(self) -> str:
        """What people call it."""
        return _name(self.month, self.number)


def recent(database: Database, now: datetime) -> list[Row]:
    """The recent statements without their content, oldest first.

    `now`, here and below, is in the collector's time zone. If this month or the one before has no
    row yet, it gets one. Like every function here, it raises Unavailable if the database can't be
    reached.
    """
    months = [month_of(now)]
    while len(months) < RECENT_MONTHS:
        months.append(month_before(months[-1]))
    with deadline(SECONDS):
        rows = list(database[Statement].find({"month": {"$in": months}}, {"content": 0}))
        known = {row["_id"] for row in rows}
        for month in months[:2]:
            if key(month, 0) not in known:
                row = _awaited(month, now.tzinfo)
                with suppress(DuplicateKeyError):  # another worker was faster
                    database[Statement].insert_one(row)
                rows.append(row)
    return sorted(rows, key=lambda row: (row["month"], row["number"]))


def claim_reading(
    database: Database, rows: Iterable[Row], reader: str, now: datetime
) -> str | None:
    """A month (YYYY-MM) for this reader to read, or None. Nobody else gets it during LEASE."""

    def claim(name: str, session: Session) -> bool:
        row = session[Statement].find_one({"_id": name}, {"content": 0})
        if not row or not _is_to_read(row, reader, now):
            return False
        lease = {"read_by": reader, "read_until": now + LEASE}
        session[Statement].update_one({"_id": name}, {"$set": lease})
        return True

    for row in rows:
        if _is_to_read(row, reader, now):
            with deadline(SECONDS):
                # In a transaction, as two updates of the embedded database may see the same row.
                if database.transaction(partial(claim, row["_id"])):
                    return str(row["month"])
    return None


def postpone_reading(database: Database, month: str, reader: str, until: datetime) -> None:
    """Let nobody read a month's figures before `until`."""
    mine = {"_id": key(month, 0), "read_by": reader}
    with deadline(SECONDS):
        database[Statement].update_one(mine, {"$set": {"check_at": until}, "$unset": _CLAIMED})


def keep(
    database: Database, content: Content, reader: str, channels: Iterable[str], now: datetime
) -> str | None:
    """Store what a reader read, to be delivered on these channels, if it has to be sent.

    Returns the name of the statement or correction, or None if nothing is to be sent: there are no
    figures, they are the same as those sent last, or another reader has the month now.
    """
    month = content.month
    is_empty = statement_figures.is_empty(content)
    again = now + (READ_EMPTY_AGAIN if is_empty else READ_AGAIN)
    is_last = again > closing(month, now.tzinfo) + CORRECTED
    due = {"state": DUE, "due_at": now, "until": now + GIVE_UP, "tries": 0, "reached": []}
    made = {
        "made_at": now,
        "content": statement_figures.pack(content),
        **dict.fromkeys(channels, due),
    }

    def store(session: Session) -> str | None:
        rows = session[Statement]
        found = {row["number"]: row for row in rows.find({"month": month}, {"content": 0})}
        first = found.get(0)
        if not first or first.get("read_by") != reader:
            return None
        changes: Row = {"$unset": _CLAIMED | ({"check_at": ""} if is_last else {})}
        if not is_last:
            changes["$set"] = {"check_at": again}
        number = None
        if "made_at" not in first:
            if not is_empty:
                number = 0
                changes["$set"] = changes.get("$set", {}) | made
        else:
            sent = rows.find_one({"_id": key(month, max(found))})
            if not statement_figures.are_same(statement_figures.unpack(sent["content"]), content):
                number = max(found) + 1
                names = {"month": month, "number": number, "token": first["token"]}
                rows.insert_one({"_id": key(month, number), **names, **made})
        rows.update_one({"_id": first["_id"]}, changes)
        return None if number is None else _name(month, number)

    with deadline(SECONDS):
        return database.transaction(store)


def due_channels(rows: Sequence[Row], now: datetime) -> list[str]:
    """The channels on which one of these statements is due."""
    return [channel for channel in CHANNELS if any(_is_due(row, channel, now) for row in rows)]


def give_up(database: Database, rows: Iterable[Row], now: datetime) -> list[tuple[str, str]]:
    """Give up the statements that have been tried for GIVE_UP. Returns their channels and names."""
    late = [
        (channel, row)
        for row in rows
        for channel in CHANNELS
        if (way := row.get(channel)) and way["tries"] and way["state"] == DUE and way["until"] < now
    ]
    for channel, row in late:
        still = {"_id": row["_id"], f"{channel}.state": DUE}
        with deadline(SECONDS):
            database[Statement].update_one(still, {"$set": {f"{channel}.state": GIVEN_UP}})
    return [(channel, _name(row["month"], row["number"])) for channel, row in late]


def claim_delivery(database: Database, channel: str, now: datetime) -> Owed | None:
    """A statement to deliver on this channel, or None. Nobody else gets it before the next try."""
    rows = [row for row in recent(database, now) if _is_due(row, channel, now)]

    def claim(name: str, session: Session) -> Row | None:
        row: Row | None = session[Statement].find_one({"_id": name})
        if row is None or not _is_due(row, channel, now):
            return None
        pause = min(LEASE * 2 ** min(row[channel]["tries"], 10), LONGEST_PAUSE)
        changes = {"$set": {f"{channel}.due_at": now + pause}, "$inc": {f"{channel}.tries": 1}}
        session[Statement].update_one({"_id": name}, changes)
        return row

    for found in rows:
        with deadline(SECONDS):
            row = database.transaction(partial(claim, found["_id"]))
        if row:
            return Owed(
                row["month"],
                row["number"],
                row["token"],
                row["made_at"],
                statement_figures.unpack(row["content"]),
                frozenset(row[channel]["reached"]),
            )
    return None


def note(
    database: Database,
    owed: Owed,
    channel: str,
    *,
    delivered: bool = True,
    reached: Iterable[str] = (),
) -> None:
    """Note that a statement was delivered, or which addresses it has reached so far."""
    noted: Row = {f"{channel}.reached": sorted(owed.reached.union(reached))}
    if delivered:
        noted[f"{channel}.state"] = DELIVERED
    with deadline(SECONDS):
        database[Statement].update_one({"_id": key(owed.month, owed.number)}, {"$set": noted})


def _awaited(month: str, timezone: tzinfo | None) -> Row:
    """A statement that is to be made when its month is closed."""
    return {
        "_id": key(month, 0),
        "month": month,
        "number": 0,
        "token": secrets.token_hex(8),
        "check_at": closing(month, timezone),
    }


def _is_to_read(row: Row, reader: str, now: datetime) -> bool:
    is_free = row.get("read_by") in (None, reader) or row["read_until"] <= now
    # If a month closed while nothing ran, its statement may be made later, but not for ever.
    return is_free and "check_at" in row and row["check_at"] <= now <= row["check_at"] + CORRECTED


def _is_due(row: Row, channel: str, now: datetime) -> bool:
    way = row.get(channel)
    return bool(way and way["state"] == DUE and way["due_at"] <= now)


def _id(month: str, number: int, token: str) -> str:
    return f"{month}.{number}.{token}"


def _name(month: str, number: int) -> str:
    return f"statement {month} correction {number}" if number else f"statement {month}"

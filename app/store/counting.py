"""Applies batches: one transaction writes their ledger entries and everything they count."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import msgspec
from mongoengine import Document

from app.domain.calendar import day_of, hour_of
from app.domain.clicks import Hit, Tally, count_hits
from app.domain.events import AdClick, AdImpression, Collision, Event, PageView
from app.domain.invalid_traffic import REPEAT
from app.store import clock, folding, histories, ledger, migrations
from app.store.counters import Added, KeyParts
from app.store.database import Database, Session, deadline
from app.store.differences import differences
from app.store.documents import (
    HISTORY_SHAPE,
    AdDifferences,
    ClickMonth,
    Clicks,
    Filtered,
    HitTally,
    HourCounts,
    ImpressionMonth,
    PageViews,
)
from app.store.ledger import Piece
from app.store.users import UserNumbers, latest_months

APPLY_SECONDS = 20.0
"""How long applying batches may take, including any wait for a database that can't be reached."""


@dataclass(frozen=True)
class ClickRule:
    """How many hits make a click, and whether a user's hits count over all ads or for each ad.

    A hit on the same ad within `window` seconds of another only repeats that one.
    """

    hits: int
    scope: Literal["user", "ad"]
    window: int = 0


Changes = Mapping[type[Document], Added]
Minutes = Mapping[tuple[str, str, int], int]
"""Numbers of events by website, page or ad, and the minute (since the epoch) of their own time."""

MINUTE_MS = 60_000


class CountedPiece(NamedTuple):
    """The counted events of a batch, or of a piece of it, by their positions in the batch.

    `name` is the batch's id, or the piece's own name if the batch was counted in pieces. If a batch
    is delivered again, the names are the same.
    """

    name: str
    batch: str
    events: Mapping[int, Event]


class Applied(NamedTuple):
    """What applying batches did.

    `batches` and `events` are the numbers that were counted for the first time. `repeated` events
    had been counted before, and `collided` events have ids that belong to other events. `retries`
    is how often the transaction had to be run again.
    """

    batches: int
    events: int
    repeated: int
    collided: int
    retries: int
    changes: Changes
    """What these events add to the documents of each kind."""
    minutes: Minutes
    """How many of these events each page or ad had in each minute."""
    counted: Sequence[CountedPiece]
    """The events that were counted. Empty if no archive or mirror needs them."""
    collisions: Sequence[Collision]


AlsoWrite = Callable[[Session, Mapping[type[Event], Applied]], None]
"""A function that writes more in the same transaction, after the events."""


class Counting:
    """Applies batches for one process. It remembers users' numbers, to save looking them up.

    `timezone` decides the days and hours of impressions and hits, and the hours of views. With
    `archives`, what is applied also lists the events that counted. With `hashed_monthly` a user has
    a different hash in each month, so that user ids don't help to tell whether two events are the
    same.
    """

    def __init__(
        self,
        database: Database,
        click_rule: ClickRule,
        timezone: tzinfo = UTC,
        *,
        archives: bool = False,
        hashed_monthly: bool = False,
    ) -> None:
        self._database = database
        self._click_rule = click_rule
        self._timezone = timezone
        self._archives = archives
        self._hashed_monthly = hashed_monthly
        self._users = UserNumbers(database)
        self._prepared = False
        self._seen_until: datetime | None = None
        self._appliers: dict[type[Event], Callable[[Any, Session], tuple[Changes, Minutes]]] = {
            PageView: self._page_views,
            AdImpression: self._impressions,
            AdClick: self._clicks,
        }

    def apply(self, kind: type[Event], batches: Mapping[str, Sequence[Event]]) -> Applied:
        """Count whole batches of one kind of event, given by their ids. See `apply_pieces`."""
        return self.apply_pieces({kind: [Piece(name, batches[name]) for name in batches]})[kind]

    def apply_pieces(
        self,
        pieces: Mapping[type[Event], Sequence[Piece]],
        also_write: AlsoWrite | None = None,
    ) -> dict[type[Event], Applied]:
        """Count those events of these pieces that are not counted yet: all of them or none.

        Each batch may appear with one piece only. `also_write` writes in the same transaction,
        after the events. If the transaction is run again, so is `also_write`. Reports show the
        events once they are folded (`app.store.folding`).

        Raises TransactionTooLarge if the events must be counted in parts, Unavailable if the
        database can't be reached or belongs to another release (`migrations.prepare`), and
        DeadlineMissed if it took too long. The same pieces may safely be applied again after any of
        these errors.
        """
        tries = 0

        def work(session: Session) -> dict[type[Event], Applied]:
            nonlocal tries
            tries += 1
            self._users.begin()
            applied = {
                kind: self._apply(kind, of_kind, session, tries - 1)
                for kind, of_kind in pieces.items()
            }
            if also_write:
                also_write(session, applied)
            return applied

        with deadline(APPLY_SECONDS):
            self._prepare()
            applied = self._database.transaction(work)
        self._users.remember()
        return applied

    def pass_over(self, piece: Piece) -> None:
        """Record the events of a piece as done without counting them.

        Raises Unavailable and DeadlineMissed like `apply_pieces`.
        """

        def work(session: Session) -> None:
            entry = ledger.entries([piece.batch], session)[piece.batch]
            for part in entry.missing(piece):
                entry.add(part)
            ledger.write([entry], session)

        with deadline(APPLY_SECONDS):
            self._prepare()
            self._database.transaction(work)

    def _prepare(self) -> None:
        if not self._prepared:
            migrations.prepare(self._database)
            self._seen_until = ledger.seen_until(self._database)
            self._prepared = True

    def _apply(
        self, kind: type[Event], pieces: Sequence[Piece], session: Session, retries: int
    ) -> Applied:
        """Count pieces of one kind."""
        entries = ledger.entries([piece.batch for piece in pieces], session)
        fresh = [
            part
            for piece in pieces
            for missing in entries[piece.batch].missing(piece)
            for part in missing.to_count()
        ]
        brought = [(part, place) for part in fresh for place in range(*part.span)]
        claims = ledger.claim(
            [part.events[place - part.start] for part, place in brought],
            session,
            with_user=not self._hashed_monthly,
            seen_events=self._seen_until is not None
            and self._seen_until > clock.earliest(self._database),
        )
        for part in fresh:
            entries[part.batch].add(part)
        ledger.write([entries[part.batch] for part in fresh], session)
        events = [
            part.events[place - part.start] for part, place in map(brought.__getitem__, claims.new)
        ]
        collided = [brought[number] for number in claims.collisions]
        collisions = [
            Collision(part.batch, place, part.events[place - part.start])
            for part, place in collided
        ]
        changes: Changes = {}
        minutes: Minutes = {}
        if events or collisions:
            valid = [event for event in events if event.invalid is None]
            collided_events = [collision.event for collision in collisions]
            apart = self._apart(events, collided_events)
            of_kind, minutes = self._appliers[kind](valid, session)
            changes = _joined(of_kind, apart)
        if changes:
            late = all(piece.late for piece in pieces)
            folding.record(kind.__name__, changes, session, late=late)
        new = [brought[number] for number in claims.new] if self._archives else []
        counted = [
            CountedPiece(
                part.name,
                part.batch,
                {place: part.events[place - part.start] for _, place in of_part},
            )
            for part, of_part in groupby(new, key=itemgetter(0))
        ]
        return Applied(
            len({part.batch for part in fresh}),
            len(events),
            len(claims.repeats),
            len(claims.collisions),
            retries,
            changes,
            minutes,
            counted,
            collisions,
        )

    def _page_views(self, events: Sequence[PageView], _: Session) -> tuple[Changes, Minutes]:
        views = Counter((event.website, event.day, event.page) for event in events)
        hours = Counter(
            (event.website, hour_of(event.time, self._timezone))
            for event in events
            if event.time is not None
        )
        minutes = Counter(
            (event.website, event.page, event.time // MINUTE_MS)
            for event in events
            if event.time is not None
        )
        changes: Changes = {
            PageViews: {parts: [number] for parts, number in views.items()},
            HourCounts: _hour_rows(PageView, hours),
        }
        return changes, minutes

    def _impressions(
        self, events: Sequence[AdImpression], session: Session
    ) -> tuple[Changes, Minutes]:
        viewable = [event for event in events if event.viewable is not False]
        months = latest_months((event.user_id, event.month) for event in viewable)
        numbers = self._users.of(months, session)
        rows: dict[KeyParts, list[Any]] = {}
        hours: Counter[tuple[str, str]] = Counter()
        minutes: Counter[tuple[str, str, int]] = Counter()
        for event in events:
            row = rows.setdefault((event.website, event.ad_id, self._day_of(event)), [0, 0, []])
            # A rendering that was reported on its own is no impression yet, and the impression that
            # follows it is no second rendering.
            row[1] += event.viewable is not True
            if event.viewable is not False:
                row[0] += 1
                row[2].append(numbers[event.user_id])
                if event.time is not None:
                    hours[event.website, hour_of(event.time, self._timezone)] += 1
                    minutes[event.website, event.ad_id, event.time // MINUTE_MS] += 1
        return {ImpressionMonth: rows, HourCounts: _hour_rows(AdImpression, hours)}, minutes

    def _day_of(self, event: AdImpression) -> str:
        """The event's day, or its month if nothing more is known."""
        day = day_of(event.time, self._timezone) if event.time is not None else event.month
        # It was accepted for this month, even if the time zone was changed meanwhile.
        return day if day.startswith(event.month) else event.month

    def _clicks(self, events: Sequence[AdClick], session: Session) -> tuple[Changes, Minutes]:
        each_ad = self._click_rule.scope == "ad"
        hits_of: defaultdict[str, list[Hit]] = defaultdict(list)
        for event in events:
            owner = [event.user_id, event.website, event.ad_id] if each_ad else [event.user_id]
            hit = Hit(event.time, event.website, event.ad_id)
            hits_of[msgspec.json.encode(owner).decode()].append(hit)
        # Unpack one history at a time: unpacked, all of them would take a hundred times the memory.
        known = histories.read(hits_of, session)
        clicks: Counter[Hit] = Counter()
        repeats: Counter[Hit] = Counter()
        rows = []
        for owner_key, hits in hits_of.items():
            found = known.get(owner_key)
            tally, change = count_hits(
                histories.unpack(found) if found else Tally(),
                hits,
                per_click=self._click_rule.hits,
                window=self._click_rule.window * 1000,
            )
            clicks.update(change.clicks)
            repeats.update(change.repeats)
            rows.append(
                {
                    "_id": owner_key,
                    "earlier": tally.earlier,
                    "hits": histories.pack(tally),
                    "shape": HISTORY_SHAPE,
                    "last_day": max(
                        found.get("last_day", "") if found else "",
                        day_of(max(hits).time, UTC),
                    ),
                }
            )
        session.put(HitTally, rows, known)
        counted = Counter(Hit(event.time, event.website, event.ad_id) for event in events)
        counted.subtract(repeats)
        minutes: Counter[tuple[str, str, int]] = Counter()
        for hit, number in counted.items():
            minutes[hit.website, hit.ad_id, hit.time // MINUTE_MS] += number
        filtered: Counter[KeyParts] = Counter()
        by_ad: Counter[KeyParts] = Counter()
        for repeat, number in repeats.items():
            names = repeat.website, day_of(repeat.time, self._timezone), AdClick.__name__, REPEAT
            filtered[names] += number
            by_ad[*names, repeat.ad_id] += number
        changes: Changes = {
            **self._rows_of_clicks(counted, clicks),
            Filtered: _numbers(filtered),
            AdDifferences: _numbers(by_ad),
        }
        return changes, minutes

    def _apart(self, events: Sequence[Event], collided: Sequence[Event]) -> Changes:
        """What these events add besides the counts of their kind."""
        filtered: Counter[KeyParts] = Counter(
            (event.website, event.invalid.day, type(event).__name__, event.invalid.reason)
            for event in events
            if event.invalid is not None
        )
        by_ad = differences(events, collided, self._timezone)
        return {Filtered: _numbers(filtered), AdDifferences: _numbers(by_ad)}

    def _rows_of_clicks(self, hits: Counter[Hit], clicks: Counter[Hit]) -> Changes:
        """What hits, and clicks by the hits that complete them, add to the documents of ads."""
        rows: dict[type[Document], defaultdict[KeyParts, list[int]]] = {
            document: defaultdict(lambda: [0, 0]) for document in (Clicks, ClickMonth, HourCounts)
        }
        for place, counts in enumerate((hits, clicks)):
            for hit, number in counts.items():
                hour = hour_of(hit.time, self._timezone)
                day = day_of(hit.time, self._timezone)
                rows[Clicks][hit.website, hit.ad_id][place] += number
                rows[ClickMonth][hit.website, hit.ad_id, day][place] += number
                rows[HourCounts][hit.website, hour, AdClick.__name__][place] += number
        return {
            document: {parts: counts for parts, counts in of_document.items() if any(counts)}
            for document, of_document in rows.items()
        }


def _hour_rows(kind: type[Event], events: Counter[tuple[str, str]]) -> Added:
    return {(*parts, kind.__name__): [number, 0] for parts, number in events.items()}


def _numbers(counts: Counter[KeyParts]) -> Added:
    return {parts: [number] for parts, number in counts.items() if number}


def _joined(changes: Changes, others: Changes) -> Changes:
    """Changes that share no row, as one. Documents to which nothing is added are left out."""
    joined = {
        document: {**changes.get(document, {}), **others.get(document, {})}
        for document in (*changes, *others)
    }
    return {document: added for document, added in joined.items() if added}

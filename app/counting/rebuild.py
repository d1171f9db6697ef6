"""Rebuilds the reports from the archive, by today's rules, in another database."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import partial

import msgspec

from app.domain.calendar import day_of
from app.domain.events import QUEUES, AdImpression, Event, PageView
from app.domain.invalid_traffic import Invalid
from app.errors import InvalidRequest
from app.outputs.archive import Archive, RewriteTurn
from app.store import folding, ledger, migrations, months, offsets
from app.store.counting import APPLY_SECONDS, ClickRule, Counting
from app.store.database import Database, deadline
from app.store.documents import SEEN_SECONDS, ConsumedOffset, Outgoing
from app.store.errors import TransactionTooLarge
from app.store.ledger import PIECE_NAME, Piece
from app.store.outbox import undelivered_in

EVENTS_AT_ONCE = 5_000
NOTHING_CONSUMED: offsets.Records = {ConsumedOffset: [], Outgoing: []}


@dataclass(frozen=True)
class Plan:
    """What to rebuild: these queues' events on the days from `first` to `last` (in `timezone`).

    With `hashed_monthly`, users have a different id in each month (USER_HASH_ROTATION).
    """

    queues: Collection[str]
    first: date | None
    last: date | None
    timezone: tzinfo
    click_rule: ClickRule
    hashed_monthly: bool
    retention_days: int | None

    def check(self, archive: Archive) -> None:
        """Raise InvalidRequest if the archive lacks events that these reports need."""
        begins = archive.first_day()
        if begins is None:
            raise InvalidRequest({"archive": ["It is empty."]})
        if self.first and self.first < begins:
            raise InvalidRequest({"from": [f"The archive begins on {begins}."]})
        if self.first and self.last and self.last < self.first:
            raise InvalidRequest({"to": ["It comes before `from`."]})
        if "ad_impression" in self.queues:
            if self.first and self.first.day != 1:
                raise InvalidRequest(
                    {"from": ["Visitors are counted by the month: give a month's first day."]}
                )
            if self.last and (self.last + timedelta(days=1)).day != 1:
                raise InvalidRequest(
                    {"to": ["Visitors are counted by the month: give a month's last day."]}
                )
        if "ad_click" in self.queues:
            if self.first:
                raise InvalidRequest(
                    {"from": ["Clicks depend on all earlier hits: leave this out."]}
                )
            if self.retention_days:
                raise InvalidRequest({"only": ["With RETENTION_DAYS, earlier hits are deleted."]})

    def holds(self, event: Event) -> bool:
        """Whether an event belongs to these days."""
        if isinstance(event, AdImpression):
            when, length = event.month, 7
        else:
            when = event.day if isinstance(event, PageView) else day_of(event.time, self.timezone)
            length = 10
        return str(self.first or date.min)[:length] <= when <= str(self.last or date.max)[:length]


@dataclass
class Rebuilt:
    """How many events of each queue were counted, and how many of them have no known time.

    Events without a time arrived before ARCHIVE was on in the web processes. They stay in the day
    or month in which they were counted.
    """

    events: dict[str, int] = field(default_factory=dict)
    without_time: int = 0


def rebuild(
    plan: Plan,
    archive: Archive,
    turn: RewriteTurn,
    database: Database,
    consumed: offsets.Records = NOTHING_CONSUMED,
) -> Rebuilt:
    """Count all events that are archived now into this database, which must be empty.

    The `consumed` offsets of Kafka are copied too, so that consumers can continue. Before that,
    their undelivered events are archived.

    Each batch counts once, however often the archive holds it. The new database also knows the
    batches, and keeps the event ids of the last 7 days for another 7 days, so that workers can
    continue with it. Months that are due are aggregated. Raises InvalidRequest if the result could
    not be exact or the database is not empty, and Unavailable if the archive or the database can't
    be reached.
    """
    plan.check(archive)
    with deadline(APPLY_SECONDS):
        if not migrations.is_empty(database):
            raise InvalidRequest({"into": ["This database is not empty."]})
        migrations.prepare(database)
    for row in consumed[Outgoing]:
        undelivered = undelivered_in(row)
        if not undelivered.collides:
            piece = undelivered.piece
            archive.write(undelivered.queue, {piece.name: list(piece.events.values())})
    done = Rebuilt()
    # Events may be dated a day ahead. There is no upper limit, because they may be counted late.
    written_from = plan.first - timedelta(days=2) if plan.first else date.min
    for queue in sorted(plan.queues):
        counting = Counting(database, plan.click_rule, plan.timezone)
        done.events[queue] = 0
        for batches, recent in _portions(archive, archive.files(queue, written_from)):
            turn.prolong()
            if recent:
                _claim(database, batches.values(), plan)
            renewed = {
                name: [new for event in events if plan.holds(new := _renewed(event, plan, done))]
                for name, events in batches.items()
            }
            done.events[queue] += _count(database, counting, QUEUES[queue], renewed)
            for name in batches:
                if match := PIECE_NAME.fullmatch(name):
                    # The rest of its batch may still be in the journal.
                    batch, start, stop = match[1], int(match[2]), int(match[3])
                    nothing = [None] * (stop - start)
                    counting.pass_over(Piece(batch, nothing, start, whole=False))
        while not folding.fold(database, QUEUES[queue].__name__):
            turn.prolong()
    months.aggregate_due(database, datetime.now(plan.timezone))
    offsets.put(database, consumed)
    return done


def _count(
    database: Database,
    counting: Counting,
    kind: type[Event],
    batches: Mapping[str, Sequence[Event]],
) -> int:
    """Count the batches that are not counted yet. Returns the number of events."""
    try:
        return counting.apply(kind, batches).events
    except TransactionTooLarge:
        with deadline(APPLY_SECONDS):
            entries = database.transaction(partial(ledger.entries, batches))
        new = [name for name, entry in entries.items() if entry.is_new]
        events = [event for name in new for event in batches[name]]
        middle = len(events) // 2
        halves = [{os.urandom(16).hex(): half} for half in (events[:middle], events[middle:])]
        counted = sum(_count(database, counting, kind, half) for half in halves)
        counting.apply(kind, dict.fromkeys(new, ()))
        return counted


def _portions(
    archive: Archive, files: Sequence[str]
) -> Iterator[tuple[dict[str, Sequence[Event]], bool]]:
    """Yield a few thousand events at a time, by their batches, and whether they are recent.

    Workers must know the ids of recent events.
    """
    week_ago = datetime.now(UTC).date() - timedelta(seconds=SEEN_SECONDS, days=1)
    batches: dict[str, Sequence[Event]] = {}
    for name in files:
        recent = archive.day_of(name) >= week_ago
        for batch, events in archive.read(name).items():
            batches.setdefault(batch, events)
            if sum(map(len, batches.values())) >= EVENTS_AT_ONCE:
                yield batches, recent
                batches = {}
    if batches:
        yield batches, recent


def _claim(database: Database, batches: Iterable[Sequence[Event]], plan: Plan) -> None:
    """Claim the ids of the events in these batches."""
    events = [event for of_batch in batches for event in of_batch]
    claim = partial(ledger.claim, events, with_user=not plan.hashed_monthly, seen_events=False)
    with deadline(APPLY_SECONDS):
        database.transaction(claim)


def _renewed(event: Event, plan: Plan, done: Rebuilt) -> Event:
    """The event as it would be counted today, in its day or month, without its id.

    The id is not needed, because every archived event counts. Two events may even have the same id
    if they were sent more than a week apart.
    """
    replace = msgspec.structs.replace
    event = replace(event, event_id=None)
    if event.time is None:
        done.without_time += 1
        return event
    day = day_of(event.time, plan.timezone)
    if event.invalid:
        event = replace(event, invalid=Invalid(event.invalid.reason, day))
    if isinstance(event, PageView):
        return replace(event, day=day)
    if isinstance(event, AdImpression):
        if plan.hashed_monthly and day[:7] != event.month:
            raise InvalidRequest(
                {
                    "TIMEZONE": [
                        "User ids were hashed by the months of another time zone "
                        "(USER_HASH_ROTATION)."
                    ]
                }
            )
        return replace(event, month=day[:7])
    return event

"""Applying batches: one transaction that holds their ledger entries and all that they count."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Literal, NamedTuple

import msgspec
from mongoengine import Document
from pymongo import ReplaceOne

from app.domain.calendar import day_of
from app.domain.clicks import Hit, Tally, count_hits
from app.domain.events import AdClick, AdImpression, Event, PageView
from app.domain.traffic import REPEAT
from app.errors import Unavailable
from app.store import folding, ledger, migrations
from app.store.connection import Session, collection, deadline, transaction
from app.store.documents import (
    ALL_WEBSITES,
    SHAPE,
    Clicks,
    Filtered,
    HitTally,
    Impressions,
    MonthCounts,
    PageViews,
    Visitors,
    key,
)

APPLY_SECONDS = 20.0
"""How long batches may take, the wait for a database that is away included."""
REMEMBERED_VISITORS = 100_000

_decode_hits = msgspec.json.Decoder(tuple[Hit, ...]).decode


@dataclass(frozen=True)
class ClickRule:
    """How many hits make a click, and whether a user's hits count over all ads or for each ad.

    A hit that comes less than `window` seconds after one on the same ad only repeats it.
    """

    hits: int
    scope: Literal["user", "ad"]
    window: int = 0


Changes = Mapping[type[Document], folding.Added]


class Applied(NamedTuple):
    """How many batches, and how many of their events, were counted that had not been before.

    `repeated` events of these batches had been; `retries` is how often all had to be done again.
    """

    batches: int
    events: int
    repeated: int
    retries: int
    changes: Changes
    """What these events add to the documents of each kind."""
    counted: Mapping[str, Sequence[Event]]
    """For the archive, if there is one: the events of each batch that were new, now or before."""


class Counting:
    """Applies batches, for one process. It remembers visitors, to spare looking them up.

    `timezone` decides the day of a hit that only repeats another. With `archives` it also finds
    out which events were new in batches that come again.
    """

    def __init__(
        self, click_rule: ClickRule, timezone: tzinfo = UTC, *, archives: bool = False
    ) -> None:
        self._click_rule = click_rule
        self._timezone = timezone
        self._archives = archives
        self._visitors = _Recent(REMEMBERED_VISITORS)
        self._prepared = False
        self._appliers: dict[type[Event], Callable[[Any, Session], Changes]] = {
            PageView: self._page_views,
            AdImpression: self._impressions,
            AdClick: self._clicks,
        }

    def apply(self, kind: type[Event], batches: Mapping[str, Sequence[Event]]) -> Applied:
        """Count these batches of one kind of event, given by their ids, all or none.

        Reports hold them once they are folded (`app.store.folding`). Raises Unavailable where the
        database is away or of another release (`migrations.prepare`), and nothing was changed or
        the same may be applied again without harm.
        """
        return self.apply_together({kind: batches})[kind]

    def apply_together(
        self,
        batches: Mapping[type[Event], Mapping[str, Sequence[Event]]],
        along: Callable[[Session, Mapping[type[Event], Applied]], None] | None = None,
    ) -> dict[type[Event], Applied]:
        """Count batches of several kinds as `apply` does, in one transaction.

        `along` writes in this transaction too, after them; it may be called again, where all is.
        """
        tries = 0
        fresh_events: dict[type[Event], list[Event]] = {}

        def work(session: Session) -> dict[type[Event], Applied]:
            nonlocal tries
            tries += 1
            applied = {}
            for kind, of_kind in batches.items():
                fresh = ledger.enter(of_kind, session)
                brought = [event for name in of_kind if name in fresh for event in of_kind[name]]
                events = ledger.claim(brought, session)
                changes: Changes = {}
                if events:
                    valid = [event for event in events if event.invalid is None]
                    changes = _with_filtered(events, self._appliers[kind](valid, session))
                    folding.record(kind.__name__, changes, session)
                counted = (
                    _counted(of_kind, fresh, brought, events, session) if self._archives else {}
                )
                repeated = len(brought) - len(events)
                fresh_events[kind] = events
                applied[kind] = Applied(
                    len(fresh), len(events), repeated, tries - 1, changes, counted
                )
            if along:
                along(session, applied)
            return applied

        with deadline(APPLY_SECONDS):
            if not self._prepared:
                migrations.prepare()
                self._prepared = True
            applied = transaction(work)
        # Not before all is committed: what a transaction that failed wrote is not there.
        impressions = fresh_events.get(AdImpression, [])
        self._visitors.add(_visitors_in(event for event in impressions if event.invalid is None))
        return applied

    def _page_views(self, events: Sequence[PageView], _: Session) -> Changes:
        views = Counter((event.website, event.day, event.page) for event in events)
        return {PageViews: {parts: [number] for parts, number in views.items()}}

    def _impressions(self, events: Sequence[AdImpression], session: Session) -> Changes:
        of_ads = Counter((event.month, event.website, event.ad_id) for event in events)
        impressions: Counter[tuple[str, str]] = Counter()
        for month, website, _ in of_ads.elements():
            impressions[month, website] += 1
            impressions[month, ALL_WEBSITES] += 1
        visitors = self._new_visitors(events, session)
        return {
            Impressions: {parts: [number] for parts, number in of_ads.items()},
            MonthCounts: {
                parts: [number, visitors[parts]] for parts, number in impressions.items()
            },
        }

    def _new_visitors(
        self, events: Sequence[AdImpression], session: Session
    ) -> Counter[tuple[str, str]]:
        """Write the users who were not visitors yet; how many these are by month and website."""
        candidates = {
            visitor: parts
            for visitor, parts in _visitors_in(events).items()
            if visitor not in self._visitors
        }
        visitors = collection(Visitors)
        if candidates:
            query = {"_id": {"$in": list(candidates)}}
            for known in visitors.find(query, {"_id": 1}, session=session):
                del candidates[known["_id"]]
        if candidates:
            visitors.insert_many(
                [{"_id": visitor} for visitor in candidates], ordered=False, session=session
            )
        return Counter(candidates.values())

    def _clicks(self, events: Sequence[AdClick], session: Session) -> Changes:
        by_ad = self._click_rule.scope == "ad"
        hits_of: defaultdict[str, list[Hit]] = defaultdict(list)
        for event in events:
            owner = [event.user_id, event.website, event.ad_id] if by_ad else [event.user_id]
            hit = Hit(event.time, event.website, event.ad_id)
            hits_of[msgspec.json.encode(owner).decode()].append(hit)
        query = {"_id": {"$in": list(hits_of)}}
        # Decoded one at a time: all hits of many users would take a hundred times the space.
        known = {found["_id"]: found for found in collection(HitTally).find(query, session=session)}
        if any(found.get("shape", 1) > SHAPE for found in known.values()):
            raise Unavailable("database", "it holds click histories of a newer release")
        clicks: Counter[tuple[str, str]] = Counter()
        repeats: Counter[Hit] = Counter()
        changed, new = [], []
        for owner_key, hits in hits_of.items():
            found = known.get(owner_key)
            tally, change = count_hits(
                _tally(found) if found else Tally(),
                hits,
                per_click=self._click_rule.hits,
                window=self._click_rule.window * 1000,
                # Hits of one user on one ad are alike, whatever their order, if none repeat others.
                **({"remember": 0} if by_ad and not self._click_rule.window else {}),
            )
            for parts, number in change.clicks.items():
                clicks[parts] += number
            for repeat, number in change.repeats.items():
                repeats[repeat] += number
            document = {
                "_id": owner_key,
                "earlier": tally.earlier,
                "latest": msgspec.json.encode(tally.latest),
                "shape": SHAPE,
                **({"before": msgspec.json.encode(tally.before)} if tally.before else {}),
                "last_day": max(
                    found.get("last_day", "") if found else "",
                    day_of(max(hits).time, UTC),
                ),
            }
            if found:
                changed.append(ReplaceOne({"_id": owner_key}, document))
            else:
                new.append(document)
        if new:
            collection(HitTally).insert_many(new, ordered=False, session=session)
        if changed:
            collection(HitTally).bulk_write(changed, ordered=False, session=session)
        hits_by_ad = Counter((event.website, event.ad_id) for event in events)
        filtered: Counter[folding.Parts] = Counter()
        for repeat, number in repeats.items():
            hits_by_ad[repeat.website, repeat.ad_id] -= number
            day = day_of(repeat.time, self._timezone)
            filtered[repeat.website, day, AdClick.__name__, REPEAT] += number
        return {
            Clicks: {
                parts: [hits_by_ad[parts], clicks[parts]]
                for parts in hits_by_ad.keys() | clicks.keys()
            },
            Filtered: {parts: [number] for parts, number in filtered.items() if number},
        }


def _tally(found: Mapping[str, Any]) -> Tally:
    before = _decode_hits(found["before"]) if "before" in found else ()
    return Tally(found["earlier"], _decode_hits(found["latest"]), before)


def _with_filtered(events: Iterable[Event], changes: Changes) -> Changes:
    """These changes, and of the events what is counted apart; only documents that change."""
    filtered = Counter(
        (event.website, event.invalid.day, type(event).__name__, event.invalid.reason)
        for event in events
        if event.invalid is not None
    )
    apart = {parts: [number] for parts, number in filtered.items()}
    every = {**changes, Filtered: {**changes.get(Filtered, {}), **apart}}
    return {document: added for document, added in every.items() if added}


def _counted(
    batches: Mapping[str, Sequence[Event]],
    fresh: set[str],
    brought: Sequence[Event],
    new: Sequence[Event],
    session: Session,
) -> dict[str, list[Event]]:
    """The new events of each batch; the repeats of `fresh` ones are kept, should they come again.

    `brought` are all events of these, `new` the ones that were.
    """
    repeats: dict[str, list[int]] = {}
    if len(new) < len(brought):
        known = set(map(id, new))
        for name in fresh:
            places = [place for place, event in enumerate(batches[name]) if id(event) not in known]
            if places:
                repeats[name] = places
        ledger.note_repeats(repeats, session)
    if len(fresh) < len(batches):
        repeats |= ledger.repeats_of(batches.keys() - fresh, session)
    left_out = {name: set(places) for name, places in repeats.items()}
    return {
        name: [event for place, event in enumerate(events) if place not in left_out[name]]
        if name in left_out
        else list(events)
        for name, events in batches.items()
    }


def _visitors_in(events: Iterable[Any]) -> dict[str, tuple[str, str]]:
    """The keys of the visitors that impressions make, and month and website of each."""
    return {
        key(event.month, website, event.user_id): (event.month, website)
        for event in events
        for website in (event.website, ALL_WEBSITES)
    }


class _Recent:
    """The latest keys added: so many at the least, twice as many at the most."""

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least
        self._new: set[str] = set()
        self._old: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._new or name in self._old

    def add(self, names: Iterable[str]) -> None:
        self._new.update(names)
        if len(self._new) > self._at_least:
            self._old, self._new = self._new, set()

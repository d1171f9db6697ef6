"""Applying a batch of events: one transaction that holds its ledger entry and all its counts."""

import itertools
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from pymongo import UpdateOne

from app.domain.clicks import Hit, Tally, count_hits
from app.domain.events import AdClick, AdImpression, Event, PageView
from app.store import ledger
from app.store.connection import Session, collection, create_collections, deadline, transaction
from app.store.documents import (
    ALL_WEBSITES,
    Clicks,
    HitTally,
    Impressions,
    MonthCounts,
    PageViews,
    Visitors,
    key,
)

STRIPES = 16
APPLY_SECONDS = 20.0
"""How long a batch may take, the wait for a database that is away included."""


@dataclass(frozen=True)
class ClickRule:
    """How many hits make a click, and whether a user's hits count over all ads or for each ad."""

    hits: int
    scope: Literal["user", "ad"]


class Counting:
    """Applies batches, for one process.

    Two transactions that update one document conflict, and one must be redone. So each process adds
    to counters of its own, its stripe. It takes one at random, and another when it did conflict.
    """

    def __init__(self, click_rule: ClickRule) -> None:
        self._click_rule = click_rule
        self._stripe = secrets.randbelow(STRIPES)
        self._prepared = False
        self._appliers: dict[type[Event], Callable[[Any, Session], None]] = {
            PageView: self._page_views,
            AdImpression: self._impressions,
            AdClick: self._clicks,
        }

    def apply(self, batch_id: str, kind: type[Event], events: Sequence[Event]) -> int | None:
        """Count these events, all of one kind; return how many were new.

        None where this batch has been applied before. Raises Unavailable where the database is
        away, and nothing was changed or the same batch may be applied again without harm.
        """

        def work(session: Session) -> int | None:
            if next(attempt):
                self._stripe = secrets.randbelow(STRIPES)
            if not ledger.enter(batch_id, session):
                return None
            fresh = ledger.claim(events, session)
            if fresh:
                self._appliers[kind](fresh, session)
            return len(fresh)

        attempt = itertools.count()
        with deadline(APPLY_SECONDS):
            if not self._prepared:
                create_collections()
                self._prepared = True
            return transaction(work)

    def _page_views(self, events: Sequence[PageView], session: Session) -> None:
        views = Counter((event.website, event.day, event.page) for event in events)
        self._add(
            PageViews,
            ("website", "day", "page"),
            {parts: {"views": number} for parts, number in views.items()},
            session,
        )

    def _impressions(self, events: Sequence[AdImpression], session: Session) -> None:
        of_ads = Counter((event.month, event.website, event.ad_id) for event in events)
        self._add(
            Impressions,
            ("month", "website", "ad_id"),
            {parts: {"impressions": number} for parts, number in of_ads.items()},
            session,
        )
        impressions: Counter[tuple[str, str]] = Counter()
        for event in events:
            impressions[event.month, event.website] += 1
            impressions[event.month, ALL_WEBSITES] += 1
        visitors = self._new_visitors(events, session)
        self._add(
            MonthCounts,
            ("month", "website"),
            {
                parts: {"impressions": number, "visitors": visitors[parts]}
                for parts, number in impressions.items()
            },
            session,
        )

    def _new_visitors(
        self, events: Sequence[AdImpression], session: Session
    ) -> Counter[tuple[str, str]]:
        """Write the users who were not visitors yet; how many these are by month and website."""
        candidates = {
            key(event.month, website, event.user_id): (event.month, website)
            for event in events
            for website in (event.website, ALL_WEBSITES)
        }
        visitors = collection(Visitors)
        query = {"_id": {"$in": list(candidates)}}
        for known in visitors.find(query, {"_id": 1}, session=session):
            del candidates[known["_id"]]
        if candidates:
            visitors.insert_many(
                [{"_id": visitor} for visitor in candidates], ordered=False, session=session
            )
        return Counter(candidates.values())

    def _clicks(self, events: Sequence[AdClick], session: Session) -> None:
        by_ad = self._click_rule.scope == "ad"
        hits_of: defaultdict[str, list[Hit]] = defaultdict(list)
        for event in events:
            owner = [event.user_id, event.website, event.ad_id] if by_ad else [event.user_id]
            hit = Hit(event.time, event.website, event.ad_id)
            hits_of[msgspec.json.encode(owner).decode()].append(hit)
        tallies = {
            document["_id"]: Tally(
                document["earlier"], tuple(Hit(*hit) for hit in document["latest"])
            )
            for document in collection(HitTally).find(
                {"_id": {"$in": list(hits_of)}}, session=session
            )
        }
        clicks: Counter[tuple[str, str]] = Counter()
        updates = []
        for owner_key, hits in hits_of.items():
            tally, change = count_hits(
                tallies.get(owner_key, Tally()),
                hits,
                per_click=self._click_rule.hits,
                # Hits of one user on one ad are alike, whatever their order.
                **({"remember": 0} if by_ad else {}),
            )
            clicks.update(change)
            updates.append(
                UpdateOne(
                    {"_id": owner_key},
                    {"$set": {"earlier": tally.earlier, "latest": list(map(list, tally.latest))}},
                    upsert=True,
                )
            )
        collection(HitTally).bulk_write(updates, ordered=False, session=session)
        hits_by_ad = Counter((event.website, event.ad_id) for event in events)
        self._add(
            Clicks,
            ("website", "ad_id"),
            {
                parts: {"hits": hits_by_ad[parts], "clicks": clicks[parts]}
                for parts in hits_by_ad.keys() | clicks.keys()
            },
            session,
        )

    def _add(
        self,
        document: Any,
        names: tuple[str, ...],
        increments: Mapping[tuple[Hashable, ...], Mapping[str, int]],
        session: Session,
    ) -> None:
        """Add to counters, given by the parts of their key, which have these names."""
        collection(document).bulk_write(
            [
                UpdateOne(
                    {"_id": key(*parts, self._stripe)},
                    {"$inc": dict(added), "$setOnInsert": dict(zip(names, parts, strict=True))},
                    upsert=True,
                )
                for parts, added in increments.items()
            ],
            ordered=False,
            session=session,
        )

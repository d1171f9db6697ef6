"""What can make an ad's figures differ from another system's, by website, ad and day.

The reasons are those of invalid traffic, and two more: LATE events count, but came on a later day
than their own, so that another system may count them on that day. COLLISION events don't count,
because their ids belong to other events. Ads that were only rendered are left out, as they are no
impressions either way.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import tzinfo
from typing import TypeGuard

from app.domain.calendar import day_of
from app.domain.events import AdClick, AdImpression, Event
from app.store.counters import KeyParts

COLLISION = "collision"
LATE = "late"


def differences(
    counted: Iterable[Event], collided: Iterable[Event], timezone: tzinfo
) -> Counter[KeyParts]:
    """How many of these events to add to each AdDifferences document, by the parts of its key.

    Days are those of the time zone.
    """
    found: Counter[KeyParts] = Counter()
    for event in filter(_is_of_ad, counted):
        if event.invalid:
            found[parts(event, event.invalid.day, event.invalid.reason)] += 1
        elif event.late:
            found[parts(event, _day_of(event, timezone), LATE)] += 1
    for event in filter(_is_of_ad, collided):
        found[parts(event, _day_of(event, timezone), COLLISION)] += 1
    return found


def _is_of_ad(event: Event) -> TypeGuard[AdImpression | AdClick]:
    if isinstance(event, AdImpression):
        return event.viewable is not False
    return isinstance(event, AdClick)


def parts(event: AdImpression | AdClick, day: str, reason: str) -> KeyParts:
    """The parts of the key of the AdDifferences that an event belongs to."""
    return event.website, day, type(event).__name__, reason, event.ad_id


def _day_of(event: AdImpression | AdClick, timezone: tzinfo) -> str:
    if event.time is not None:
        return day_of(event.time, timezone)
    return event.month  # only impressions that a release before 0.4 accepted have no time

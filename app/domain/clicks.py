"""The click rule: which hits of a user complete a click, and which only repeat another hit."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

REMEMBERED_HITS = 1_000
REMEMBERED_BYTES = 64 * 1024
"""How many bytes a user's remembered hits take at most, however long the names in them are."""
_HIT_BYTES = 24
"""The most bytes that a packed hit takes, and that its website and ad add to their names' own
(`app.store.histories`)."""


class Hit(NamedTuple):
    """One AdClick of a user. `time` is in milliseconds since the epoch."""

    time: int
    website: str
    ad_id: str


class Tally(NamedTuple):
    """What is known about a user's hits: the latest ones in order, and how many came before them.

    `before` holds the last earlier hit on each ad if a later hit may still repeat it. `latest` also
    holds hits that repeat others; `earlier` does not count these.
    """

    earlier: int = 0
    latest: tuple[Hit, ...] = ()
    before: tuple[Hit, ...] = ()


class Change(NamedTuple):
    """What new hits change: the clicks, by the hits that complete them, and which hits repeat."""

    clicks: Counter[Hit]
    repeats: Counter[Hit]


def count_hits(
    tally: Tally,
    hits: Iterable[Hit],
    *,
    per_click: int,
    window: int = 0,
    remember: int = REMEMBERED_HITS,
) -> tuple[Tally, Change]:
    """Add hits to a user's tally. Returns the new tally and what changes.

    A hit that follows a counted hit on the same ad within `window` milliseconds only repeats it and
    does not count.

    Hits are ordered by their own times, and every `per_click`-th one makes a click. So clicks and
    repeats depend only on the set of hits, and not on the order in which they arrive. A hit that
    arrives late can therefore move a click to another ad or day, and the change then holds negative
    numbers. Only the latest `remember` hits can still be reordered, or fewer if they take more than
    REMEMBERED_BYTES. An even older hit counts as the first of them.
    """
    grown = tally._replace(latest=tuple(sorted((*tally.latest, *hits))))
    clicks, repeats = _counted(grown, per_click, window)
    clicks_before, repeats_before = _counted(tally, per_click, window)
    clicks.subtract(clicks_before)
    repeats.subtract(repeats_before)
    forgotten = len(grown.latest) - _number_that_fits(grown.latest, remember)
    return _without(grown, forgotten, window), Change(clicks, repeats)


def _counted(tally: Tally, per_click: int, window: int) -> Change:
    counts, repeats = _split_repeats(tally.latest, _last_on_ads(tally.before), window)
    first = -(tally.earlier + 1) % per_click
    return Change(Counter(counts[first::per_click]), Counter(repeats))


def _split_repeats(
    hits: tuple[Hit, ...], last: dict[tuple[str, str], Hit], window: int
) -> tuple[tuple[Hit, ...] | list[Hit], list[Hit]]:
    """The hits that count, and those that repeat them. Updates `last`, the last hit on each ad."""
    if not window:
        return hits, []
    counts: list[Hit] = []
    repeats: list[Hit] = []
    for hit in hits:
        ad = hit.website, hit.ad_id
        known = last.get(ad)
        # The known hit is the later one only if this hit is older than all remembered hits.
        if known is not None and abs(hit.time - known.time) < window:
            repeats.append(hit)
        else:
            counts.append(hit)
            last[ad] = max(hit, known or hit)
    return counts, repeats


def _without(tally: Tally, number: int, window: int) -> Tally:
    """Drop this many of the oldest latest hits, but remember those that later hits may repeat."""
    if not number:
        return tally
    last = _last_on_ads(tally.before)
    counts, _ = _split_repeats(tally.latest[:number], last, window)
    since = tally.latest[number - 1].time - window
    before = sorted(hit for hit in last.values() if hit.time > since)
    fits = _number_that_fits(before, REMEMBERED_HITS)
    return Tally(
        tally.earlier + len(counts), tally.latest[number:], tuple(before[len(before) - fits :])
    )


def _number_that_fits(hits: Sequence[Hit], most: int) -> int:
    """How many of the last hits fit into REMEMBERED_BYTES, up to `most`."""
    names: set[tuple[str, str]] = set()
    size = 0
    for number, hit in enumerate(reversed(hits[-most:] if most else ())):
        ad = hit.website, hit.ad_id
        if ad not in names:
            names.add(ad)
            size += _HIT_BYTES + sum(len(name.encode()) for name in ad)
        size += _HIT_BYTES
        if size > REMEMBERED_BYTES:
            return number
    return min(most, len(hits))


def _last_on_ads(hits: Iterable[Hit]) -> dict[tuple[str, str], Hit]:
    return {(hit.website, hit.ad_id): hit for hit in hits}

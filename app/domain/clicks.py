"""The click rule: which hits of a user complete a click, and which only repeat another hit."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

REMEMBERED_HITS = 1_000
REMEMBERED_BYTES = 64 * 1024
"""A user's remembered hits take no more than this, whatever their websites and ads are called."""
_HIT_BYTES = 24
"""At least what a remembered hit takes, and at least what its website and ad take beside their
names: see `packed`."""


class Hit(NamedTuple):
    """One AdClick of a user. `time` is in milliseconds since the epoch."""

    time: int
    website: str
    ad_id: str


class Tally(NamedTuple):
    """What is known of a user's hits: the latest ones in order, and how many came before them.

    `before` are, of those that came before, the last on each ad which a later one may repeat. Hits
    that repeat others are among the latest, but else count nowhere.
    """

    earlier: int = 0
    latest: tuple[Hit, ...] = ()
    before: tuple[Hit, ...] = ()


class Change(NamedTuple):
    """What hits add to the clicks by (website, ad), and to the hits that repeat others."""

    clicks: Counter[tuple[str, str]]
    repeats: Counter[Hit]


def count_hits(
    tally: Tally,
    hits: Iterable[Hit],
    *,
    per_click: int,
    window: int = 0,
    remember: int = REMEMBERED_HITS,
) -> tuple[Tally, Change]:
    """Add hits to a user's tally; return the new tally and what changes.

    A hit less than `window` milliseconds after one on the same ad that counts only repeats that,
    and does not count.

    Hits stand in order of their own time, so that every `per_click`-th of them is the same one in
    whatever order they arrive: clicks and repeats follow from the set of hits alone. A hit that
    arrives late can so move a click from one ad to another, and the change hold negative numbers.
    Only the latest `remember` hits can still be reordered, fewer where their names are so long that
    they would take more than REMEMBERED_BYTES. A hit that is older than all of them is put before
    them.
    """
    grown = tally._replace(latest=tuple(sorted((*tally.latest, *hits))))
    clicks, repeats = _counted(grown, per_click, window)
    clicks_before, repeats_before = _counted(tally, per_click, window)
    clicks.subtract(clicks_before)
    repeats.subtract(repeats_before)
    forgotten = len(grown.latest) - _number_that_fits(grown.latest, remember)
    return _without(grown, forgotten, window), Change(clicks, repeats)


def _counted(tally: Tally, per_click: int, window: int) -> Change:
    counts, repeats = _told_apart(tally.latest, _last_on_ads(tally.before), window)
    first = -(tally.earlier + 1) % per_click
    clicks = Counter((hit.website, hit.ad_id) for hit in counts[first::per_click])
    return Change(clicks, Counter(repeats))


def _told_apart(
    hits: tuple[Hit, ...], last: dict[tuple[str, str], Hit], window: int
) -> tuple[tuple[Hit, ...] | list[Hit], list[Hit]]:
    """The hits that count, and those that repeat them; `last` is kept up to the last that count."""
    if not window:
        return hits, []
    counts: list[Hit] = []
    repeats: list[Hit] = []
    for hit in hits:
        ad = hit.website, hit.ad_id
        known = last.get(ad)
        # The known one is later only if this hit is older than all that are remembered.
        if known is not None and abs(hit.time - known.time) < window:
            repeats.append(hit)
        else:
            counts.append(hit)
            last[ad] = max(hit, known or hit)
    return counts, repeats


def _without(tally: Tally, number: int, window: int) -> Tally:
    """Forget the first of the latest hits, but for what the others must know of them."""
    if not number:
        return tally
    last = _last_on_ads(tally.before)
    counts, _ = _told_apart(tally.latest[:number], last, window)
    since = tally.latest[number - 1].time - window
    before = sorted(hit for hit in last.values() if hit.time > since)
    fits = _number_that_fits(before, REMEMBERED_HITS)
    return Tally(
        tally.earlier + len(counts), tally.latest[number:], tuple(before[len(before) - fits :])
    )


def _number_that_fits(hits: Sequence[Hit], most: int) -> int:
    """How many of the last of these hits are at most so many, and take at most REMEMBERED_BYTES."""
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

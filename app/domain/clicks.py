"""The click rule: which hits of a user complete a click."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

REMEMBERED_HITS = 1_000


class Hit(NamedTuple):
    """One AdClick of a user. `time` is in milliseconds since the epoch."""

    time: int
    website: str
    ad_id: str


class Tally(NamedTuple):
    """What is known of a user's hits: the latest ones in order, and how many came before them."""

    earlier: int = 0
    latest: tuple[Hit, ...] = ()


def count_hits(
    tally: Tally, hits: Iterable[Hit], *, per_click: int, remember: int = REMEMBERED_HITS
) -> tuple[Tally, Counter[tuple[str, str]]]:
    """Add hits to a user's tally; return the new tally and the change of clicks by (website, ad).

    Hits stand in order of their own time, so that every `per_click`-th of them is the same one in
    whatever order they arrive: the clicks follow from the set of hits alone. A hit that arrives
    late can so move a click from one ad to another, and the change hold a negative number. Only
    the latest `remember` hits can still be reordered; one that is older than all of them is put
    before them.
    """
    before = _clicks(tally, per_click)
    grown = Tally(tally.earlier, tuple(sorted((*tally.latest, *hits))))
    change = _clicks(grown, per_click)
    change.subtract(before)
    forgotten = max(0, len(grown.latest) - remember)
    return Tally(tally.earlier + forgotten, grown.latest[forgotten:]), change


def _clicks(tally: Tally, per_click: int) -> Counter[tuple[str, str]]:
    first = -(tally.earlier + 1) % per_click
    return Counter((hit.website, hit.ad_id) for hit in tally.latest[first::per_click])

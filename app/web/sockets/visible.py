"""What a viewer may see of live counts, spikes and drops."""

from typing import NamedTuple

import msgspec

from app.domain.urls import is_among
from app.redis.live import Counts
from app.redis.spikes import Spike


class Visible(NamedTuple):
    """Which websites (also `*.site1.com`; empty: all) and which ads (None: all, and all pages)."""

    websites: frozenset[str] = frozenset()
    ads: frozenset[str] | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self == EVERYTHING

    def counts(self, counts: Counts) -> Counts:
        """What may be seen of these counts."""
        return counts if self.is_everything else counts.of(self._is_theirs, self.ads)

    def spike(self, spike: Spike) -> Spike | None:
        """A spike or drop if it may be seen, without how many others there were."""
        if self.is_everything:
            return spike
        is_of_ad = spike.kind == "spike" and spike.queue != "page_view"
        if self.ads is not None and not (is_of_ad and spike.name in self.ads):
            return None
        if not self._is_theirs(spike.website):
            return None
        return msgspec.structs.replace(spike, more=0)

    def _is_theirs(self, website: str) -> bool:
        return not self.websites or is_among(website, self.websites)


EVERYTHING = Visible()

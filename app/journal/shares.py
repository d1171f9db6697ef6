"""Shares: whose events go first where more comes than is counted.

Each sender has a share of each queue, SHARE_BYTES of events a second. What it brings within that is
dated when it came, what it brings beyond it is late: dated when its share would have come to it,
and after all that is not late. Workers take what is dated first. So events of a sender within its
share never wait behind those of one that brings too many, and where nobody else has any the latter
are taken at once. (As Zhang, "VirtualClock", 1990, dates packets. What one took that nobody else
needed is not held against it: none goes on from later than the last that waits, as in self-clocked
fair queueing by Golestani, 1994.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SHARE_BYTES = 64 * 1024
"""Some 400 events; of the dearest, on pages of 4 kB that are new, still fewer than are counted."""
BURST_SECONDS = 8.0
"""A share of so long may come at once."""
LATE = 2.0**33
"""Late ones are dated so many seconds later, which is after all others."""
MAX_SENDERS = 10_000
"""That a process remembers; of more, those that used most."""


@dataclass
class Shares:
    """The shares of the senders in one queue, for one process. Times are since the epoch."""

    first: float = 0.0
    """When the first late batch that waits is dated, but for LATE, and the last."""
    last: float = 0.0
    _used: dict[str, float] = field(default_factory=dict)
    """Until when each sender has used its share."""

    def note(self, first: float, last: float) -> None:
        """Note when the first and the last batch are dated that wait, late or not."""
        self.first, self.last = max(0.0, first - LATE), max(0.0, last - LATE)

    def left(self, sender: str, now: float) -> float:
        """How many bytes of what a sender brings now are within its share."""
        ends = now + BURST_SECONDS
        return max(0.0, ends - self._used_until(sender, now)) * SHARE_BYTES

    def use(self, sender: str, size: int, now: float) -> None:
        """Take so many bytes off the share of a sender."""
        self._set(sender, self._used_until(sender, now) + size / SHARE_BYTES, now)

    def use_late(self, sender: str, size: int, now: float) -> float:
        """Take so many bytes off the later share of a sender; when they are dated."""
        due = max(self._used_until(sender, now), self.first) + size / SHARE_BYTES
        self._set(sender, due, now)
        return due + LATE

    def _used_until(self, sender: str, now: float) -> float:
        return max(now, min(self._used.get(sender, 0.0), max(self.last, now + BURST_SECONDS)))

    def _set(self, sender: str, until: float, now: float) -> None:
        if sender not in self._used and len(self._used) >= MAX_SENDERS:
            self._used = _ahead(self._used, now)
        self._used[sender] = until


def _ahead(used: Mapping[str, float], now: float) -> dict[str, float]:
    """Until when senders have used their shares, of those that used most."""
    ahead = sorted((until, sender) for sender, until in used.items() if until > now)
    return {sender: until for until, sender in ahead[-MAX_SENDERS // 2 :]}

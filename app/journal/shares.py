"""Shares: whose events go first if more events come than can be counted.

Each sender has a share of each queue: SHARE_BYTES of events a second. Events within the share are
dated when they arrive. Events beyond it are late: they are dated when the share would allow them,
and after all events that are not late. Workers take the earliest dates first. So a sender within
its share never waits behind one that sends too much. If nobody else sends anything, late events are
taken at once.

Events are dated as "VirtualClock" dates packets (Zhang, 1990). A sender is not punished for using
capacity that nobody else needed: its dates never start later than the last one that waits, as in
self-clocked fair queueing (Golestani, 1994).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SHARE_BYTES = 64 * 1024
"""About 400 events. Even if they are the most expensive ones, on new pages of 4 kB, more than this
can be counted in a second."""
BURST_SECONDS = 8.0
"""How many seconds of a share may come at once."""
LATE = 2.0**33
"""How many seconds are added to the dates of late events, which puts them after all others."""
MAX_SENDERS = 10_000
"""How many senders a process remembers: those that used the most."""


@dataclass
class Shares:
    """The shares of the senders in one queue, for one process. Times are since the epoch."""

    first: float = 0.0
    """The date of the first late batch that waits, minus LATE."""
    last: float = 0.0
    """The date of the last late batch that waits, minus LATE."""
    _used: dict[str, float] = field(default_factory=dict)
    """Until when each sender has used up its share."""

    def note(self, first: float, last: float) -> None:
        """Record the dates of the first and the last waiting batch, whether late or not."""
        self.first, self.last = max(0.0, first - LATE), max(0.0, last - LATE)

    def left(self, sender: str, now: float) -> float:
        """How many bytes a sender may still send now within its share."""
        ends = now + BURST_SECONDS
        return max(0.0, ends - self._used_until(sender, now)) * SHARE_BYTES

    def use(self, sender: str, size: int, now: float) -> None:
        """Use this many bytes of a sender's share."""
        self._set(sender, self._used_until(sender, now) + size / SHARE_BYTES, now)

    def use_late(self, sender: str, size: int, now: float) -> float:
        """Use this many bytes of a sender's future share. Returns their date, with LATE."""
        due = max(self._used_until(sender, now), self.first) + size / SHARE_BYTES
        self._set(sender, due, now)
        return due + LATE

    def _used_until(self, sender: str, now: float) -> float:
        return max(now, min(self._used.get(sender, 0.0), max(self.last, now + BURST_SECONDS)))

    def _set(self, sender: str, until: float, now: float) -> None:
        if sender not in self._used and len(self._used) >= MAX_SENDERS:
            self._used = _heaviest(self._used, now)
        self._used[sender] = until


def _heaviest(used: Mapping[str, float], now: float) -> dict[str, float]:
    """The entries of the senders that used the most."""
    ahead = sorted((until, sender) for sender, until in used.items() if until > now)
    return {sender: until for until, sender in ahead[-MAX_SENDERS // 2 :]}

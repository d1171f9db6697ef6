"""Which requests are invalid traffic as a whole."""

from collections.abc import Sequence
from functools import lru_cache

from flask import Request

from app.domain.addresses import MAX_LENGTH, client_address
from app.domain.robots import is_robot
from app.domain.traffic import ADDRESS, ROBOT
from app.settings import Network

MAX_REMEMBERED = 4_096


class TrafficFilter:
    """Finds requests from these networks, and those of robots unless it is to let them be."""

    def __init__(self, excluded: Sequence[Network], *, robots: bool) -> None:
        self._excluded = excluded
        self._robots = robots
        self._is_excluded = lru_cache(MAX_REMEMBERED)(self._look_up)

    def reason(self, posted: Request) -> str:
        """Why the events of this request are to be counted apart; an empty text if they are not."""
        # A trusted proxy may hand on any text as an address.
        if self._excluded and self._is_excluded((posted.remote_addr or "")[:MAX_LENGTH]):
            return ADDRESS
        if self._robots and is_robot(posted.environ.get("HTTP_USER_AGENT", "")):
            return ROBOT
        return ""

    def _look_up(self, address: str) -> bool:
        parsed = client_address(address)
        return parsed is not None and any(parsed in network for network in self._excluded)

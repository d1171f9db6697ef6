"""Finding requests that are invalid traffic, as a whole or event by event."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from flask import Request

from app.domain.addresses import MAX_LENGTH, Network, client_address
from app.domain.invalid_traffic import ADDRESS, ROBOT
from app.domain.reader import visitor_in
from app.domain.robots import is_robot

MAX_REMEMBERED = 4_096


class TrafficFilter:
    """Finds requests from excluded networks, and if `robots` is true those of robots."""

    def __init__(self, excluded: Sequence[Network], *, robots: bool) -> None:
        self._excluded = excluded
        self._robots = robots
        self._is_excluded = lru_cache(MAX_REMEMBERED)(self._look_up)

    def judge(self, sent: Request, *, has_key: bool) -> str | Callable[[bytes], str]:
        """Why the events of this request count apart; an empty text if they don't.

        A server posts for others, so each of its events is judged by what it says of its visitor:
        for such a request this returns a function that returns the reason for an event.
        """
        address = sent.remote_addr or ""
        if has_key and _is_of_server(sent):
            return partial(self._reason_of_visitor, address)
        return self._reason(address, sent.environ.get("HTTP_USER_AGENT", ""))

    def _reason_of_visitor(self, address: str, event: bytes) -> str:
        visitor = visitor_in(event)
        given = visitor.get("Address", "")[:MAX_LENGTH]
        # A server that does not know it may send an empty text, or "unknown".
        is_known = client_address(given) is not None
        return self._reason(given if is_known else address, visitor.get("UserAgent", ""))

    def _reason(self, address: str, agent: str) -> str:
        # A trusted proxy may forward any text as an address.
        if self._excluded and self._is_excluded(address[:MAX_LENGTH]):
            return ADDRESS
        return ROBOT if self._robots and is_robot(agent) else ""

    def _look_up(self, address: str) -> bool:
        parsed = client_address(address)
        return parsed is not None and any(parsed in network for network in self._excluded)


def _is_of_server(sent: Request) -> bool:
    """Whether a server sent this: a browser says where its posts come from."""
    return sent.method == "POST" and not any(
        name in ("HTTP_ORIGIN", "HTTP_REFERER") or name.startswith("HTTP_SEC_FETCH_")
        for name in sent.environ
    )

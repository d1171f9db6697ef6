"""Finds requests that are invalid traffic, as a whole or event by event."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from flask import Request

from app.domain.addresses import MAX_LENGTH, Network, client_address
from app.domain.invalid_traffic import ADDRESS, ROBOT
from app.domain.reader import visitor_in
from app.domain.robots import is_robot

MAX_REMEMBERED = 4_096


class TrafficFilter:
    """Finds requests from excluded networks and, with `robots`, requests from robots."""

    def __init__(self, excluded: Sequence[Network], *, robots: bool) -> None:
        self._excluded = excluded
        self._robots = robots
        self._is_excluded = lru_cache(MAX_REMEMBERED)(self._look_up)

    def judge(self, sent: Request, *, has_key: bool) -> str | Callable[[bytes], str]:
        """The reason why the events of this request count separately, or "" if they don't.

        A server posts for its visitors, so each of its events is judged by its visitor. For such a
        request this returns a function that returns the reason for an event (JSON).
        """
        address = sent.remote_addr or ""
        if has_key and _is_of_server(sent):
            return partial(self._reason_of_visitor, address)
        return self._reason(sent.environ.get("HTTP_USER_AGENT", ""), address)

    def _reason_of_visitor(self, address: str, event: bytes) -> str:
        visitor = visitor_in(event)
        # A server that does not know its visitor's address may send an empty text, or "unknown".
        return self._reason(visitor.get("UserAgent", ""), visitor.get("Address", ""), address)

    def _reason(self, agent: str, *addresses: str) -> str:
        """The reason for this agent and the first of these texts that is an address."""
        if self._excluded:
            # A trusted proxy may forward any text as an address.
            found = (self._is_excluded(address[:MAX_LENGTH]) for address in addresses)
            if next((is_excluded for is_excluded in found if is_excluded is not None), False):
                return ADDRESS
        return ROBOT if self._robots and is_robot(agent) else ""

    def _look_up(self, address: str) -> bool | None:
        """Whether an address is excluded, or None if the text is not an address."""
        parsed = client_address(address)
        return None if parsed is None else any(parsed in network for network in self._excluded)


def _is_of_server(sent: Request) -> bool:
    """Whether a server sent this. A browser would say where its post comes from."""
    return sent.method == "POST" and not any(
        name in ("HTTP_ORIGIN", "HTTP_REFERER") or name.startswith("HTTP_SEC_FETCH_")
        for name in sent.environ
    )

"""Known robots, by the User-Agent of a request (RFC 9110, section 10.1.5)."""

import re
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

MAX_AGENT_LENGTH = 512
MAX_REMEMBERED = 4_096
HTTP_LIBRARY = "http-library"

_ROBOTS = [robot for robot in CRAWLER_USER_AGENTS_DATA if HTTP_LIBRARY not in robot["tags"]]
# Those of Facebook's and Instagram's own browser, the latter's by a version of Android.
_PEOPLE = {"MetaIAB Facebook", r"AP3A\.240617\.008"}
_BROWSER = re.compile(r"Mozilla/5\.0 \([^)]*\).* (AppleWebKit|Gecko)/").match
_OF_ITSELF = re.compile(r"compatible;|://|@|bot\b|crawl|spider", re.IGNORECASE).search
"""What robots say of themselves, and hardly a browser does."""
# Searching for all at once takes twice as long, and each on its own takes long to compile.
_AT_ONCE = 25


class _Search:
    """Looks for any of these patterns, compiled when it is first asked."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = list(patterns)

    @cached_property
    def _searches(self) -> list[Callable[[str], object]]:
        return [
            re.compile("|".join(self._patterns[start : start + _AT_ONCE])).search
            for start in range(0, len(self._patterns), _AT_ONCE)
        ]

    def finds(self, text: str) -> bool:
        """Whether any of them is in the text."""
        return any(search(text) for search in self._searches)


_any = _Search(robot["pattern"] for robot in _ROBOTS)
_like_browsers = _Search(
    robot["pattern"]
    for robot in _ROBOTS
    if robot["pattern"] not in _PEOPLE and any(map(_BROWSER, robot["instances"]))
)


def is_robot(user_agent: str) -> bool:
    """Whether the list of crawler-user-agents names this robot; only its first letters matter.

    Libraries for HTTP, such as curl, are in the list too, but are no robots here: servers post
    the events of people with them. Apps are in it as well, by what fetches a page for them. People
    read pages in them too: what calls itself a browser, and no robot, is one only by the name of a
    robot that does so.
    """
    return _is_robot(user_agent[:MAX_AGENT_LENGTH])


@lru_cache(MAX_REMEMBERED)
def _is_robot(user_agent: str) -> bool:
    if not _any.finds(user_agent):
        return False
    is_browser = _BROWSER(user_agent) and not _OF_ITSELF(user_agent)
    return not is_browser or _like_browsers.finds(user_agent)

"""Known robots, by the User-Agent of a request (RFC 9110, section 10.1.5)."""

import re
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

MAX_AGENT_LENGTH = 512
MAX_REMEMBERED = 4_096
HTTP_LIBRARY = "http-library"

_ROBOTS = [robot for robot in CRAWLER_USER_AGENTS_DATA if HTTP_LIBRARY not in robot["tags"]]
# The in-app browsers of Facebook and Instagram; the latter is listed by a version of Android.
_PEOPLE = {"MetaIAB Facebook", r"AP3A\.240617\.008"}
_BROWSER = re.compile(r"Mozilla/5\.0 \([^)]*\).* (AppleWebKit|Gecko)/").match
_OF_ITSELF = re.compile(r"compatible;|://|@|bot\b|crawl|spider", re.IGNORECASE).search
"""What robots say of themselves, and browsers hardly ever do."""
# One pattern of them all searches half as fast, and single patterns take long to compile.
_AT_ONCE = 25


class _Search:
    """Looks for any of these patterns, which are compiled at the first search."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = list(patterns)

    @cached_property
    def _searches(self) -> list[Callable[[str], object]]:
        return [
            re.compile("|".join(self._patterns[start : start + _AT_ONCE])).search
            for start in range(0, len(self._patterns), _AT_ONCE)
        ]

    def finds(self, text: str) -> bool:
        """Whether the text matches any of the patterns."""
        return any(search(text) for search in self._searches)


_any = _Search(robot["pattern"] for robot in _ROBOTS)
_like_browsers = _Search(
    robot["pattern"]
    for robot in _ROBOTS
    if robot["pattern"] not in _PEOPLE and any(map(_BROWSER, robot["instances"]))
)


def is_robot(user_agent: str) -> bool:
    """Whether crawler-user-agents lists this agent (its first 512 characters) as a robot.

    The list also names HTTP libraries such as curl. Here they are not robots, because servers use
    them to post the events of people. It also names apps, for the fetchers of their link previews,
    but people read pages in these apps too. So an agent that looks like a browser, and does not
    call itself a robot, is a robot only if it has the name of one that looks like a browser as
    well.
    """
    return _is_robot(user_agent[:MAX_AGENT_LENGTH])


@lru_cache(MAX_REMEMBERED)
def _is_robot(user_agent: str) -> bool:
    if not _any.finds(user_agent):
        return False
    is_browser = _BROWSER(user_agent) and not _OF_ITSELF(user_agent)
    return not is_browser or _like_browsers.finds(user_agent)

"""Recognises known robots by the User-Agent of a request (RFC 9110, section 10.1.5)."""

import re
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

MAX_AGENT_LENGTH = 512
MAX_REMEMBERED = 4_096
HTTP_LIBRARY = "http-library"

_ROBOTS = [robot for robot in CRAWLER_USER_AGENTS_DATA if HTTP_LIBRARY not in robot["tags"]]
# The in-app browsers of Facebook and Instagram. The list names the latter by an Android version.
_IN_APP_BROWSERS = {"MetaIAB Facebook", r"AP3A\.240617\.008"}
_BROWSER = re.compile(r"Mozilla/5\.0 \([^)]*\).* (AppleWebKit|Gecko)/").match
_ROBOT_WORDS = re.compile(r"compatible;|://|@|bot\b|crawl|spider", re.IGNORECASE).search
"""Words in the names of robots, but hardly ever in those of browsers."""
# A single pattern for all robots searches half as fast, and one pattern each takes long to compile.
_ROBOTS_PER_PATTERN = 25


class _Search:
    """A search for any of these patterns. They are compiled when they are first used."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = list(patterns)

    @cached_property
    def _searches(self) -> list[Callable[[str], object]]:
        return [
            re.compile("|".join(self._patterns[start : start + _ROBOTS_PER_PATTERN])).search
            for start in range(0, len(self._patterns), _ROBOTS_PER_PATTERN)
        ]

    def finds(self, text: str) -> bool:
        """Whether the text matches any of the patterns."""
        return any(search(text) for search in self._searches)


_all_robots = _Search(robot["pattern"] for robot in _ROBOTS)
_browser_like_robots = _Search(
    robot["pattern"]
    for robot in _ROBOTS
    if robot["pattern"] not in _IN_APP_BROWSERS and any(map(_BROWSER, robot["instances"]))
)


def is_robot(user_agent: str) -> bool:
    """Whether crawler-user-agents lists this agent (its first 512 characters) as a robot.

    The list also names HTTP libraries such as curl. Here they are not robots, because servers use
    them to post the events of people. The list also names apps that fetch pages for link previews,
    but people read pages in these apps too. So if an agent looks like a browser and does not call
    itself a robot, only the names of robots that also look like browsers are compared.
    """
    return _is_robot(user_agent[:MAX_AGENT_LENGTH])


@lru_cache(MAX_REMEMBERED)
def _is_robot(user_agent: str) -> bool:
    if not _all_robots.finds(user_agent):
        return False
    is_browser = _BROWSER(user_agent) and not _ROBOT_WORDS(user_agent)
    return not is_browser or _browser_like_robots.finds(user_agent)

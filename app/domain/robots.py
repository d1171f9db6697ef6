"""Known robots, by the User-Agent of a request (RFC 9110, section 10.1.5)."""

import re
from functools import lru_cache

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

MAX_AGENT_LENGTH = 512
MAX_REMEMBERED = 4_096
HTTP_LIBRARY = "http-library"

_PATTERNS = [
    robot["pattern"] for robot in CRAWLER_USER_AGENTS_DATA if HTTP_LIBRARY not in robot["tags"]
]
# Searching for all at once takes twice as long, and each on its own takes long to compile.
_AT_ONCE = 25
_SEARCHES = [
    re.compile("|".join(_PATTERNS[start : start + _AT_ONCE])).search
    for start in range(0, len(_PATTERNS), _AT_ONCE)
]


def is_robot(user_agent: str) -> bool:
    """Whether the list of crawler-user-agents names this robot; only its first letters matter.

    Libraries for HTTP, such as curl, are in the list too, but are no robots here: servers post
    the events of people with them.
    """
    return _is_robot(user_agent[:MAX_AGENT_LENGTH])


@lru_cache(MAX_REMEMBERED)
def _is_robot(user_agent: str) -> bool:
    return any(search(user_agent) for search in _SEARCHES)

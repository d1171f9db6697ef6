"""Invalid traffic: events that are accepted, but counted apart.

What lists and parameters can tell is called general invalid traffic by the Media Rating Council
(Invalid Traffic Detection and Filtration Standards Addendum, 2020); the reasons here are all of it.
"""

from msgspec import Struct

ADDRESS = "address"
"""Posted from an address that the operator excludes."""
ROBOT = "robot"
"""Posted by a known robot."""
USER = "user"
"""Of a user whom the operator excludes."""
REPEAT = "repeat"
"""A click of a user on an ad, shortly after one that counts."""

REASONS = (ADDRESS, ROBOT, USER, REPEAT)


class Invalid(Struct, frozen=True):
    """Why an event is counted apart, and its day (YYYY-MM-DD in the collector's time zone)."""

    reason: str
    day: str

"""Invalid traffic: events that are accepted, but counted separately.

If lists and parameters can identify invalid traffic, the Media Rating Council calls it general
(Invalid Traffic Detection and Filtration Standards Addendum, 2020). All reasons here belong to it.
"""

from msgspec import Struct

ADDRESS = "address"
"""Posted from an address that the operator excludes."""
ROBOT = "robot"
"""Posted by a known robot."""
USER = "user"
"""Names a user whom the operator excludes."""
REPEAT = "repeat"
"""A user's hit on an ad shortly after one that counted."""

REASONS = (ADDRESS, ROBOT, USER, REPEAT)


class Invalid(Struct, frozen=True):
    """Why an event counts separately, and its day (YYYY-MM-DD in the collector's time zone)."""

    reason: str
    day: str

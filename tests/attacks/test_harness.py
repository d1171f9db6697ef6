from tests.attacks.harness import (
    ALL_PARTS,
    MIB,
    MOST_BEHIND_SECONDS,
    MOST_HEALTH_SECONDS,
    MOST_REFUSED_SECONDS,
    Outcome,
    memory_limits,
)
from tests.faults.clients import differences

LIMITS = {"web": 100 * MIB}
BOUNDS = MOST_REFUSED_SECONDS, MOST_HEALTH_SECONDS, MOST_BEHIND_SECONDS
FINE = Outcome("none", 9, 9, 0, 0, *BOUNDS, {"web": 1}, [])


def test_every_part_except_the_database_has_a_memory_limit() -> None:
    limits = memory_limits()
    assert limits.keys() == ALL_PARTS.keys() - {"database"}
    assert limits["worker-ad_click"] == 512 * MIB


def test_lost_and_repeated_events_are_summed_separately() -> None:
    wanted = [{"page": "/a", "views": 3}, {"page": "/b", "views": 2}, {"page": "/c", "views": 1}]
    found = [{"page": "/a", "views": 1}, {"page": "/b", "views": 4}, {"page": "/d", "views": 9}]
    assert differences(wanted, wanted) == (0, 0)
    assert differences(wanted, found) == (3, 3)


def test_every_broken_limit_is_named() -> None:
    assert FINE.broken(LIMITS) == []
    for change in (
        {"posted": 0},
        {"lost": 1},
        {"repeated": 1},
        {"refused_seconds": MOST_REFUSED_SECONDS + 0.1},
        {"health_seconds": MOST_HEALTH_SECONDS + 0.1},
        {"behind_seconds": MOST_BEHIND_SECONDS + 1},
        {"memory": {"web": 101 * MIB}},
        {"wrong": ["a spike too many"]},
    ):
        assert len(FINE._replace(**change).broken(LIMITS)) == 1

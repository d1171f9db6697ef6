from app.journal import shares as module
from app.journal.shares import BURST_SECONDS, LATE, SHARE_BYTES, Shares

NOW = 1_000_000.0
BURST = int(BURST_SECONDS * SHARE_BYTES)


def bring(shares: Shares, sender: str, size: int, now: float = NOW) -> float:
    """Add this many bytes from a sender to those that wait; return when they are due."""
    if shares.left(sender, now):
        shares.use(sender, size, now)
        due = now
    else:
        due = shares.use_late(sender, size, now) - LATE
    shares.last = max(shares.last, due)
    return due


def test_events_within_a_senders_share_are_due_at_once() -> None:
    shares = Shares()
    for second in range(100):
        assert bring(shares, "a", SHARE_BYTES, NOW + second) == NOW + second


def test_events_beyond_a_senders_share_are_due_when_its_share_allows() -> None:
    shares = Shares()
    assert bring(shares, "a", BURST) == NOW
    assert bring(shares, "a", SHARE_BYTES) == NOW + BURST_SECONDS + 1
    assert bring(shares, "a", SHARE_BYTES) == NOW + BURST_SECONDS + 2
    assert bring(shares, "b", SHARE_BYTES) == NOW


def test_using_a_share_that_nobody_else_needed_has_no_later_cost() -> None:
    shares = Shares()
    bring(shares, "a", BURST)
    bring(shares, "a", 1_000 * BURST)
    shares.first = shares.last = 0.0  # everything was counted
    assert bring(shares, "a", 1) < NOW + BURST_SECONDS + 1
    assert bring(shares, "a", 1, NOW + 1) == NOW + 1


def test_events_that_were_counted_at_once_still_use_up_the_share() -> None:
    shares = Shares()
    bring(shares, "a", BURST)
    shares.first = shares.last = 0.0
    assert bring(shares, "a", 1) > NOW


def test_a_sender_beyond_its_share_does_not_wait_for_one_that_came_later() -> None:
    shares = Shares()
    bring(shares, "a", BURST)
    bring(shares, "a", 1_000 * BURST)
    shares.first = NOW + 500 * BURST_SECONDS  # half of it was counted
    bring(shares, "b", BURST)
    assert bring(shares, "b", 1) >= shares.first


def test_a_process_remembers_the_senders_that_used_the_most() -> None:
    shares = Shares()
    bring(shares, "a", 2 * BURST)
    for number in range(module.MAX_SENDERS + 1):
        bring(shares, f"{number}", 1)
    assert len(shares._used) <= module.MAX_SENDERS
    assert bring(shares, "a", 1) > NOW

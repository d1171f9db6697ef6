"""With an unavailable broker, posts are refused at once, and refusing costs no memory."""

import signal
import threading
from pathlib import Path

import httpx
import pytest

from app.journal.journal import Journal
from tests.support.servers import Server
from tests.web.test_server import server

pytestmark = pytest.mark.proof

__all__ = ["server"]

VIEWS = [{"Type": "PageView", "Url": f"site1.com/{n}"} for n in range(80)]
CLIENTS = 8


def refused(url: str, posts: int) -> int:
    """Post from several clients at once; return how many posts got 503."""
    statuses: list[int] = []

    def post() -> None:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            for _ in range(posts // CLIENTS):
                response = client.post("/events", json=VIEWS)
                assert int(response.headers["Retry-After"]) > 0
                statuses.append(response.status_code)

    threads = [threading.Thread(target=post) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses.count(503)


def resident_kilobytes(url: str) -> int:
    """The memory of the processes that serve this URL, whose port is in their titles."""
    port = url.rsplit(":", 1)[1]
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            if f"PORT={port}".encode() in environment:
                status = (process / "status").read_text()
                total += int(status.split("VmRSS:")[1].split()[0])
        except (OSError, IndexError):
            continue
    return total


def test_posts_refused_while_redis_is_unavailable_cost_no_memory(
    server: str, journal: Journal, redis: Server
) -> None:
    redis.kill()
    try:
        assert refused(server, 2_000) == 2_000
        before = resident_kilobytes(server)
        assert refused(server, 1_000) == 1_000
        grown = resident_kilobytes(server) - before
    finally:
        redis.start()
    print(f"{grown} KiB in 1000 refused posts of {len(VIEWS)} events, of {before} KiB")
    assert before > 0
    # If it kept the posts, they would take over 16,000 KiB.
    assert grown < 8_000
    assert httpx.post(f"{server}/events", json=VIEWS).status_code == 202


@pytest.mark.parametrize("posts", [CLIENTS])
def test_no_post_waits_for_a_redis_that_does_not_answer(
    server: str, journal: Journal, redis: Server, posts: int
) -> None:
    assert httpx.post(f"{server}/events", json=VIEWS).status_code == 202
    redis.signal(signal.SIGSTOP)
    try:
        assert refused(server, posts) == posts
    finally:
        redis.signal(signal.SIGCONT)

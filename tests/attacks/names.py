"""Attacks with names: longer than they look, very many, or in documents that everyone shares."""

import itertools
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx

from tests.attacks.honest import KINDS, event_id
from tests.attacks.hostile import Event, Target, at_once, attack, packed, post, post_all

GROWING_HOST = ".".join(["㍿"] * 1_023)
"""18,413 octets in ASCII, since each ㍿ is equivalent to four other characters."""
LONG_HOST = ".".join(["a" * 60] * 4)
HITS_AT_ONCE = 210
"""Four times as many such hosts take 15.4 MB; a MongoDB document may take at most 16 MiB."""
ASTRAL = "😀"
HITTING_SECONDS = 8.0


def view(url: str) -> Event:
    """A view of a page."""
    return {"Type": "PageView", "Url": url}


def hit(user: str, url: str, ad: str = "1") -> Event:
    """A hit of a user."""
    return {"Type": "AdClick", "Url": url, "Meta": {"UserId": user, "AdId": ad}}


@attack("840 hits of one user on hosts of 18 kB, then one after the other", 15)
def growing_hosts(target: Target) -> None:
    """A user's history reaches the size limit of a document, in batches with strangers' hits."""
    one = packed([hit("grower", GROWING_HOST)])
    with target.client("203.0.113.1") as client:
        post_all(target, client, [packed([hit("grower", GROWING_HOST)] * HITS_AT_ONCE)] * 4)
    at_once(target, 4, lambda client: post(client, one))


@attack("views of pages of 2,010 astral characters")
def astral_pages(target: Target) -> None:
    """Each takes 24 kB once it is encoded."""
    pages = itertools.count()

    def views(number: int) -> list[Event]:
        return [view(f"astral.test/{next(pages)}/{ASTRAL * 2_010}") for _ in range(number)]

    at_once(target, 2, lambda client: post(client, packed(views(20))))


@attack("ids of 128 astral characters")
def astral_ids(target: Target) -> None:
    """Users, ads and event ids of 512 bytes each."""
    numbers = itertools.count()

    def event(kind: str) -> Event:
        name = f"{next(numbers):08}" + ASTRAL * 120
        return hit(name, "astral.test", name) | {"Type": kind, "EventId": name}

    at_once(target, 2, lambda client: post(client, packed([event(kind) for kind in KINDS * 30])))


@attack("hits of 5,000 new users with ids of 128 astral characters in each post", 12)
def new_users(target: Target) -> None:
    """One sender creates a click history for each of them."""
    numbers = itertools.count()

    def hits() -> list[Event]:
        users = [f"{next(numbers):08}" + ASTRAL * 120 for _ in range(5_000)]
        return [hit(user, "users.test", user) for user in users]

    at_once(target, 3, lambda client: post(client, packed(hits())), "203.0.113.1")


def post_by_all(target: Target, bodies: Iterable[bytes]) -> None:
    """Post each of these bodies once, from three addresses at a time."""
    left, lock = iter(bodies), threading.Lock()

    def next_body() -> bytes | None:
        with lock:
            return next(left, None)

    def go_on(sender: str) -> None:
        with target.client(sender) as client:
            while (body := next_body()) and not target.is_over():
                post_all(target, client, [body])

    threads = [threading.Thread(target=go_on, args=[f"203.0.113.{n}"]) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def prepare_and_hit(target: Target, users: Sequence[str], bodies: Iterable[bytes]) -> None:
    """Post these bodies; then, once a second, post a hit by every user in a single request.

    The preparation stops, finished or not, HITTING_SECONDS before the attack ends.
    """
    post_by_all(replace(target, until=target.until - HITTING_SECONDS), bodies)
    target = replace(target, until=time.monotonic() + HITTING_SECONDS)
    with target.client("203.0.113.9") as client:
        while not target.is_over():
            post_all(target, client, [packed([hit(user, "small.test") for user in users])])
            time.sleep(1)


@attack("85 users with 15 MB of hits each, then a hit of each at once", 100)
def prepared_users(target: Target) -> None:
    """Each has hits on hosts of 18 kB, or on as many long ads if these are refused."""
    users = [f"prepared-{n}" for n in range(85)]

    def hits(user: str) -> list[Event]:
        long_ads = [hit(user, LONG_HOST, f"{n:0128}") for n in range(HITS_AT_ONCE)]
        return [hit(user, GROWING_HOST)] * HITS_AT_ONCE + long_ads

    prepare_and_hit(target, users, (packed(hits(user)) for user in users for _ in range(4)))


@attack("1,100 users with 100 hits each on hosts of 250 characters, then a hit of each", 30)
def many_users(target: Target) -> None:
    """Each history is small, but all of them together are not."""
    users = [f"many-{n}" for n in range(1_100)]
    groups = [users[n : n + 50] for n in range(0, len(users), 50)]
    bodies = (packed([hit(user, LONG_HOST) for user in group] * 100) for group in groups)
    prepare_and_hit(target, users, bodies)


@attack("20,000 made-up websites with impressions of last month, then its aggregation", 90)
def made_up_websites(target: Target) -> Iterator[str]:
    """From 20 senders, each of which may add 1,000 websites a day."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    last_month = today - timedelta(days=today.day, seconds=1)
    for sender in range(20):
        with target.client(f"2001:db8:0:{sender}::1") as client:
            impressions = [
                hit("u", f"made-up-{sender}-{n}.test")
                | {"Type": "AdImpression", "Timestamp": last_month.isoformat()}
                for n in range(1_000)
            ]
            post_all(target, client, [packed(impressions)])
    month = f"{last_month:%Y-%m}"
    with target.client("203.0.113.1") as client:
        while _impressions(target, client, month) < 20_000:
            if target.is_over():
                yield "the impressions of the made-up websites were not counted in time"
                return
            time.sleep(0.5)
    ended = subprocess.run(
        ["eventstream", "aggregate", month],
        env=target.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=max(1.0, target.until - time.monotonic()),
    )
    if ended.returncode:
        yield f"aggregate ended with {ended.returncode}: {ended.stderr[-200:].strip()}"


def _impressions(target: Target, client: httpx.Client, month: str) -> int:
    """The impressions of all websites in a month so far."""
    asked = {"month": month, "website": "*"}
    report = client.get("/reports/impressions", params=asked, headers=target.operator).json()
    return sum(row["impressions"] for row in report["items"])


@attack("100,000 made-up pages and 1,100 websites of one sender", 15)
def made_up_pages(target: Target) -> Iterator[str]:
    """The dashboard still answers, and pages beyond the budget share one name."""
    views = [view(f"pages.test/{n}") for n in range(100_000)]
    websites = [view(f"website-{n}.test") for n in range(1_100)]
    with target.client("203.0.113.1") as client:
        groups = [views[n : n + 5_000] for n in range(0, len(views), 5_000)]
        post_all(target, client, [packed(group) for group in groups])
        answers = post_all(target, client, [packed(websites)])
        if not sum(answer.get("other", 0) for answer in answers):
            yield "1,100 new websites of one sender were all accepted"
        snapshot = client.get("/live/snapshot", headers=target.operator)
        if not snapshot.is_success:
            yield f"/live/snapshot answered {snapshot.status_code}"


@attack("ids that honest clients are going to use, on another website")
def claimed_ids(target: Target) -> None:
    """They count up, so whoever sees one can guess the next."""
    with target.client("203.0.113.1") as client:
        while not target.is_over():
            for kind in KINDS:
                events = [
                    hit("u", "claimed.test")
                    | {"Type": kind, "EventId": event_id("claimed_ids", n, kind)}
                    for n in range(1_000)
                ]
                post_all(target, client, [packed(events)])
            time.sleep(1)

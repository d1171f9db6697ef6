"""Clients that post simulated events to a collector, and the reports that must result."""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import httpx

from app.cli.simulation import Expectation, SimulatedEvent
from tests.support.collector import Collector

CLIENTS = 3
BATCH = 25
PAUSE_SECONDS = 0.5
PLAIN_VIEWS = 3
"""The number of views without ids in a post, all of a page that no other post uses."""

NAMES = {"website", "page", "month", "ad_id", "day", "time"}
"""The columns that identify a row."""

Row = dict[str, Any]


@dataclass(kw_only=True)
class Clients:
    """What the clients of a collector posted, and what became of it."""

    collector: Collector
    expectation: Expectation
    events: Iterator[SimulatedEvent]
    accepted: int = 0
    posts_again: int = 0
    plain_accepted: set[str] = field(default_factory=set)
    plain_unknown: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def post(self, client: httpx.Client, events: list[dict[str, Any]]) -> int | None:
        """The status of a post, or None if its connection is cut or gives no answer."""
        try:
            response = client.post("/events", json=events)
        except httpx.HTTPError:
            return None
        if response.status_code == 202:
            assert response.json() == {"accepted": len(events), "rejected": []}
        return response.status_code

    def threads(self) -> list[threading.Thread]:
        """A thread for each client."""
        clients = (*[self.client] * CLIENTS, self.plain_client)
        return [threading.Thread(target=target, daemon=True) for target in clients]

    def client(self) -> None:
        """Post batches of simulated events, each again until it is accepted."""
        with httpx.Client(base_url=self.collector.url, timeout=5, trust_env=False) as client:
            while not self.over.is_set():
                with self.lock:
                    batch = list(itertools.islice(self.events, BATCH))
                    for event in batch:
                        self.expectation.add(event)
                while self.post(client, [event.sent for event in batch]) != 202:
                    self.posts_again += 1
                    time.sleep(0.2)
                with self.lock:
                    self.accepted += len(batch)
                time.sleep(PAUSE_SECONDS)

    def plain_client(self) -> None:
        """Post page views without ids, each only once unless it was certainly not accepted."""
        with httpx.Client(base_url=self.collector.url, timeout=5, trust_env=False) as client:
            for number in itertools.count():
                if self.over.is_set():
                    return
                page = f"/{number}"
                view = {"Type": "PageView", "Url": f"plain.test{page}"}
                status = self.post(client, [view] * PLAIN_VIEWS)
                if status == 202:
                    self.plain_accepted.add(page)
                elif status in (None, 502):  # nginx, in front of the web, answers with this
                    self.plain_unknown.add(page)
                time.sleep(PAUSE_SECONDS)

    def compare(self) -> tuple[int, int, int]:
        """What the reports lack and have too much of, and their number of views without ids."""
        lost = repeated = 0
        wanted = self.expectation.reports()
        # Views without ids are recognized by their website, which the daily report does not show.
        del wanted["page-views/daily"]
        plain: dict[str, int] = {}
        for path, rows in wanted.items():
            found = rows_of(self.collector, path)
            if path == "page-views":
                plain = {
                    row["page"]: row["views"] for row in found if row["website"] == "plain.test"
                }
                found = [row for row in found if row["website"] != "plain.test"]
            if path.startswith("traffic"):
                less, more = differences(without_views(rows), without_views(found))
            else:
                less, more = differences(rows, found)
            lost += less
            repeated += more
        for page in self.plain_accepted | plain.keys():
            least = PLAIN_VIEWS if page in self.plain_accepted else 0
            most = PLAIN_VIEWS if page in self.plain_accepted | self.plain_unknown else 0
            lost += max(0, least - plain.get(page, 0))
            repeated += max(0, plain.get(page, 0) - most)
        return lost, repeated, sum(plain.values())


def without_views(rows: list[Row]) -> list[Row]:
    """The rows of traffic that have more than views. Those without ids are counted there too."""
    without = [{name: value for name, value in row.items() if name != "views"} for row in rows]
    return [
        row for row in without if any(isinstance(value, int) and value for value in row.values())
    ]


def differences(wanted: list[Row], found: list[Row]) -> tuple[int, int]:
    """How much the rows of a report fall short of the wanted ones, and how much they exceed them.

    Both are sums over all columns with counts. A row that was not wanted is one too many.
    """
    lost = repeated = 0
    # The rows of frequency are named by a number of impressions.
    names = [name for name in wanted[0] if name in NAMES] or ["impressions"]
    counted = {tuple(row[name] for name in names): row for row in found}
    for row in wanted:
        other = counted.pop(tuple(row[name] for name in names), {})
        for name, value in row.items():
            if isinstance(value, int):
                difference = value - other.get(name, 0)
                lost += max(0, difference)
                repeated += max(0, -difference)
    return lost, repeated + len(counted)


def rows_of(collector: Collector, path: str, **filters: str) -> list[Row]:
    """All rows of a report."""
    rows: list[Row] = []
    token = collector.environment.get("ADMIN_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    path, _, asked = path.partition("?")
    query: dict[str, Any] = {"limit": 1000, **dict(parse_qsl(asked)), **filters}
    if path == "frequency":
        del query["limit"]  # it has one page
    while True:
        answer = httpx.get(
            f"{collector.url}/reports/{path}", params=query, headers=headers, timeout=30
        ).raise_for_status()
        rows += answer.json()["items"]
        query["cursor"] = answer.json()["next_cursor"]
        if query["cursor"] is None:
            return rows

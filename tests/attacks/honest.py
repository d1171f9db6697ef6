"""Honest clients that post while others attack, and the reports that must result."""

import itertools
import threading
import time
from datetime import UTC, datetime

import httpx

from app.cli.simulation import Expectation, SimulatedEvent
from tests.attacks.hostile import Event, Target

KINDS = ("PageView", "AdImpression", "AdClick")
CLIENTS = 3
PAUSE_SECONDS = 0.3
ANSWER_SECONDS = 5.0
GIVE_UP_SECONDS = 60.0


def event_id(attack: str, number: int, kind: str) -> str:
    """The id of an honest client's event during an attack."""
    return f"{attack}-{number}-{kind}"


class Honest:
    """Clients that post small batches to a website of their own until they are stopped.

    Each sends a batch again until it gets 202. `longest` is the longest wait for a 202 in
    seconds; `unanswered` is how many batches never got one.
    """

    def __init__(self, attack: str, target: Target) -> None:
        self.website = f"{attack.replace('_', '-')}.honest.test"
        self.expectation = Expectation(UTC, 3, "user", datetime.now(UTC))
        self.posted = 0
        self.longest = 0.0
        self.unanswered = 0
        self.accepted: list[float] = []
        """When each batch was accepted, by the monotonic clock; it holds an event of each kind."""
        self._attack = attack
        self._target = target
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._post_on, args=[place]) for place in range(CLIENTS)
        ]

    def start(self) -> None:
        """Start them."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until each has got its last batch accepted, and stop."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _post_on(self, place: int) -> None:
        # The first client opens a connection for each request, as new visitors do.
        kept = 0 if place == 0 else 1
        with self._target.client(f"198.51.100.{place + 1}", ANSWER_SECONDS, kept) as client:
            while not self._over.wait(PAUSE_SECONDS):
                with self._lock:
                    number = next(self._numbers)
                self._post(client, [self._event(number, kind) for kind in KINDS])

    def _event(self, number: int, kind: str) -> SimulatedEvent:
        page, user, now = f"/{number % 20}", f"{self._attack}-{number % 30}", datetime.now(UTC)
        sent: Event = {
            "Type": kind,
            "Url": self.website + page,
            "Meta": {"UserId": user, "AdId": "1"},
            "EventId": event_id(self._attack, number, kind),
            "Timestamp": now.isoformat(),
        }
        return SimulatedEvent(sent, kind, self.website, page, user, "1", now)

    def _post(self, client: httpx.Client, events: list[SimulatedEvent]) -> None:
        started = time.monotonic()
        accepted = False
        while not accepted and time.monotonic() < started + GIVE_UP_SECONDS:
            try:
                response = client.post("/events", json=[event.sent for event in events])
                accepted = response.status_code == 202
            except httpx.HTTPError:
                accepted = False
            if not accepted:
                time.sleep(0.1)
        with self._lock:
            self.longest = max(self.longest, time.monotonic() - started)
            if not accepted:
                self.unanswered += 1
                return
            self.posted += len(events)
            self.accepted.append(time.monotonic())
            for event in events:
                self.expectation.add(event)

"""Limits that clients share: places for long-lived connections, memory for messages, and turns."""

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from app.domain.addresses import client_network

Waiting = TypeVar("Waiting")


class Places:
    """A limited number of places, in all and for each client (see `client_network`)."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self.most = most
        self.most_of_one = most_of_one
        self._taken = Counter[str]()
        self._change = threading.Lock()

    def take(self, address: str) -> bool:
        """Take a place for a client with this address. Returns False if none is free for it."""
        network = client_network(address)
        with self._change:
            if self._taken.total() >= self.most or self._taken[network] >= self.most_of_one:
                return False
            self._taken[network] += 1
            return True

    def take_over(self, address: str) -> str | None:
        """If all places are taken, take one from the client with the most. Returns its network.

        Returns None if that client has no more places than this one would have afterwards.
        """
        network = client_network(address)
        with self._change:
            if self._taken.total() < self.most:
                return None
            loser, most = self._taken.most_common(1)[0]
            if most <= self._taken[network] + 1:
                return None
            self._taken[loser] -= 1
            self._taken[network] += 1
            return loser

    def leave(self, address: str) -> None:
        """Give back a place that was taken for this address."""
        network = client_network(address)
        with self._change:
            self._taken[network] -= 1
            if not self._taken[network]:
                del self._taken[network]


class Room:
    """A number of bytes for all clients together. Each may hold at most as many as are still free.

    So one client gets half of them, two get a third each, and there are always some for another.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._held = Counter[str]()
        self._change = threading.Lock()

    @contextmanager
    def share(self, address: str) -> Iterator["Share"]:
        """A client's share of the room. It is given back at the end of the `with` block."""
        share = Share(self, client_network(address))
        try:
            yield share
        finally:
            share.leave()

    def change(self, network: str, size: int) -> bool:
        """Add to (or subtract from) a client's bytes. Returns False if there are not enough."""
        with self._change:
            held = self._held[network] + size
            if size > 0 and held > self.most - self._held.total() - size:
                return False
            self._held[network] = held
            if not held:
                del self._held[network]
            return True


class Share:
    """The bytes of the room that one request or message holds."""

    def __init__(self, room: Room, network: str) -> None:
        self._room = room
        self._network = network
        self._size = 0

    def grow(self, size: int) -> bool:
        """Hold this many more bytes. Returns False if there is no room for them."""
        if not self._room.change(self._network, size):
            return False
        self._size += size
        return True

    def leave(self) -> None:
        """Give all bytes back."""
        self._room.change(self._network, -self._size)
        self._size = 0


class Lane(Generic[Waiting]):
    """Serves a limited number at once, in all and for each client. Waiting clients take turns."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self.most = most
        self.most_of_one = most_of_one
        self._served = Counter[str]()
        self._waiting: dict[str, deque[Waiting]] = {}

    @property
    def has_waiting(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def wait(self, network: str, waiting: Waiting) -> None:
        """Let something of a client wait. Call `next` after this, and after `leave`."""
        self._waiting.setdefault(network, deque()).append(waiting)

    def next(self) -> Waiting | None:
        """Begin to serve the next one, if there is room for it."""
        if self._served.total() >= self.most:
            return None
        may = (one for one in self._waiting if self._served[one] < self.most_of_one)
        network = next(may, None)
        if network is None:
            return None
        # Next time, the other clients come first.
        waiting = self._waiting.pop(network)
        self._served[network] += 1
        served = waiting.popleft()
        if waiting:
            self._waiting[network] = waiting
        return served

    def leave(self, network: str) -> None:
        """Finish serving something of a client."""
        self._served[network] -= 1
        if not self._served[network]:
            del self._served[network]

    def give_up(self, network: str, waiting: Waiting) -> None:
        """Remove something that waits, because it no longer needs to be served."""
        self._waiting[network].remove(waiting)
        if not self._waiting[network]:
            del self._waiting[network]


class Turns:
    """A limited number of threads at once, in all and for each client. The others take turns."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._lane = Lane[threading.Lock](most, most_of_one)
        self._change = threading.Lock()

    @contextmanager
    def turn(self, address: str) -> Iterator[None]:
        """Wait for a client's turn, which lasts until the end of the `with` block."""
        network = client_network(address)
        mine = threading.Lock()
        mine.acquire()
        with self._change:
            self._lane.wait(network, mine)
            self._go_on()
        mine.acquire()
        try:
            yield
        finally:
            with self._change:
                self._lane.leave(network)
                self._go_on()

    def _go_on(self) -> None:
        if following := self._lane.next():
            following.release()

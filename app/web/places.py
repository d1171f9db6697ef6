"""Places for connections that stay."""

import threading
from collections import Counter

from app.domain.addresses import client_network


class Places:
    """So many places for all clients together, and so many for each (see `client_network`)."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self.most = most
        self.most_of_one = most_of_one
        self._taken = Counter[str]()
        self._change = threading.Lock()

    def take(self, address: str) -> bool:
        """Take a place for a client with this address; false where there is none for it."""
        network = client_network(address)
        with self._change:
            if self._taken.total() >= self.most or self._taken[network] >= self.most_of_one:
                return False
            self._taken[network] += 1
            return True

    def leave(self, address: str) -> None:
        """Give back a place that was taken with this address."""
        network = client_network(address)
        with self._change:
            self._taken[network] -= 1
            if not self._taken[network]:
                del self._taken[network]

"""Delivers counted events to the archive and the mirror, and collisions to the dead letters."""

import logging
import time
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from redis import Redis

from app.domain.events import Collision
from app.errors import Unavailable
from app.outputs.archive import Archive
from app.outputs.kafka_mirror import Mirror
from app.redis import dead_letters
from app.redis.connection import broker_errors
from app.settings import Settings
from app.store.outbox import Outbox, Undelivered

LOOK_SECONDS = 10.0
"""If a row has been in the outbox for this long, the process that wrote it won't deliver it."""
AT_ONCE = 50
MAX_LEFT = 1_000
"""How many rows a queue may have in the outbox. If it has more, no batches are taken from the
journal, which then fills up to QUEUE_LIMIT."""

logger = logging.getLogger(__name__)


class Delivery:
    """Delivers each row of an outbox at least once. Methods raise Unavailable."""

    def __init__(self, config: Settings, redis: Redis, outbox: Outbox) -> None:
        self._archive = Archive(config.archive_url) if config.archive else None
        self._mirror = Mirror.of(config)
        self._redis = redis
        self._outbox = outbox
        self._own: list[Undelivered] = []
        self._mirrored: set[str] = set()
        """Rows that are in the mirror but not yet in the archive."""
        self._seen: dict[str, set[str]] = {}
        """The rows that were in the outbox at the last check, by queue."""
        self._look_at: dict[str, float] = {}

    def add(self, undelivered: Sequence[Undelivered]) -> None:
        """Add rows of the outbox for the next `deliver`."""
        self._own += undelivered

    def deliver(self) -> None:
        """Deliver the added rows. If that fails, they stay in the outbox."""
        own, self._own = self._own, []
        self._deliver(own)

    def deliver_left(self, queue: str) -> None:
        """Deliver the rows that any process left in this queue at least LOOK_SECONDS ago.

        Raises Unavailable only if more than MAX_LEFT rows are left.
        """
        if time.monotonic() < self._look_at.get(queue, 0):
            return
        self._look_at[queue] = time.monotonic() + LOOK_SECONDS
        rows: list[str] = []
        try:
            rows = self._outbox.rows_left(queue)
            stale = [row for row in rows if row in self._seen.get(queue, ())]
            for start in range(0, len(stale), AT_ONCE):
                self._deliver(self._outbox.read(stale[start : start + AT_ONCE]))
        except Unavailable as error:
            if len(rows) > MAX_LEFT:
                raise
            logger.warning("counted events wait: %s", error, extra={"queue": queue})
        self._seen[queue] = set(rows)

    def deliver_all_left(self) -> None:
        """Deliver every row in the outbox."""
        while rows := self._outbox.rows_left():
            self._deliver(self._outbox.read(rows[:AT_ONCE]))

    def _deliver(self, undelivered: Sequence[Undelivered]) -> None:
        for queue, of_queue in groupby(undelivered, key=attrgetter("queue")):
            rows = list(of_queue)
            counted = [row for row in rows if not row.collides]
            if counted:
                self._publish([row for row in counted if row.row not in self._mirrored])
                self._mirrored |= {row.row for row in counted}
                if self._archive:
                    pieces = {row.piece.name: list(row.piece.events.values()) for row in counted}
                    self._archive.write(queue, pieces)
            for row in rows:
                if row.collides:
                    self._keep_collisions(row)
            self._outbox.done(rows)
            self._mirrored -= {row.row for row in rows}

    def _publish(self, counted: Sequence[Undelivered]) -> None:
        """Publish to the mirror, if there is one. Events that it refuses become dead letters."""
        if self._mirror and (refused := self._mirror.write([row.piece for row in counted])):
            with broker_errors():
                dead_letters.keep_unpublished(self._redis, refused)

    def _keep_collisions(self, collided: Undelivered) -> None:
        _, batch, events = collided.piece
        with broker_errors():
            dead_letters.keep_collisions(
                self._redis,
                [Collision(batch, position, event) for position, event in events.items()],
            )

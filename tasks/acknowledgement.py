"""Acknowledges messages even if Redis does not answer. Only this module changes kombu."""

from collections.abc import Iterator
from contextlib import contextmanager

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """Releases a message in this process even if Redis does not answer.

    kombu's own class (5.7) would keep the message. The worker would then have as many messages as
    it may have at once, and never take another. Redis delivers the message again after the
    visibility timeout, and the worker that gets it finds nothing to do.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        with self._released(delivery_tag):
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message, so that another worker may get it."""
        with self._released(delivery_tag):
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]

    @contextmanager
    def _released(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        finally:
            virtual.QoS.ack(self, delivery_tag)

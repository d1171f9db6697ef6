"""Acknowledging messages while Redis does not answer: the one module that changes kombu."""

from collections.abc import Iterator
from contextlib import contextmanager

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """Releases a message even if Redis can't be told so, as while it hangs.

    kombu's own class (5.7) keeps the message. The worker then has as many messages as it may have
    at once, and takes no other for as long as it lives. Redis delivers the message again after the
    visibility timeout, and whoever gets it finds nothing to do.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        with self._let_go(delivery_tag):
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message, which somebody else may get then."""
        with self._let_go(delivery_tag):
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]

    @contextmanager
    def _let_go(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        finally:
            virtual.QoS.ack(self, delivery_tag)

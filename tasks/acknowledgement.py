"""What a worker does where Redis does not take in that a message is done with."""

from collections.abc import Iterator
from contextlib import contextmanager

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """Lets go of a message even if Redis could not be told so, as while it hangs.

    kombu's own holds on to it, and as it then has as many as it may have at once, takes no other,
    for as long as the worker lives. Redis hands the message out again after the visibility timeout;
    that it says nothing new is found out then.
    """

    def ack(self, delivery_tag: str) -> None:
        """Tell Redis that a message is done with."""
        with self._let_go(delivery_tag):
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Tell Redis that a message is for somebody else, or nobody."""
        with self._let_go(delivery_tag):
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]

    @contextmanager
    def _let_go(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        finally:
            virtual.QoS.ack(self, delivery_tag)

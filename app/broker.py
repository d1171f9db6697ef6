"""What BROKER_URL decides: where the journal is, and how Celery's queues are looked at."""

from collections.abc import Callable
from typing import Any

from app.journal import Journal, broker_errors, connect
from app.rabbit import Rabbit
from app.rabbit_journal import RabbitJournal
from app.settings import Settings


def is_rabbit(broker_url: str) -> bool:
    """Whether this is the URL of a RabbitMQ, else it is a Redis."""
    return broker_url.startswith("amqp")


def journal_of(config: Settings) -> Journal:
    """The journal: in RabbitMQ if that is the broker, else in Redis."""
    redis = connect(config.redis_url)
    if is_rabbit(config.broker_url):
        return RabbitJournal(redis, config.broker_url)
    return Journal(redis)


def lengths(broker_url: str) -> Callable[[str], int]:
    """A function that says how many messages a Celery queue holds, those at workers not included.

    It raises Unavailable where the broker is away.
    """
    if is_rabbit(broker_url):
        rabbit = Rabbit(broker_url)
        return lambda queue: rabbit.state(queue).ready
    redis = connect(broker_url)

    def length(queue: str) -> int:
        with broker_errors():
            found: Any = redis.llen(queue)
            return found  # type: ignore[no-any-return]

    return length


def stuck_signs(broker_url: str) -> Callable[[str, Any], Any]:
    """A function that says what shows that nobody takes from a Celery queue, None: nothing.

    What it says of a queue, given what it said before, stays the same for no longer than one task
    may take where somebody does. It raises Unavailable where the broker is away.
    """
    if is_rabbit(broker_url):
        rabbit = Rabbit(broker_url)
        # It finds out itself which consumers are there but do not answer.
        return lambda queue, _: None if rabbit.state(queue).consumers else "no consumer"
    redis = connect(broker_url)

    def next_message(queue: str, known: Any) -> Any:
        with broker_errors():
            # Not only whether it is the next: what a killed worker had is put before it.
            if known is not None and redis.lpos(queue, known, rank=-1) is not None:
                return known
            return redis.lindex(queue, -1)

    return next_message

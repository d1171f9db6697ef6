"""What BROKER_URL decides: where the journal is, and how Celery's queues are looked at."""

from collections.abc import Callable
from typing import Any

from app.journal import Journal, broker_errors, connect
from app.rabbit import Rabbit
from app.rabbit_journal import RabbitJournal
from app.settings import Settings

RECENT_SECONDS = 10


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


def consumption(broker_url: str, client_name: str) -> Callable[[str], bool]:
    """A function that says whether a worker consumes a Celery queue.

    With Redis: whether the worker's connection asked for a message lately, as it does each second
    but while it has a task. With RabbitMQ: whether any worker does, since a connection that does
    not answer ends there. It raises Unavailable where the broker is away.
    """
    if is_rabbit(broker_url):
        rabbit = Rabbit(broker_url)
        return lambda queue: rabbit.state(queue).consumers > 0
    redis = connect(broker_url)

    def asked_lately(_queue: str) -> bool:
        with broker_errors():
            clients: Any = redis.client_list()
        return any(
            client["name"] == client_name
            and client["cmd"] == "brpop"
            and int(client["idle"]) < RECENT_SECONDS
            for client in clients
        )

    return asked_lately

"""BROKER_URL decides where the journal is, and how to look at Celery's queues."""

import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from redis import Redis

from app.errors import SettingsError, Unavailable, Unfit
from app.journal.journal import Journal
from app.journal.rabbit import Rabbit
from app.journal.rabbit_journal import RabbitJournal
from app.journal.redis_journal import RedisJournal
from app.redis.connection import broker_errors, connect
from app.settings import Settings, without_secrets

RECENT_SECONDS = 10
OLDEST_REDIS = 7

logger = logging.getLogger(__name__)


def is_rabbit(broker_url: str) -> bool:
    """Whether this is the URL of a RabbitMQ. Otherwise it is the URL of a Redis."""
    return broker_url.startswith("amqp")


def journal_of(config: Settings, redis: Redis) -> Journal:
    """The journal: in RabbitMQ if that is the broker, otherwise in this Redis (of REDIS_URL)."""
    if is_rabbit(config.broker_url):
        return RabbitJournal(redis, config.broker_url)
    return RedisJournal(redis)


def tls_of(broker_url: str) -> dict[str, Any] | None:
    """The TLS options that make Celery verify the server of a rediss:// URL, None for other URLs.

    They include the options in the URL (ssl_...), which take precedence. Celery reads those itself,
    but Flower knows only the options returned here.
    """
    if urlsplit(broker_url).scheme != "rediss":
        return None
    options = connect(broker_url).connection_pool.connection_kwargs
    given = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED} | given


def check_urls(config: Settings) -> None:
    """Raise SettingsError if the URL of a Redis can't be used. It connects to none of them."""
    for url in _redis_urls(config).values():
        connect(url)


def warnings(config: Settings) -> Iterator[str]:
    """Yield warnings for operators about each Redis of these settings, one sentence each.

    Raises SettingsError if a Redis can't be used, and Unavailable if it does not answer.
    """
    for variable, url in _redis_urls(config).items():
        yield from _warnings(variable, url)


def log_warnings(config: Settings) -> None:
    """Log the `warnings` if Redis answers. Raises SettingsError."""
    try:
        for warning in warnings(config):
            logger.warning("%s", warning)
    except Unavailable as error:
        logger.info("Redis could not be checked: %s", error)


def _redis_urls(config: Settings) -> dict[str, str]:
    """The URL of each Redis, by the variable that holds it."""
    urls = {"REDIS_URL": config.redis_url}
    if not is_rabbit(config.broker_url) and config.broker_url != config.redis_url:
        urls["BROKER_URL"] = config.broker_url
    return urls


def check_writable(journal: Journal, redis: Redis) -> None:
    """Raise Unavailable unless this journal accepts a write, and Unfit if this Redis never will."""
    try:
        journal.check_writable()
    except Unavailable:
        with broker_errors():
            found: Any = redis.info()
        if reason := _unfit(found):
            raise Unfit("broker", f"Redis {reason}") from None
        raise


def _warnings(variable: str, url: str) -> Iterator[str]:
    with broker_errors(), closing(connect(url)) as redis:
        found: Any = redis.info()
    where = f"{variable}: the Redis at {without_secrets(url)}"
    if reason := _unfit(found):
        raise SettingsError(f"{where} {reason}")
    if not found.get("aof_enabled", 1):
        yield f"{where} has no append-only file: it loses accepted events when it stops."
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield f"{where} may drop accepted events (maxmemory-policy {policy}); set noeviction."
    if "ssl_cert_reqs=none" in url.lower():
        yield f"{where} is not verified (ssl_cert_reqs=none)."


def _unfit(found: dict[str, Any]) -> str | None:
    """Why a Redis with this INFO can't be used, or None."""
    version = str(found.get("redis_version", OLDEST_REDIS))
    if int(version.partition(".")[0]) < OLDEST_REDIS:
        return f"is {version}; it must be {OLDEST_REDIS} or newer."
    if found.get("redis_mode") == "cluster":
        return "is a cluster, which Celery can't use; use a Redis without cluster mode."
    return None


def lengths(broker_url: str) -> Callable[[str], int]:
    """A function that returns how many messages wait in a Celery queue.

    It does not count those that workers have. Raises Unavailable if the broker can't be reached.
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


def workers(broker_url: str, queues: Sequence[str]) -> int:
    """How many workers take messages: with RabbitMQ, one counts for each queue that it consumes.

    Raises Unavailable if the broker can't be reached.
    """
    if is_rabbit(broker_url):
        with closing(Rabbit(broker_url)) as rabbit:
            return sum(rabbit.state(queue).consumers for queue in queues)
    with broker_errors(), closing(connect(broker_url)) as redis:
        return sum(map(_takes_messages, redis.client_list()))


def consumption(broker_url: str, client_name: str) -> Callable[[str], bool]:
    """A function that returns whether a worker consumes a Celery queue.

    With Redis, it returns whether the worker's connection has lately asked for a message. An idle
    worker does so every second. With RabbitMQ, it returns whether the queue has a consumer, because
    RabbitMQ closes connections that don't answer. It raises Unavailable if the broker can't be
    reached.
    """
    if is_rabbit(broker_url):
        rabbit = Rabbit(broker_url)
        return lambda queue: rabbit.state(queue).consumers > 0
    redis = connect(broker_url)

    def asked_lately(_queue: str) -> bool:
        with broker_errors():
            clients: Any = redis.client_list()
        return any(client["name"] == client_name and _takes_messages(client) for client in clients)

    return asked_lately


def _takes_messages(client: dict[str, str]) -> bool:
    return client["cmd"] == "brpop" and int(client["idle"]) < RECENT_SECONDS

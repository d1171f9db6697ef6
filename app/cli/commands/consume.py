"""`eventstream consume`."""

import logging
import signal
import threading

import click

from app import logs
from app.redis.connection import connect
from app.settings import KafkaTopic, settings
from app.store.database import Database


@click.command()
@click.option(
    "--kafka", "brokers", required=True, help="The brokers: host:port, separated by commas."
)
@click.option("--topic", required=True, help="The topic. Its messages hold events, as posts do.")
@click.option("--group", required=True, help="Consumers with the same group share the topic.")
def consume(brokers: str, topic: str, group: str) -> None:
    """Count the events of a Kafka topic until Ctrl-C; run as many of these as you need."""
    try:
        from app.counting.kafka_consumer import TopicConsumer  # noqa: PLC0415
    except ImportError as error:
        raise click.ClickException("This needs `pip install eventstream[kafka]`.") from error
    config = settings()
    logs.configure(config.log_level)
    if config.user_hash_secret is None:
        logging.getLogger(__name__).warning("no USER_HASH_SECRET: user ids are kept as they come")
    database, redis = Database(config.mongodb_url), connect(config.redis_url)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    TopicConsumer(config, database, redis, KafkaTopic(brokers, topic), group, stop).run()

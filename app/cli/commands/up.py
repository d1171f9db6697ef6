"""The command that runs everything: `up`."""

import os
from typing import Any

import click

from app.settings import read


@click.command()
@click.option("--host", help="Where the web server listens.  [HOST, 127.0.0.1]")
@click.option("--port", type=int, help="[PORT, 8000]")
@click.option("--flower-port", type=int, help="[FLOWER_PORT, 5555]")
@click.option("--data-dir", help="What is kept over restarts.  [DATA_DIR, ./var]")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes for each queue.  [1]")
def up(workers: int, **given: Any) -> None:
    """Run everything until Ctrl-C: Redis, database, web server, workers, beat and Flower.

    Redis and the database are not started if REDIS_URL and MONGODB_URL name them. RabbitMQ, if
    BROKER_URL names it, is never started.
    """
    # Imported here because it needs what is only installed for running on one machine.
    from app.local.supervisor import Supervisor  # noqa: PLC0415

    os.environ.update(
        {name.upper(): str(value) for name, value in given.items() if value is not None}
    )
    names = ("REDIS_URL", "BROKER_URL", "MONGODB_URL")
    urls = {name: os.environ[name] for name in names if os.environ.get(name)}
    Supervisor(read(os.environ), urls, workers).run()

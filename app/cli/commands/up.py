"""`eventstream up`."""

import os
from typing import Any

import click

from app.settings import read


@click.command()
@click.option("--host", help="The address of the web server.  [HOST, 127.0.0.1]")
@click.option("--port", type=int, help="The port of the web server.  [PORT, 8000]")
@click.option("--flower-port", type=int, help="The port of Flower.  [FLOWER_PORT, 5555]")
@click.option("--data-dir", help="Where data is kept.  [DATA_DIR, ./var]")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes for each queue.  [1]")
def up(workers: int, **given: Any) -> None:
    """Run everything until Ctrl-C: Redis, database, web server, workers, beat and Flower.

    It does not start Redis if REDIS_URL is set, nor the database if MONGODB_URL is set. It never
    starts RabbitMQ, but uses it if BROKER_URL names it.
    """
    # Imported here because it needs packages that are installed only to run on one machine.
    from app.local.supervisor import Supervisor  # noqa: PLC0415

    os.environ.update(
        {name.upper(): str(value) for name, value in given.items() if value is not None}
    )
    names = ("REDIS_URL", "BROKER_URL", "MONGODB_URL")
    urls = {name: os.environ[name] for name in names if os.environ.get(name)}
    Supervisor(read(os.environ), urls, workers).run()

#!/usr/local/bin/python3
"""Stands in for mongod if there is none: the embedded database with mongod's options.

Like mongod, it accepts no writes before `rs.initiate`, which sets the address for its clients. Its
memory use and speed say nothing about MongoDB.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from secantus import SecantusDBServer, commands

from app.local import database

HOME = Path("/data/db")
MEMBER = HOME / "member"
"""Holds the address that `rs.initiate` set."""

Answer = dict[str, Any]
Handler = Callable[[Any, Any], Answer]


def hello(original: Handler, command: Any, context: Any) -> Answer:
    if MEMBER.exists():
        return original(command, under_its_address(context))
    alone = original(command, replace(context, replica_set_name=None))
    return alone | {"isWritablePrimary": False, "ismaster": False, "isreplicaset": True}


def status(original: Handler, command: Any, context: Any) -> Answer:
    if MEMBER.exists():
        return original(command, under_its_address(context))
    return {
        "ok": 0.0,
        "errmsg": "no replset config has been received",
        "code": 94,
        "codeName": "NotYetInitialized",
    }


def initiate(command: Any, context: Any) -> Answer:
    config = command["replSetInitiate"]
    if MEMBER.exists() or config["_id"] != context.replica_set_name:
        return {"ok": 0.0, "errmsg": "already initialized, or of another name", "code": 23}
    MEMBER.write_text(config["members"][0]["host"])
    return {"ok": 1.0}


def under_its_address(context: Any) -> Any:
    host, port = MEMBER.read_text().split(":")
    return replace(context, server_address=(host, int(port)))


@click.command()
@click.option("--replSet", "name", required=True)
@click.option("--bind_ip_all", is_flag=True, required=True)
@click.option("--setParameter", "parameter", required=True)
def main(name: str, bind_ip_all: bool, parameter: str) -> None:
    option, seconds = parameter.split("=")
    assert option == "transactionLifetimeLimitSeconds"
    handlers = commands._HANDLERS
    for command in ("hello", "isMaster", "ismaster"):
        handlers[command] = partial(hello, handlers[command])
    handlers["replSetGetStatus"] = partial(status, handlers["replSetGetStatus"])
    handlers["replSetInitiate"] = initiate
    database.IDLE_TRANSACTION_SECONDS = float(seconds)
    vars(database)["SecantusDBServer"] = partial(SecantusDBServer, replica_set_name=name)
    database.main(["--host", "0.0.0.0", "--port", "27017", "--storage-path", str(HOME)])


if __name__ == "__main__":
    main()

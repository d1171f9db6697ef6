"""The embedded database, for a process of its own: `python -m app.local.database`."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click
from bson import ObjectId
from secantus import SecantusDBServer, query

IDLE_TRANSACTION_SECONDS = 10.0
"""After so long without a statement a transaction is given up. Its worker was killed, most likely,
and the documents it wrote to are closed to all others until then; a live one takes far less."""
CACHE_SIZE = "1G"
"""Memory is taken as it is needed."""
EVICTION = "eviction_dirty_trigger=75,eviction_updates_trigger=75"
"""The percent of the cache that may be written to before each request must help to clear it. Pages
that open transactions wrote to can't be cleared, and the ids of one are on thousands of pages: with
the usual 20 all stood still at some hundred thousand ids in a cache of 256M, with 75 it did not."""

Matches = Callable[..., bool]


def with_quick_in(matches: Matches) -> Matches:
    """The database's test of a value against an operator, made quick for `$in` with many texts.

    By itself it compares each document that an index found with all keys of the list once more:
    looking up 5,000 took half a minute, in which no transaction went on, and so was given up.
    """
    latest = threading.local()

    def quick(values: list[Any], operator: str, argument: Any, *more: Any, **options: Any) -> bool:
        if operator == "$in" and len(values) == 1 and isinstance(argument, list):
            if getattr(latest, "argument", None) is not argument:
                latest.argument = argument
                latest.keys = {each for each in argument if type(each) in (str, ObjectId)}
            if type(values[0]) in (str, ObjectId) and values[0] in latest.keys:
                return True
        return matches(values, operator, argument, *more, **options)

    return quick


UseTransaction = Callable[[Any], AbstractContextManager[Any]]


def with_pages_let_go(use: UseTransaction) -> UseTransaction:
    """The database's way to run a statement in a transaction, such that it holds no page after it.

    By itself a transaction's cursors stay where they were until its next statement. Where one then
    stands on a page that has become too large, each look at this page tries ten times to clear it
    away, and sleeps in between, 55 ms in all, with everything else waiting for a lock.
    """

    @contextmanager
    def use_and_let_go(transaction: Any) -> Iterator[None]:
        try:
            with use(transaction):
                yield
        finally:
            for cursor in transaction.cursors.values():
                cursor.reset()

    return use_and_let_go


def read_options_once_a_statement(storage: Any) -> None:
    """Have a statement of a transaction read the options of a collection's indexes once.

    By itself the database reads them anew for each document that it writes, three times over,
    which takes more than half of the time.
    """
    known = threading.local()
    use = storage.use_user_transaction

    @contextmanager
    def use_and_remember(transaction: Any) -> Iterator[None]:
        known.options = {}
        try:
            with use(transaction):
                yield
        finally:
            known.options = None

    def once(name: str) -> Callable[[str, str], Any]:
        read = getattr(storage, name)

        def read_once(db: str, coll: str) -> Any:
            options = getattr(known, "options", None)
            if options is None:
                return read(db, coll)
            if (name, db, coll) not in options:
                options[name, db, coll] = read(db, coll)
            return options[name, db, coll]

        return read_once

    storage.use_user_transaction = use_and_remember
    for name in ("_index_options_map", "_partial_filters"):
        setattr(storage, name, once(name))


def fetch_no_more_than_asked_for(storage: Any) -> None:
    """Have the database fetch only as many documents of an index's range as a query is limited to.

    By itself it fetches all of them, with everything else waiting for its lock, and cuts the list
    at the end: the first page of a report took as long as the whole of it.
    """
    find, fetch = storage.find_matching, storage._docs_by_recordids
    asked = threading.local()

    def find_some(db: str, coll: str, where: Any = None, **options: Any) -> Any:
        limit = options.get("limit", 0)
        if limit and not options.get("skip") and _is_one_range(where, options.get("sort")):
            asked.limit, asked.is_cut = limit, False
            try:
                found = find(db, coll, where, **options)
            finally:
                asked.limit = 0
            if len(found) == limit or not asked.is_cut:  # else an end of the range is not of it
                return found
        return find(db, coll, where, **options)

    def fetch_some(db: str, coll: str, ids: list[int]) -> Any:
        limit = getattr(asked, "limit", 0)
        if limit and len(ids) > limit:
            asked.is_cut = True
            ids = ids[:limit]
        return fetch(db, coll, ids)

    storage.find_matching, storage._docs_by_recordids = find_some, fetch_some


def _is_one_range(where: Any, sort: Any) -> bool:
    """Whether a query is for a range of one field, in any order or in that of the field."""
    if not where or len(where) != 1:
        return False
    [(field, bounds)] = where.items()
    is_range = isinstance(bounds, dict) and bounds.keys() <= {"$gt", "$gte", "$lt", "$lte"}
    return is_range and (not sort or dict(sort) == {field: 1})


@click.command()
@click.option("--host", default="127.0.0.1", help="It asks nobody for a password.")
@click.option("--port", type=int, required=True)
@click.option("--storage-path", required=True)
def main(host: str, port: int, storage_path: str) -> None:
    """Serve the MongoDB protocol until SIGINT or SIGTERM.

    Each commit is on disk before it is answered: a kill loses nothing.
    """
    # Blocked before the server starts threads, so that the signals wait for the line that asks.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    os.environ["WIREDTIGER_CONFIG"] = EVICTION
    query._op_matches = with_quick_in(query._op_matches)
    server = SecantusDBServer(
        host=host,
        port=port,
        storage_path=storage_path,
        sync_on_commit=True,
        enable_test_commands=False,
        cache_size=CACHE_SIZE,
        transaction_lifetime_seconds=IDLE_TRANSACTION_SECONDS,
    )
    storage = server.storage
    # Nobody follows the changes, so they need not be written down a second time.
    storage.enable_oplog = False
    storage.use_user_transaction = with_pages_let_go(storage.use_user_transaction)
    read_options_once_a_statement(storage)
    fetch_no_more_than_asked_for(storage)
    with server:
        signal.sigwait(signals)
        # Closing it, which comes next, would not wake the thread that waits for connections on it.
        server._socket.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()

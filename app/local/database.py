"""The embedded database, which is a separate process: `python -m app.local.database`."""

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
"""A transaction is aborted after this long without a statement. Most likely its worker was killed,
and until then nobody else can write to its documents. A living worker needs far less time."""
CACHE_SIZE = "1G"
"""The upper limit. Memory is only allocated when it is needed."""
EVICTION = "eviction_dirty_trigger=75,eviction_updates_trigger=75"
"""The percentage of the cache that may be dirty before each request must help to clear it. Pages
that open transactions wrote to can't be cleared, and one transaction's ids lie on thousands of
pages. With the default of 20 and a cache of 256M, everything stopped at a few hundred thousand ids.
With 75 it did not."""

Matches = Callable[..., bool]


def with_quick_in(matches: Matches) -> Matches:
    """Wrap the database's test of a value against an operator: fast for `$in` with many texts.

    The database compares each document from an index with all keys of the list again. Looking up
    5,000 keys took half a minute. All transactions stopped meanwhile, and were then aborted.
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
    """Wrap the running of a statement in a transaction, so that it holds no page afterwards.

    Between statements, a transaction's cursors keep their positions. If a cursor is on a page that
    has become too large, each access to this page tries ten times to clear it and sleeps in
    between. That takes 55 ms, while everything else waits for a lock.
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
    """Make each statement of a transaction read a collection's options and indexes only once.

    The database reads them several times for each document that it writes, which takes more than
    half of the time.
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
    names = ("_index_options_map", "_partial_filters", "_all_indexes", "_multikey_index_names")
    for name in ("_coll_options", *names):
        setattr(storage, name, once(name))


def rewrite_only_changed_entries(storage: Any) -> None:
    """Make an update rewrite only the index entries of fields that it changes.

    The database deletes and writes all entries of a document anew, which takes a third of the time.
    """
    updating = threading.local()
    update = storage._update_matching_single_txn
    delete, write = storage._delete_index_entries, storage._write_index_entries

    def update_and_remember(*arguments: Any, **options: Any) -> Any:
        updating.old = {}
        try:
            return update(*arguments, **options)
        finally:
            updating.old = None

    def delete_later(db: str, coll: str, doc: Any, *more: Any, recordid: Any) -> None:
        if getattr(updating, "old", None) is None:
            delete(db, coll, doc, *more, recordid=recordid)
        else:
            updating.old[recordid] = doc

    def write_changed(
        db: str, coll: str, doc: Any, indexes: Any, partials: Any, *, recordid: Any
    ) -> None:
        old = (getattr(updating, "old", None) or {}).pop(recordid, None)
        if old is not None:
            indexes = [index for index in indexes if not _is_same(index, old, doc, partials)]
            delete(db, coll, old, indexes, partials, recordid=recordid)
        write(db, coll, doc, indexes, partials, recordid=recordid)

    storage._update_matching_single_txn = update_and_remember
    storage._delete_index_entries, storage._write_index_entries = delete_later, write_changed


def _is_same(index: Any, old: Any, new: Any, partials: Any) -> bool:
    """Whether a plain index of top-level fields has the same entries for both documents."""
    name, fields, *_ = index
    return name not in (partials or {}) and all(
        direction in (1, -1) and "." not in field and old.get(field) == new.get(field)
        for field, direction in fields.items()
    )


def fetch_no_more_than_asked_for(storage: Any) -> None:
    """Make the database fetch only as many documents of an index range as a query asks for.

    Otherwise it fetches all of them, while everything else waits for its lock, and cuts the list
    afterwards. The first page of a report then takes as long as the whole report.
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
            # If documents were cut but too few are left, a bound was not part of the range.
            if len(found) == limit or not asked.is_cut:
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
    """Whether a query asks for a range of one field, unsorted or sorted by that field."""
    if not where or len(where) != 1:
        return False
    [(field, bounds)] = where.items()
    is_range = isinstance(bounds, dict) and bounds.keys() <= {"$gt", "$gte", "$lt", "$lte"}
    return is_range and (not sort or dict(sort) == {field: 1})


@click.command()
@click.option("--host", default="127.0.0.1", help="It asks for no password.")
@click.option("--port", type=int, required=True)
@click.option("--storage-path", required=True)
def main(host: str, port: int, storage_path: str) -> None:
    """Serve the MongoDB protocol until SIGINT or SIGTERM.

    Each commit is on disk before it is answered, so a kill loses nothing.
    """
    # Block the signals before the server starts threads, so that only `sigwait` gets them.
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
    # Nobody reads the oplog, and with it every change is written twice.
    storage.enable_oplog = False
    storage.use_user_transaction = with_pages_let_go(storage.use_user_transaction)
    read_options_once_a_statement(storage)
    rewrite_only_changed_entries(storage)
    fetch_no_more_than_asked_for(storage)
    with server:
        signal.sigwait(signals)
        # Closing the socket comes next, but would not wake the thread that accepts connections.
        server._socket.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()

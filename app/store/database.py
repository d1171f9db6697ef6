"""A MongoDB database: its transactions, its deadlines, and the errors if it can't be reached.

mongoengine declares its collections, fields and indexes (`app.store.documents`). Events are counted
with pymongo directly, because an object for each document would slow down writing in bulk.
"""

import math
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import pymongo
from bson.codec_options import TypeDecoder, TypeRegistry
from bson.errors import InvalidDocument
from bson.int64 import Int64
from mongoengine import Document
from pymongo import ReplaceOne
from pymongo.client_session import ClientSession
from pymongo.errors import (
    BulkWriteError,
    OperationFailure,
    PyMongoError,
    WriteError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from app.errors import DeadlineMissed, SettingsError, Unavailable, Unfit
from app.store.documents import COLLECTIONS, Schema

Result = TypeVar("Result")

NAMESPACE_EXISTS = 48
CHECK_SECONDS = 2.0
LOOK_UP_MS = 5_000
"""How long pymongo looks up a mongodb+srv:// name, whatever the deadline. Its default is 20 s."""
MISSED_SHARE = 0.9
"""pymongo gives up a little before the deadline if the next attempt would miss it."""
_OPTIONS = {"w": "majority", "readConcernLevel": "majority", "readPreference": "primary"}
_CONCERNS = (ReadConcern("snapshot"), WriteConcern("majority"))


class _PlainInt(TypeDecoder):
    """Reads numbers from 2^31 on as plain integers, because msgspec can't encode Int64."""

    bson_type = Int64

    def transform_bson(self, value: int) -> int:
        return int(value)


class Session:
    """A transaction or a snapshot of a database. Use `session[Document]` for a collection in it."""

    def __init__(self, database: "Database", session: ClientSession) -> None:
        self.database = database
        self._session = session

    def __getitem__(self, document: type[Document]) -> Any:
        """The pymongo collection of a document, with every method bound to this session."""
        return _InSession(self.database[document], self._session)

    def put(
        self, document: type[Document], rows: Iterable[dict[str, Any]], known: Container[str]
    ) -> None:
        """Replace the rows whose `_id` is `known` to be there, and insert the others."""
        new: list[dict[str, Any]] = []
        changed = []
        for row in rows:
            if row["_id"] in known:
                changed.append(ReplaceOne({"_id": row["_id"]}, row))
            else:
                new.append(row)
        if new:
            self[document].insert_many(new, ordered=False)
        if changed:
            self[document].bulk_write(changed, ordered=False)


class _InSession:
    def __init__(self, collection: Any, session: ClientSession) -> None:
        self._collection = collection
        self._session = session

    def __getattr__(self, method: str) -> Any:
        return partial(getattr(self._collection, method), session=self._session)


class Database:
    """The database at a URL. Create it after any fork.

    The server need not be up: pymongo connects at the first command. Some options override those in
    the URL. A majority must confirm each write, and reads return only what a majority has
    confirmed, so nothing that was read is ever rolled back. All reads go to the primary, so a later
    read never sees an older state, even in another process. Raises SettingsError if the URL is
    wrong, names no database, or names a file that does not exist.
    """

    def __init__(self, url: str) -> None:
        try:
            self._client = pymongo.MongoClient[dict[str, Any]](
                _with_options(url),
                connect=False,  # otherwise a failing DNS lookup would end this process
                tz_aware=True,
                type_registry=TypeRegistry([_PlainInt()]),
                uuidRepresentation="standard",
                appname="eventstream",
            )
        except (PyMongoError, OSError, ValueError) as error:
            raise SettingsError(f"MONGODB_URL can't be used: {error}") from error
        name = urlsplit(url).path.strip("/")
        if not name:
            raise SettingsError(
                "MONGODB_URL can't be used: it names no database. Add its name after the host, "
                "such as /eventstream."
            )
        self._database = self._client[name]

    def __getitem__(self, document: type[Document]) -> Any:
        """The pymongo collection of a document."""
        return self._database[document._get_collection_name()]

    def close(self) -> None:
        """Close its connections, for example before a fork."""
        # pymongo ends its sessions on the server, and would wait half a minute for a missing one.
        with pymongo.timeout(1):
            self._client.close()

    def transaction(self, work: Callable[[Session], Result], *, again: bool = True) -> Result:
        """Run `work` in a transaction and return its result.

        If the transaction conflicts with another, `work` is run again. Without `again`, pymongo's
        OperationFailure is raised instead.
        """
        with self._client.start_session() as session:
            if not again:
                with session.start_transaction(*_CONCERNS):
                    return work(Session(self, session))
            result: Result = session.with_transaction(
                lambda session: work(Session(self, session)), *_CONCERNS
            )
            return result

    def repeat(
        self, work: Callable[[Session], int], seconds: float, until: float = math.inf
    ) -> tuple[int, bool]:
        """Run a transaction again and again until it finds nothing more to do.

        Each run has this many seconds. None begins once the monotonic clock has reached `until`.
        Returns the sum of what the runs found, and whether everything is done. Raises Unavailable
        and DeadlineMissed like `deadline`.
        """
        total = 0
        while time.monotonic() < until:
            with deadline(seconds):
                found = self.transaction(work)
            if not found:
                return total, True
            total += found
        return total, False

    @contextmanager
    def snapshot(self, seconds: float) -> Iterator[Session]:
        """A session whose reads all show the same moment, with a deadline in seconds.

        Raises Unavailable and DeadlineMissed like `deadline`.
        """
        with deadline(seconds), self._client.start_session(snapshot=True) as session:
            yield Session(self, session)

    def time(self) -> datetime:
        """The time by the server's clock (UTC). Raises pymongo's errors."""
        now: datetime = self._hello()["localTime"]
        return now.replace(tzinfo=UTC)  # pymongo ignores tz_aware in answers to commands

    def ping(self) -> None:
        """Raise Unavailable unless the database answers."""
        with deadline(1):
            self._database.command("ping")

    def check_writable(self) -> None:
        """Raise Unavailable unless a document can be written and read.

        A ping proves little: after its disk was full, the embedded database still answers pings,
        but nothing else. Raises Unfit if the database has no transactions.
        """
        with deadline(CHECK_SECONDS):
            self._require_transactions()
            check = {"_id": "check"}
            self[Schema].update_one(check, {"$currentDate": {"at": True}}, upsert=True)
            self[Schema].find_one(check)

    def create_collections(self) -> None:
        """Create every collection and index that does not exist yet."""
        for document in COLLECTIONS:
            try:
                self._database.create_collection(
                    document._get_collection_name(), check_exists=False
                )
            except OperationFailure as error:
                if error.code != NAMESPACE_EXISTS:
                    raise
            for fields in document.list_indexes():
                if fields != [("_id", 1)]:  # MongoDB creates this one itself
                    self[document].create_index(fields)

    def _require_transactions(self) -> None:
        """Raise Unfit if it can't run transactions (MongoDB manual, Transactions: Deployments)."""
        hello = self._hello()
        if not hello.get("setName") and hello.get("msg") != "isdbgrid":
            raise Unfit(
                "database",
                "The MongoDB of MONGODB_URL is standalone and has no transactions. "
                "Make it a replica set.",
            )

    def _hello(self) -> dict[str, Any]:
        return self._database.command("hello")


def _with_options(url: str) -> str:
    parts = urlsplit(url)
    replaced = {"maxstalenessseconds", "readpreferencetags", *map(str.lower, _OPTIONS)}
    kept = {name: value for name, value in parse_qsl(parts.query) if name.lower() not in replaced}
    if parts.scheme == "mongodb+srv" and "connecttimeoutms" not in map(str.lower, kept):
        kept["connectTimeoutMS"] = str(LOOK_UP_MS)
    return parts._replace(query=urlencode(kept | _OPTIONS)).geturl()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give all database commands in this block this many seconds together.

    Raises Unavailable if the database can't be reached or refuses to serve, and DeadlineMissed if
    the time ran out. If the written data is at fault, pymongo's error is raised as it is.
    """
    started = time.monotonic()
    try:
        with pymongo.timeout(seconds):
            yield
    except InvalidDocument:
        raise
    except PyMongoError as error:
        of_data = isinstance(error, WriteError)
        if isinstance(error, BulkWriteError):  # it may only concern the write concern
            of_data = bool(error.details["writeErrors"])
        if of_data and not error.has_error_label("TransientTransactionError"):
            raise
        # After this, pymongo describes its own state at length.
        message = str(error).split(" (configured timeouts", 1)[0]
        missed = time.monotonic() - started > seconds * MISSED_SHARE
        kind = DeadlineMissed if missed else Unavailable
        raise kind("database", f"{type(error).__name__}: {message}"[:500]) from error

"""The connection to MongoDB: transactions, deadlines, and the errors that mean it is away."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import mongoengine
import pymongo
from bson.codec_options import TypeDecoder, TypeRegistry
from bson.errors import InvalidDocument
from bson.int64 import Int64
from mongoengine.connection import get_connection, get_db
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

Session = ClientSession
Result = TypeVar("Result")

NAMESPACE_EXISTS = 48
CHECK_SECONDS = 2.0
LOOK_UP_MS = 5_000
"""pymongo asks DNS for a mongodb+srv:// name so long, whatever the deadline; untold, 20 seconds."""
MISSED_SHARE = 0.9
"""pymongo gives up a little before the time is over, where the next attempt would take too long."""
_OPTIONS = {"w": "majority", "readConcernLevel": "majority", "readPreference": "primary"}
_CONCERNS = (ReadConcern("snapshot"), WriteConcern("majority"))


class _PlainInt(TypeDecoder):
    """Reads numbers from 2^31 on as plain ones: what encodes JSON takes no others."""

    bson_type = Int64

    def transform_bson(self, value: int) -> int:
        return int(value)


def connect(url: str) -> None:
    """Use the database at this URL. It need not be up: pymongo connects at the first command.

    Call it in the process that uses it, after any fork; again, to use another. Some options it
    sets whatever the URL says. What is written is kept by a majority before it is answered, and
    only what a majority keeps is read: nothing that was seen is ever taken back. And it is read
    from the primary, so that who reads after another, in whatever process, sees no less. Raises
    SettingsError where it is no such URL, names no database, or a file that is not there.
    """
    disconnect()
    try:
        client = pymongo.MongoClient[dict[str, Any]](
            _with_options(url),
            connect=False,  # else a name that DNS does not know now would end this process
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
            "MONGODB_URL can't be used: it names no database. Put one behind the host, "
            "such as /eventstream."
        )
    # It would look up the names of hosts by itself.
    mongoengine.connect(name, mongo_client_class=lambda **_: client, uuidRepresentation="standard")


def disconnect() -> None:
    """Have no connection any more, as before a fork."""
    # It bids the server farewell, and would wait half a minute for one that is away.
    with pymongo.timeout(1):
        mongoengine.disconnect()


def _with_options(url: str) -> str:
    # In the URL itself: its own options go before any that mongoengine is given.
    parts = urlsplit(url)
    replaced = {"maxstalenessseconds", "readpreferencetags", *map(str.lower, _OPTIONS)}
    given = {name: value for name, value in parse_qsl(parts.query) if name.lower() not in replaced}
    if parts.scheme == "mongodb+srv" and "connecttimeoutms" not in map(str.lower, given):
        given["connectTimeoutMS"] = str(LOOK_UP_MS)
    return parts._replace(query=urlencode(given | _OPTIONS)).geturl()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give the database so long for all that is asked of it inside.

    Raises Unavailable if it is away or refuses to serve, and DeadlineMissed if the time was
    over; an error that lies in what was written is left as it is.
    """
    started = time.monotonic()
    try:
        with pymongo.timeout(seconds):
            yield
    except InvalidDocument:
        raise
    except PyMongoError as error:
        of_data = isinstance(error, WriteError)
        if isinstance(error, BulkWriteError):  # it may be of the write concern alone
            of_data = bool(error.details["writeErrors"])
        if of_data and not error.has_error_label("TransientTransactionError"):
            raise
        # What follows is pymongo's own state, at length.
        said = str(error).split(" (configured timeouts", 1)[0]
        missed = time.monotonic() - started > seconds * MISSED_SHARE
        kind = DeadlineMissed if missed else Unavailable
        raise kind("database", f"{type(error).__name__}: {said}"[:500]) from error


def transaction(work: Callable[[Session], Result], *, again: bool = True) -> Result:
    """Run `work` in a transaction and return its result.

    Where it conflicts with another it is run again, or else raises pymongo's OperationFailure.
    """
    with get_connection().start_session() as session:
        if not again:
            with session.start_transaction(*_CONCERNS):
                return work(session)
        result: Result = session.with_transaction(work, *_CONCERNS)
        return result


@contextmanager
def snapshot(seconds: float) -> Iterator[Session]:
    """Have all that is read in this session be of one moment, and give it so many seconds.

    Raises Unavailable and DeadlineMissed like `deadline`.
    """
    with deadline(seconds), get_connection().start_session(snapshot=True) as session:
        yield session


def ping() -> None:
    """Raise Unavailable unless the database answers."""
    with deadline(1):
        get_db().command("ping")


def check_writable() -> None:
    """Raise Unavailable unless the database takes a write and reads it.

    A ping says little: the embedded database answers it after its disk was full, and nothing else.
    Raises Unfit if it has no transactions.
    """
    with deadline(CHECK_SECONDS):
        _require_transactions()
        check = {"_id": "check"}
        collection(Schema).update_one(check, {"$currentDate": {"at": True}}, upsert=True)
        collection(Schema).find_one(check)


def _require_transactions() -> None:
    """Raise Unfit if the database has none (MongoDB manual, Transactions: Deployments)."""
    hello = get_db().command("hello")
    if not hello.get("setName") and hello.get("msg") != "isdbgrid":
        sentence = (
            "The MongoDB of MONGODB_URL is standalone, without transactions. Make it a replica set."
        )
        raise Unfit("database", sentence)


def create_collections() -> None:
    """Make every collection and index that is not there yet."""
    for document in COLLECTIONS:
        try:
            get_db().create_collection(document._get_collection_name(), check_exists=False)
        except OperationFailure as error:
            if error.code != NAMESPACE_EXISTS:
                raise
        document.ensure_indexes()


def collection(document: type[mongoengine.Document]) -> Any:
    """The pymongo collection of a document, for work by the batch.

    By itself mongoengine would make its indexes: what only reads may not be allowed to.
    """
    return get_db()[document._get_collection_name()]

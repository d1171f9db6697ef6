"""Forgets a user wherever the collector keeps data about them."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from redis import Redis

from app.domain.calendar import month_of, next_month
from app.domain.user_ids import FIRST_MONTH, UserHash
from app.outputs.archive import Archive, rewriting
from app.redis import dead_letters
from app.redis.connection import broker_errors
from app.store import erasure
from app.store.database import Database

PAGE = 100


class Forgotten(NamedTuple):
    """How many records of a user were forgotten."""

    numbers: int
    click_histories: int
    archived_events: int
    dead_letters: int


def forget(
    user_id: str,
    hash_user: UserHash | None,
    database: Database,
    archive: Archive,
    redis: Redis,
    now: datetime,
) -> Forgotten:
    """Forget the user whom sites call `user_id`, under every id that the collector has used.

    `now` is in the collector's zone. Events that wait to be counted are not included. Raises
    Unavailable if Redis, the database or the archive can't be reached. It may then be called again.
    """

    ids = {user_id}  # as it was sent: there may have been no secret at first
    if hash_user:
        ids |= {hash_user(user_id, month) for month in _months(now)}
    with rewriting(redis) as turn:
        archived = archive.forget(ids, turn)
    return Forgotten(
        erasure.forget_numbers(database, ids),
        erasure.forget_hits(database, ids),
        archived,
        _forget_rejected(user_id, redis),
    )


def _months(now: datetime) -> Iterator[str]:
    """All months (YYYY-MM) that an event can belong to. Events may be 24 hours ahead."""
    month, last = FIRST_MONTH, month_of(now + timedelta(days=1))
    while month <= last:
        yield month
        month = next_month(month)


def _forget_rejected(user_id: str, redis: Redis) -> int:
    """Drop the user's rejected events from the dead letters. They hold the id as it was sent."""
    dropped = 0
    before = None
    with broker_errors():
        while letters := dead_letters.newest(redis, PAGE, before):
            before = letters[-1].id
            for letter in letters:
                if _user_of(letter.event) == user_id:
                    dead_letters.remove(redis, letter.id)
                    dropped += 1
    return dropped


def _user_of(event: msgspec.Raw) -> str | None:
    match msgspec.json.decode(event):
        case {"Meta": {"UserId": str() | int() as user_id}}:
            return str(user_id)
    return None

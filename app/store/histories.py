"""Click histories: a user's hits in compact form.

A history names each website and ad once and refers to them by number, so a hit takes about twelve
bytes. Earlier releases wrote hits as JSON with all their names (shape 1). This release still reads
them, and writes the new form (shape 2) with the user's next hit.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from app.domain.clicks import Hit, Tally
from app.errors import Unavailable
from app.store.database import Session
from app.store.documents import HISTORY_SHAPE, HitTally
from app.store.errors import TransactionTooLarge

READ_BYTES = 8 * 1024 * 1024
"""How many bytes of histories a transaction reads at most, unless a single one is larger."""

Ads = list[tuple[str, str]]
PackedHits = list[tuple[int, int]]

_decode_hits = msgspec.json.Decoder(tuple[Hit, ...]).decode
_unpack: Any = msgspec.msgpack.Decoder(tuple[Ads, PackedHits, PackedHits]).decode


def pack(tally: Tally) -> bytes:
    """Pack a tally as MessagePack: its websites and ads, its latest hits, and those before them."""
    numbers: dict[tuple[str, str], int] = {}

    def packed(hits: Iterable[Hit]) -> PackedHits:
        return [
            (hit.time, numbers.setdefault((hit.website, hit.ad_id), len(numbers))) for hit in hits
        ]

    hits = [packed(tally.latest), packed(tally.before)]
    return msgspec.msgpack.encode((list(numbers), *hits))


def unpack(row: Mapping[str, Any]) -> Tally:
    """The tally in a row of HitTally, of either shape."""
    if row.get("shape", 1) < HISTORY_SHAPE:
        before = _decode_hits(row["before"]) if "before" in row else ()
        return Tally(row["earlier"], _decode_hits(row["latest"]), before)
    ads, *packed = _unpack(row["hits"])
    latest, before = (tuple(Hit(time, *ads[number]) for time, number in hits) for hits in packed)
    return Tally(row["earlier"], latest, before)


def read(owners: Iterable[str], session: Session) -> dict[str, Mapping[str, Any]]:
    """The HitTally rows of these owners, by key. Their hits are still packed.

    Raises TransactionTooLarge if several rows are larger than READ_BYTES together, and Unavailable
    if a newer release wrote one of them.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    size = 0
    for row in session[HitTally].find({"_id": {"$in": list(owners)}}):
        if row.get("shape", 1) > HISTORY_SHAPE:
            raise Unavailable("database", "it holds click histories of a newer release")
        size += sum(len(row.get(name, b"")) for name in ("hits", "latest", "before"))
        if rows and size > READ_BYTES:
            raise TransactionTooLarge("their users have long click histories")
        rows[row["_id"]] = row
    return rows

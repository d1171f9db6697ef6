from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.clicks import REMEMBERED_BYTES, Hit, Tally, count_hits
from app.domain.events import AdClick
from app.errors import Unavailable
from app.store import documents, histories
from app.store.counting import Counting
from app.store.database import Database

hits = st.lists(
    st.builds(
        Hit,
        time=st.integers(0, 2**53),
        website=st.text(max_size=5),
        ad_id=st.text(max_size=5),
    )
).map(tuple)


@given(tally=st.builds(Tally, st.integers(0, 2**60), hits, hits))
def test_unpacking_a_packed_history_gives_it_back_unchanged(tally: Tally) -> None:
    row = {"earlier": tally.earlier, "hits": histories.pack(tally), "shape": 2}
    assert histories.unpack(row) == tally


def test_a_thousand_hits_on_ten_ads_take_fewer_than_thirteen_bytes_each() -> None:
    tally, _ = count_hits(
        Tally(),
        [Hit(1_764_000_000_000 + n, "site1.com", str(n % 10)) for n in range(1_000)],
        per_click=3,
    )
    assert len(tally.latest) == 1_000
    assert len(histories.pack(tally)) < 13_000


@pytest.mark.parametrize("window", [0, 10**9])
@pytest.mark.parametrize("name", ["x" * 253, "\U0001f600" * 128, "x"])
def test_no_history_exceeds_its_bound_however_long_the_names_are(name: str, window: int) -> None:
    tally = Tally()
    for start in range(0, 3_000, 100):
        many = [Hit(start + n, f"{start + n}.{name}", name) for n in range(100)]
        tally, _ = count_hits(tally, many, per_click=3, window=window)
        assert len(msgspec.msgpack.encode(histories.pack(tally))) <= 2 * REMEMBERED_BYTES
    assert tally.earlier + len(tally.latest) == 3_000
    assert len(tally.latest) > 50


def test_a_history_from_the_first_release_is_continued(
    database: Database, counting: Counting
) -> None:
    old: dict[str, Any] = {"_id": '["u1"]', "earlier": 3, "last_day": "2026-11-24"}
    old |= {"latest": msgspec.json.encode([(1, "a.com", "1"), (2, "a.com", "1")])}
    database[documents.HitTally].insert_one(old)
    counting.apply(AdClick, {"b": [AdClick(None, "a.com", "2", "u1", 3)]})
    row = database[documents.HitTally].find_one({})
    assert histories.unpack(row).latest[-1] == Hit(3, "a.com", "2")
    assert row.keys() == {"_id", "earlier", "last_day", "hits", "shape"}
    [change] = database[documents.Change].find({})
    added = msgspec.json.decode(change["counts"])["Clicks"]
    assert added == [["a.com", "2", 1, 1]], "it is the third hit since the previous click"


def test_a_history_from_a_newer_release_is_left_alone(
    database: Database, counting: Counting
) -> None:
    counting.apply(AdClick, {"b": [AdClick(None, "a.com", "2", "u1", 3)]})
    newer = {"$set": {"shape": documents.HISTORY_SHAPE + 1}}
    database[documents.HitTally].update_many({}, newer)
    with pytest.raises(Unavailable, match="newer release"):
        counting.apply(AdClick, {"c": [AdClick(None, "a.com", "2", "u1", 4)]})

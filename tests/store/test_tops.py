from datetime import date
from typing import Any

import pytest

from app.domain.events import PageView
from app.store import tops
from app.store.counting import Counting
from app.store.database import Database
from app.store.scope import EVERYTHING, Scope
from tests.support.counting import count_batch

DAY = date(2026, 11, 24)


@pytest.mark.parametrize("most", [2, 2_000])
@pytest.mark.parametrize(
    ("scope", "websites"),
    [(EVERYTHING, "abc"), (Scope(["a.com", "c.com"]), "ac"), (Scope(["never.example"]), "")],
)
def test_the_top_pages_are_only_of_the_scope_however_many_there_are(
    database: Database,
    counting: Counting,
    monkeypatch: pytest.MonkeyPatch,
    scope: Scope,
    websites: str,
    most: int,
) -> None:
    views = [
        PageView(None, f"{name}.com", f"/{number}", str(DAY))
        for name in "abc"
        for number in range(3)
        for _ in range(number + 1)
    ]
    count_batch(database, counting, "b", PageView, views)
    monkeypatch.setattr(tops, "MAX_ROWS", most)
    lately = [("b.com", "/0"), ("c.com", "/0")]
    found = tops.pages(database, None, DAY, DAY, lately, scope)
    expected: list[dict[str, Any]] = [
        {"website": f"{name}.com", "page": f"/{number}", "views": number + 1}
        for number in (2, 1, 0)
        for name in websites
    ]
    assert found.rows == expected
    assert found.is_exact == (most > len(expected))


def test_of_some_ads_there_are_no_pages(database: Database, counting: Counting) -> None:
    count_batch(database, counting, "b", PageView, [PageView(None, "a.com", "/", str(DAY))])
    assert tops.pages(database, None, DAY, DAY, [], Scope(ads=["1"])) == ([], True)
    assert tops.filtered(database, None, DAY, DAY, Scope(ads=["1"])) == ([], True)

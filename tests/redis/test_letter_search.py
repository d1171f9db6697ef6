import json
from itertools import chain
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.events import OTHER, Rejection
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters, letter_search
from app.redis.letter_search import EVERY, Filters, Reason

MISSING = ["Missing data for required field."]


def keep(journal: RedisJournal, *letters: tuple[Any, Any]) -> None:
    """Keep events, given as JSON or as values, each rejected with these errors."""
    rejections = [
        Rejection(0, event if isinstance(event, bytes) else msgspec.json.encode(event), errors)
        for event, errors in letters
    ]
    journal.write([], dead_letters.keeping(rejections))


def found(journal: RedisJournal, **filters: str) -> list[Any]:
    """The events and batches found, newest first."""
    return [
        msgspec.json.decode(letter.batch if letter.batch_id else letter.event)
        for stored in letter_search.found(journal.redis, Filters(**filters))
        for letter in [stored.letter()]
    ]


def test_letters_are_found_by_their_summary_newest_first(journal: RedisJournal) -> None:
    keep(journal, (1, {"Url": ["Wrong."]}), (2, {"Type": MISSING}), (3, {"Url": ["Wrong."]}))
    journal.bury(Batch("b1", "ad_click", b"[4]"), "KeyError: 'x'")
    keep(journal, (5, {"Url": ["Wrong."], "Kafka": ["topic t, offset 5"]}))
    everything = found(journal)
    assert [4] in everything
    assert [event for event in everything if event != [4]] == [5, 3, 2, 1]
    assert found(journal, reason="Url: Wrong.") == [5, 3, 1]
    assert found(journal, reason="KeyError: …") == [[4]]
    assert found(journal, reason="Url: wrong.") == []
    assert found(journal, reason="Url: Wrong.", q="5") == [5]


@pytest.mark.parametrize(
    ("q", "number"),
    [
        ("SITE1", 1),
        ("Über", 1),
        ("ÜBER", 1),
        ("überall", 1),
        ('say "hi"', 1),
        ('über "x"', 1),
        ("a\\b", 1),
        ("a\nb", 1),
        ("\U0001f600", 1),
        ('"N":', 2),
        ("wrong.", 1),
        ("missing DATA", 1),
        ("nowhere", 0),
        (".*", 0),
        ("\ud800", 0),
    ],
)
@pytest.mark.parametrize("only_ascii", [True, False])
def test_letters_are_found_by_a_text_in_any_case_however_it_is_escaped(
    journal: RedisJournal, q: str, number: int, only_ascii: bool
) -> None:
    event = {
        "N": 1,
        "Url": "Site1.com",
        "X": ["Überall", 'Über "x"', 'say "hi"', "a\\b", "a\nb", "\U0001f600"],
    }
    raw = json.dumps(event, ensure_ascii=only_ascii, separators=(",", ":")).encode()
    keep(journal, (raw, {"Url": ["Wrong."]}), ({"N": 2}, {"Type": MISSING}))
    assert len(found(journal, q=q)) == number


def test_batches_are_searched_too(journal: RedisJournal) -> None:
    journal.bury(Batch("b1", "ad_click", b'[{"website":"site1.com"}]'), "a fault")
    journal.bury(Batch("b2", "ad_click", b'[{"website":"\xff"}]'), "another fault")
    assert found(journal, q="SITE1") == [[{"website": "site1.com"}]]
    assert len(found(journal, q="fault")) == 2


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_of_what_is_found_follow_each_other_without_gaps(
    journal: RedisJournal, limit: int
) -> None:
    for n in range(0, 30, 3):
        keep(journal, (n, {"Url": ["Wrong."]}), (n + 1, {"Type": MISSING}))
        journal.bury(Batch(f"b{n}", "ad_click", b"[%d]" % (n + 2)), "a fault")
    for filters in (EVERY, Filters(reason="Url: Wrong."), Filters(q="1"), Filters(q="fault")):
        expected = [letter.id for letter in letter_search.found(journal.redis, filters)]
        ids: list[str] = []
        cursor = None
        while True:
            letters, cursor = letter_search.page(journal.redis, filters, limit, cursor)
            assert len(letters) <= limit
            ids += [letter.id for letter in letters]
            if cursor is None:
                break
            assert ids[-1] == cursor
        assert ids == expected != []


def test_a_page_ends_before_it_holds_too_many_bytes(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_search, "MAX_PAGE_BYTES", 5_000)
    keep(journal, *[("x" * 2_000, {"Url": ["Wrong."]})] * 7)
    sizes, cursor = [], None
    while True:
        letters, cursor = letter_search.page(journal.redis, EVERY, 100, cursor)
        sizes.append(len(letters))
        if cursor is None:
            break
    assert sizes == [3, 3, 1]


def test_reasons_are_counted_most_first(journal: RedisJournal) -> None:
    keep(journal, *[(1, {"Url": ["Wrong."]})] * 3, (2, {"Type": MISSING}))
    for n in range(2):
        journal.bury(Batch(f"b{n}", "ad_click", b"[]"), f"KeyError: '{n}'")
    counted = letter_search.reasons(journal.redis, EVERY)
    assert counted == [
        Reason("Url: Wrong.", 3),
        Reason("KeyError: …", 2),
        Reason(f"Type: {MISSING[0]}", 1),
    ]
    assert letter_search.reasons(journal.redis, Filters(q="wrong")) == counted[:1]
    assert letter_search.reasons(journal.redis, Filters(q="nowhere")) == []


def test_rare_reasons_are_counted_together(journal: RedisJournal) -> None:
    many = letter_search.MAX_REASONS + 7
    names = [f"{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(many)]
    keep(journal, *[(1, {name: ["Wrong."]}) for name in names], *[(1, {"Url": ["Wrong."]})] * 9)
    counted = letter_search.reasons(journal.redis, EVERY)
    assert len(counted) == letter_search.MAX_REASONS + 1
    assert (counted[0], counted[-1]) == (Reason("Url: Wrong.", 9), Reason(OTHER, 8))
    assert sum(reason.letters for reason in counted) == many + 9


def test_only_letters_that_fit_are_removed(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_search, "REMOVED_AT_ONCE", 4)
    for n in range(600):
        keep(journal, (n, {"Url": ["Wrong."]} if n % 2 else {"Type": MISSING}))
    journal.bury(Batch("b1", "ad_click", b'["odd"]'), "a fault")
    assert letter_search.remove(journal.redis, Filters(reason="Url: Wrong.")) == 300
    assert len(found(journal)) == 301
    assert letter_search.remove(journal.redis, Filters(q="ODD")) == 1
    assert found(journal) == list(range(598, -1, -2))
    assert letter_search.remove(journal.redis, Filters(q="ODD")) == 0


ERRORS = st.dictionaries(
    st.sampled_from(["Type", "Url", "Meta", "Kafka"]),
    st.lists(st.sampled_from([*MISSING, "Wrong.", "\x1b[31m", "É"]), min_size=1, max_size=2),
)


@given(reasons=st.lists(ERRORS, min_size=1, max_size=20))
def test_each_group_leads_to_its_letters_and_together_they_are_all(
    journal: RedisJournal, reasons: list[Any]
) -> None:
    dead_letters.remove_all(journal.redis)
    keep(journal, *enumerate(reasons))
    counted = letter_search.reasons(journal.redis, EVERY)
    of_groups = [found(journal, reason=reason.reason) for reason in counted]
    assert [len(group) for group in of_groups] == [reason.letters for reason in counted]
    assert sorted(chain.from_iterable(of_groups)) == list(range(len(reasons)))

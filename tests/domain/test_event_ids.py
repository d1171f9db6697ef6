import pytest
from msgspec.structs import replace

from app.domain.event_ids import claim_of, content_of
from app.domain.events import OTHER, Actual, AdClick, AdImpression, Event, PageView

VIEW = PageView("e1", "a.com", "/", "2026-11-24")
SHOWN = AdImpression("e1", "a.com", "34", "u1", "2026-11", 1)
CLICK = AdClick("e1", "a.com", "34", "u1", 1)


def test_a_claim_depends_only_on_the_website_and_the_event_id() -> None:
    assert claim_of(VIEW) == claim_of(SHOWN) == claim_of(CLICK)
    assert claim_of(VIEW) != claim_of(replace(VIEW, website="b.com"))
    assert claim_of(VIEW) != claim_of(replace(VIEW, event_id="e2"))
    assert claim_of(replace(VIEW, website="a", event_id="b c")) != claim_of(
        replace(VIEW, website="a b", event_id="c")
    )


@pytest.mark.parametrize("event_id", ["e", "\0" * 128, "\U0001f600" * 128])
def test_a_claim_has_the_same_length_for_every_id(event_id: str) -> None:
    assert len(claim_of(replace(VIEW, event_id=event_id))) == 22


@pytest.mark.parametrize(
    ("event", "other", "same"),
    [
        (VIEW, replace(VIEW, day="2026-11-25", time=7), True),
        (VIEW, replace(VIEW, page="/b"), False),
        (SHOWN, replace(SHOWN, month="2026-10", time=2), True),
        (SHOWN, replace(SHOWN, ad_id="35"), False),
        (SHOWN, replace(SHOWN, user_id="u2"), False),
        (CLICK, replace(CLICK, time=2), True),
        (CLICK, SHOWN, False),
    ],
)
def test_content_is_the_type_and_either_the_page_or_the_ad_and_user(
    event: Event, other: Event, same: bool
) -> None:
    assert (content_of(event, with_user=True) == content_of(other, with_user=True)) == same


def test_content_can_leave_out_users_whose_hash_changes_each_month() -> None:
    other = replace(SHOWN, user_id="u2")
    assert content_of(SHOWN, with_user=False) == content_of(other, with_user=False)


def test_an_event_counted_as_other_keeps_the_identity_of_its_actual_website_and_page() -> None:
    other = replace(VIEW, website=OTHER, page=OTHER, actual=Actual("a.com", "/"))
    assert claim_of(other) == claim_of(VIEW)
    assert content_of(other, with_user=True) == content_of(VIEW, with_user=True)

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.domain.clicks import Hit, Tally, count_hits

hits = st.lists(
    st.builds(
        Hit,
        time=st.integers(0, 20),
        website=st.sampled_from(["a.com", "b.com"]),
        ad_id=st.sampled_from(["1", "2"]),
    ),
    max_size=30,
)


def clicks_after(*batches: list[Hit], per_click: int = 3) -> Counter[tuple[str, str]]:
    tally, total = Tally(), Counter[tuple[str, str]]()
    for batch in batches:
        tally, change = count_hits(tally, batch, per_click=per_click)
        total.update(change)
    return +total


def on_ad(number: int, times: int) -> list[Hit]:
    return [Hit(time, "a.com", str(number)) for time in range(times)]


def test_the_third_hit_makes_a_click_and_the_user_starts_again() -> None:
    assert clicks_after(on_ad(1, 2)) == {}
    assert clicks_after(on_ad(1, 3)) == {("a.com", "1"): 1}
    assert clicks_after(on_ad(1, 5)) == {("a.com", "1"): 1}
    assert clicks_after(on_ad(1, 7)) == {("a.com", "1"): 2}


def test_the_click_belongs_to_the_ad_of_the_hit_that_completes_it() -> None:
    hits = [Hit(1, "a.com", "1"), Hit(2, "a.com", "1"), Hit(3, "b.com", "2")]
    assert clicks_after(hits) == {("b.com", "2"): 1}


def test_a_hit_that_arrives_late_takes_its_place_by_time() -> None:
    first, second, third = Hit(1, "a.com", "1"), Hit(2, "a.com", "2"), Hit(3, "a.com", "3")
    fourth = Hit(4, "a.com", "4")
    assert clicks_after([first, second, fourth]) == {("a.com", "4"): 1}
    assert clicks_after([first, second, fourth], [third]) == {("a.com", "3"): 1}


@given(hits=hits, per_click=st.integers(1, 4), data=st.data())
def test_clicks_are_the_same_in_any_order_and_any_split(
    hits: list[Hit], per_click: int, data: st.DataObject
) -> None:
    in_order = sorted(hits)
    expected = Counter((hit.website, hit.ad_id) for hit in in_order[per_click - 1 :: per_click])
    shuffled = data.draw(st.permutations(hits))
    cut = data.draw(st.integers(0, len(hits)))
    assert clicks_after(shuffled[:cut], shuffled[cut:], per_click=per_click) == expected


@given(hits=hits, remember=st.integers(0, 5))
def test_forgetting_early_hits_keeps_the_number_of_clicks(hits: list[Hit], remember: int) -> None:
    tally, clicks = Tally(), 0
    for hit in hits:
        tally, change = count_hits(tally, [hit], per_click=3, remember=remember)
        clicks += change.total()
        assert len(tally.latest) <= remember
    assert clicks == len(hits) // 3
    assert tally.earlier + len(tally.latest) == len(hits)

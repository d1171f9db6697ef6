from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.domain.clicks import Change, Hit, Tally, count_hits

hits = st.lists(
    st.builds(
        Hit,
        time=st.integers(0, 20),
        website=st.sampled_from(["a.com", "b.com"]),
        ad_id=st.sampled_from(["1", "2"]),
    ),
    max_size=30,
)


def clicks_after(*batches: list[Hit], per_click: int = 3) -> Counter[Hit]:
    return counted(*batches, per_click=per_click).clicks


def counted(*batches: list[Hit], per_click: int = 3, window: int = 0, **more: int) -> Change:
    """The total change that these batches make."""
    tally, total = Tally(), Change(Counter(), Counter())
    for batch in batches:
        tally, change = count_hits(tally, batch, per_click=per_click, window=window, **more)
        total.clicks.update(change.clicks)
        total.repeats.update(change.repeats)
    return Change(+total.clicks, +total.repeats)


def on_ad(number: int, times: int) -> list[Hit]:
    return [Hit(time, "a.com", str(number)) for time in range(times)]


def test_the_third_hit_makes_a_click_and_the_count_starts_again() -> None:
    assert clicks_after(on_ad(1, 2)) == {}
    assert clicks_after(on_ad(1, 3)) == {Hit(2, "a.com", "1"): 1}
    assert clicks_after(on_ad(1, 5)) == {Hit(2, "a.com", "1"): 1}
    assert clicks_after(on_ad(1, 7)) == {Hit(2, "a.com", "1"): 1, Hit(5, "a.com", "1"): 1}


def test_a_click_belongs_to_the_hit_that_completes_it() -> None:
    hits = [Hit(1, "a.com", "1"), Hit(2, "a.com", "1"), Hit(3, "b.com", "2")]
    assert clicks_after(hits) == {hits[2]: 1}


def test_a_hit_that_arrives_late_takes_its_place_by_time() -> None:
    first, second, third = Hit(1, "a.com", "1"), Hit(2, "a.com", "2"), Hit(3, "a.com", "3")
    fourth = Hit(4, "a.com", "4")
    assert clicks_after([first, second, fourth]) == {fourth: 1}
    assert clicks_after([first, second, fourth], [third]) == {third: 1}


@given(hits=hits, per_click=st.integers(1, 4), data=st.data())
def test_clicks_are_the_same_in_any_order_and_any_split(
    hits: list[Hit], per_click: int, data: st.DataObject
) -> None:
    in_order = sorted(hits)
    expected = Counter(in_order[per_click - 1 :: per_click])
    shuffled = data.draw(st.permutations(hits))
    cut = data.draw(st.integers(0, len(hits)))
    assert clicks_after(shuffled[:cut], shuffled[cut:], per_click=per_click) == expected


@given(hits=hits, remember=st.integers(0, 5))
def test_forgetting_early_hits_keeps_the_number_of_clicks(hits: list[Hit], remember: int) -> None:
    tally, clicks = Tally(), 0
    for hit in hits:
        tally, change = count_hits(tally, [hit], per_click=3, remember=remember)
        clicks += change.clicks.total()
        assert len(tally.latest) <= remember
    assert clicks == len(hits) // 3
    assert tally.earlier + len(tally.latest) == len(hits)


# Hits that are only repeats.


def model(hits: list[Hit], per_click: int, window: int) -> Change:
    """What the rule says if it sees all hits at once."""
    counting: list[Hit] = []
    repeats = Counter[Hit]()
    for hit in sorted(hits):
        ad = hit.website, hit.ad_id
        on_ad = [known for known in counting if (known.website, known.ad_id) == ad]
        if on_ad and hit.time - on_ad[-1].time < window:
            repeats[hit] += 1
        else:
            counting.append(hit)
    return Change(Counter(counting[per_click - 1 :: per_click]), repeats)


def test_a_hit_on_the_same_ad_within_the_window_is_only_a_repeat() -> None:
    first, soon, just_after = Hit(0, "a.com", "1"), Hit(9, "a.com", "1"), Hit(10, "a.com", "1")
    later = Hit(19, "a.com", "1")
    change = counted([first, soon, just_after, later], per_click=1, window=10)
    assert change == Change(Counter([first, just_after]), Counter([soon, later]))


def test_hits_on_other_ads_or_websites_are_not_repeats() -> None:
    hits = [Hit(0, "a.com", "1"), Hit(0, "a.com", "2"), Hit(0, "b.com", "1")]
    assert counted(hits, window=10).repeats == {}
    assert counted(hits, window=10).clicks.total() == 1


def test_a_hit_that_arrives_late_turns_the_next_one_into_a_repeat() -> None:
    late, after = Hit(5, "a.com", "1"), Hit(10, "a.com", "1")
    assert counted([after], [late], per_click=1, window=10) == Change(
        Counter([late]), Counter([after])
    )


@given(hits=hits, per_click=st.integers(1, 4), window=st.integers(0, 8), data=st.data())
def test_clicks_and_repeats_are_the_same_in_any_order_and_any_split(
    hits: list[Hit], per_click: int, window: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(hits))
    size = data.draw(st.integers(1, 10))
    batches = [shuffled[start : start + size] for start in range(0, len(hits), size)]
    assert counted(*batches, per_click=per_click, window=window) == model(hits, per_click, window)


@given(hits=hits, window=st.integers(0, 8), remember=st.integers(0, 5), size=st.integers(1, 5))
def test_hits_in_order_are_counted_exactly_however_few_are_remembered(
    hits: list[Hit], window: int, remember: int, size: int
) -> None:
    in_order = sorted(hits)
    batches = [in_order[start : start + size] for start in range(0, len(hits), size)]
    found = counted(*batches, window=window, remember=remember)
    assert found == model(hits, 3, window)


@given(hits=hits, window=st.integers(1, 8), remember=st.integers(0, 5))
def test_every_hit_counts_or_repeats_once_in_any_order_however_few_are_remembered(
    hits: list[Hit], window: int, remember: int
) -> None:
    tally, clicks, repeats = Tally(), 0, 0
    for hit in hits:
        tally, change = count_hits(tally, [hit], per_click=1, window=window, remember=remember)
        clicks += change.clicks.total()
        repeats += change.repeats.total()
        assert len(tally.latest) <= remember
        assert min(change.clicks.total(), change.repeats.total()) >= 0
    assert clicks + repeats == len(hits)

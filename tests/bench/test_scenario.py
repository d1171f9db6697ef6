import pytest

from bench.scenario import Scenario, Step, figures

LOAD = Scenario(seconds=4, requests=1, size=10)


def test_a_burst_has_more_requests_for_its_time() -> None:
    burst = Scenario(seconds=4, requests=1, burst_at=1, burst=1, times=4)
    assert burst.arrivals() == pytest.approx([0, 1, 1.25, 1.5, 1.75, 2, 3])


def test_figures_are_those_of_a_hand_calculation() -> None:
    accepted = {"PageView": [Step(0, 30), Step(1, 10)], "AdClick": [Step(2, 10)]}
    counted = {"PageView": [Step(2, 20), Step(5, 20)], "AdClick": [Step(2.5, 10)]}
    load = Scenario(seconds=4, requests=1, size=10, outage_at=1, outage=1)
    found = figures(load, accepted, counted, 7, {"web": 1.0})
    # Lags: 20 events of 2 s, 10 of 5 s, 10 of 4 s; and 10 of 0.5 s.
    assert (found.lag_median, found.lag_max) == (2, 5)
    assert (found.accepted, found.counted, found.refused, found.peak) == (50, 50, 7, 40)
    assert found.per_second == 10
    # 20 wait until 5, more than a second's 10; the outage was over at 2.
    assert found.drained == 3


def test_without_trouble_nothing_has_to_be_drained() -> None:
    found = figures(LOAD, {"PageView": [Step(0, 10)]}, {"PageView": [Step(1, 10)]}, 0, {})
    assert found.drained == 0

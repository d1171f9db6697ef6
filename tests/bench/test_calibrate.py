import pytest

from bench.calibrate import Seen, solve
from bench.scenario import Cost


def seen(requests: int, events: int, cost: Cost) -> Seen:
    return Seen(requests, events, 0, 0, {"web": cost.fixed * requests + cost.each * events})


def test_the_cost_is_the_one_that_explains_both_loads() -> None:
    cost = Cost(4e-4, 9e-6)
    found = solve([seen(320, 320, cost), seen(200, 20_000, cost)], "web", "requests")
    assert found == pytest.approx(cost)


@pytest.mark.parametrize("used", [(0.0, 0.4), (0.4, 0.0)])
def test_no_cost_is_below_nothing(used: tuple[float, float]) -> None:
    few = Seen(320, 320, 0, 0, {"web": used[0]})
    many = Seen(200, 20_000, 0, 0, {"web": used[1]})
    assert min(solve([few, many], "web", "requests")) >= 0

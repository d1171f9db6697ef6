from dataclasses import replace

import pytest

from app.journal import TAKEN_AT_ONCE, TAKEN_BYTES
from bench.events import MIX
from bench.scenario import Cost, Costs, Scenario
from bench.simulation import capacities, simulate
from tasks.base import LINGER_SECONDS

FREE = dict.fromkeys(MIX, Cost(0, 0))
NOTHING = Costs(
    sender=Cost(0, 0),
    web=Cost(0, 0),
    redis=Cost(0, 0),
    worker=FREE,
    database=FREE,
    wait=dict.fromkeys(MIX, 0.0),
    idle={},
    event_bytes=100,
    resume=0,
)
SOME = replace(
    NOTHING,
    web=Cost(4e-4, 1e-5),
    redis=Cost(5e-5, 1e-6),
    worker=dict.fromkeys(MIX, Cost(2e-3, 2e-5)),
    database=dict.fromkeys(MIX, Cost(5e-3, 1e-4)),
    wait=dict.fromkeys(MIX, 0.005),
    idle={"web": 0.1},
)
VIEWS = {"PageView": 1.0}
ONE = Scenario(seconds=1, requests=1, shares=VIEWS)
USUAL = Scenario(seconds=10, requests=30)


def test_a_request_alone_takes_what_its_hops_cost_together() -> None:
    costs = replace(
        NOTHING,
        sender=Cost(0.5, 0),
        web=Cost(0.5, 0.01),
        redis=Cost(0.25, 0),
        worker={"PageView": Cost(1, 0.01)},
        database={"PageView": Cost(2, 0.01)},
        wait={"PageView": 0.5},
    )
    found = simulate(costs, ONE)
    accepted_at, lag = 0.5 + 1.5 + 0.25, 2 + 3 + 0.5
    assert (found.accepted, found.counted, found.peak) == (100, 100, 100)
    assert found.lag_median == pytest.approx(lag)
    assert found.lag_max == pytest.approx(lag)
    assert found.per_second == pytest.approx(100 / (accepted_at + lag))


@pytest.mark.parametrize(("web", "cores", "takes"), [(2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_two_requests_at_once_share_processes_and_cores(
    web: int, cores: float, takes: float
) -> None:
    load = replace(ONE, seconds=1.5e-6, requests=1e6, web=web, cores=cores)
    found = simulate(replace(NOTHING, web=Cost(1, 0)), load)
    assert found.accepted == 200
    # The worker takes the second one once it has lingered for it.
    assert found.per_second == pytest.approx(200 / (takes + LINGER_SECONDS), rel=1e-3)


def test_a_worker_takes_what_comes_while_it_lingers_together() -> None:
    load = replace(ONE, requests=20)
    found = simulate(replace(NOTHING, wait={"PageView": 0.01}), load)
    assert found.lag_max == pytest.approx(LINGER_SECONDS, abs=0.06)


@pytest.mark.parametrize(
    "load",
    [
        USUAL,
        replace(USUAL, requests=300, size=1),
        replace(USUAL, burst_at=3, burst=2, times=20),
        replace(USUAL, outage_at=2, outage=20),
        replace(USUAL, outage_at=2, outage=20, queue_limit=50),
        replace(USUAL, shares={"AdClick": 1.0}, workers=3),
    ],
)
def test_what_is_posted_is_refused_or_accepted_and_all_of_that_is_counted(load: Scenario) -> None:
    found = simulate(SOME, load)
    posted = len(load.arrivals()) * load.size
    # An event of a type may still be owed at the end, as events are whole.
    assert posted - len(MIX) <= found.accepted + found.refused <= posted
    assert found.counted == found.accepted


def test_only_a_full_queue_refuses_and_never_holds_more() -> None:
    load = replace(USUAL, shares=VIEWS, outage_at=2, outage=20)
    assert simulate(SOME, load).refused == 0
    limited = simulate(SOME, replace(load, queue_limit=50))
    assert limited.refused > 0
    # Beside those that the worker has.
    assert limited.peak <= (50 + TAKEN_AT_ONCE) * load.size
    assert limited.peak < simulate(SOME, load).peak


@pytest.mark.parametrize("times", [1, 20])
def test_more_workers_and_more_web_processes_are_never_later(times: float) -> None:
    costs = replace(SOME, worker=dict.fromkeys(MIX, Cost(2e-3, 1e-3)), idle={})
    load = replace(USUAL, cores=16, burst_at=3, burst=2, times=times)
    one, two, four = (simulate(costs, replace(load, workers=number)) for number in (1, 2, 4))
    assert one.drained >= two.drained >= four.drained
    assert one.lag_max >= two.lag_max >= four.lag_max
    slow_web = replace(costs, web=Cost(0.05, 0))
    few, many = (simulate(slow_web, replace(load, web=number)) for number in (1, 4))
    assert few.per_second <= many.per_second


def test_what_waits_in_an_outage_is_what_came_and_after_it_the_longest_wait_is_as_long() -> None:
    costs = replace(SOME, resume=2.0)
    load = replace(USUAL, seconds=100, outage_at=10, outage=20)
    short, long = (simulate(costs, replace(load, outage=seconds)) for seconds in (20, 40))
    for found, seconds in ((short, 20), (long, 40)):
        came = (seconds + costs.resume) * load.requests * load.size
        assert found.peak == pytest.approx(came, rel=0.05)
        assert found.lag_max >= seconds + costs.resume - 1 / load.requests
        assert found.drained >= costs.resume
    assert long.drained > short.drained


def test_a_load_that_fits_is_counted_as_it_comes_and_one_that_does_not_waits() -> None:
    name, most = min(capacities(SOME, USUAL).items(), key=lambda item: item[1])
    assert name == "database"
    fits, exceeds = (
        simulate(SOME, replace(USUAL, seconds=30, requests=part * most / USUAL.size))
        for part in (0.8, 1.3)
    )
    assert fits.lag_max < 2
    assert exceeds.peak > 0.2 * most * 30
    assert 0.8 * most < exceeds.per_second <= most


def test_capacities_are_those_of_a_hand_calculation() -> None:
    costs = replace(
        NOTHING,
        web=Cost(1e-3, 1e-5),
        redis=Cost(0, 1e-6),
        worker={"PageView": Cost(0, 3e-5)},
        database={"PageView": Cost(0, 7e-5)},
        event_bytes=TAKEN_BYTES / 1000,
    )
    assert capacities(costs, replace(ONE, web=2, workers=3, cores=2)) == pytest.approx(
        {
            "web": 2 / 2e-5,
            "redis": 1e6,
            "database": 1 / 7e-5,
            "worker PageView": 3 / 1e-4,
            "cores": 2 / (2e-5 + 1e-6 + 3e-5 + 7e-5),
        }
    )

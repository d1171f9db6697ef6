import random
from itertools import islice
from pathlib import Path

import pytest

from tests.faults.harness import PARTS, RABBIT, run, schedule
from tests.support.rabbit import needs_rabbit, started_rabbit

pytestmark = pytest.mark.proof

SECONDS = 18


def test_events_answered_202_are_counted_once_while_every_part_is_killed(tmp_path: Path) -> None:
    outcome = run(tmp_path, SECONDS, 20, print, (0.5, 1.5))
    assert outcome.accepted > 0
    assert outcome.plain_accepted > 0
    assert sum(hits.kills for hits in outcome.hits.values()) >= len(PARTS)
    assert (outcome.lost, outcome.repeated) == (0, 0)


@needs_rabbit
def test_events_answered_202_are_counted_once_while_rabbitmq_is_killed_too(tmp_path: Path) -> None:
    with started_rabbit(tmp_path) as rabbit:
        outcome = run(tmp_path, SECONDS, 20, print, (0.5, 1.5), rabbit)
    assert outcome.accepted > 0
    assert outcome.plain_accepted > 0
    assert outcome.hits[RABBIT].kills > 0
    assert (outcome.lost, outcome.repeated) == (0, 0)


def test_the_schedule_is_the_same_for_a_seed_and_hits_every_part() -> None:
    faults = list(islice(schedule(random.Random(1)), 60))
    assert faults == list(islice(schedule(random.Random(1)), 60))
    assert faults != list(islice(schedule(random.Random(2)), 60))
    kills = [part for fault in faults if fault.kind != "stop" for part in fault.parts]
    assert all(kills.count(part) >= 5 for part in PARTS)
    assert any(fault.seconds > 20 for fault in faults)

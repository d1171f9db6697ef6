from collections.abc import Iterator

import pytest

from tests.crash_points.harness import Harness, started
from tests.errors.matrix import try_all

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with started(tmp_path_factory.mktemp("errors")) as harness:
        yield harness


def test_whatever_error_the_database_gives_each_event_is_counted_once(harness: Harness) -> None:
    outcome, endings = try_all(harness, "count page_view", every=75)
    assert outcome.wrong == []
    assert set(outcome.calls) >= {"commitTransaction", "delete", "find", "insert"}
    assert endings.keys() == {"at once", "later"}


def test_without_the_ledger_the_matrix_finds_that_a_committed_batch_counts_twice(
    harness: Harness,
) -> None:
    outcome, _ = try_all(harness, "count page_view", every=61, broken=True)
    assert outcome.repeated > 0
    assert any("commitTransaction: done, but" in each for each in outcome.wrong)

import threading
from collections.abc import Iterator
from contextlib import closing
from socket import create_connection, create_server

import pytest

from tests.crash_points.gate import Gate, redis_call
from tests.crash_points.harness import Harness, started
from tests.crash_points.orders import Orders


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with started(tmp_path_factory.mktemp("crash_points")) as harness:
        yield harness


@pytest.mark.proof
def test_counts_stay_exact_if_a_worker_is_killed_before_or_after_any_call(
    harness: Harness,
) -> None:
    outcome = harness.try_all("count page_view", ["die before", "die after"], every=2)
    assert outcome.wrong == []
    assert {"find", "insert", "commitTransaction", "EVALSHA"} <= set(outcome.calls)
    assert min(outcome.recoveries.values()) > 0


@pytest.mark.proof
def test_without_the_ledger_the_harness_finds_that_a_redelivered_batch_counts_twice(
    harness: Harness,
) -> None:
    outcome = harness.try_all("count page_view", ["die after"], every=2, broken=True)
    assert outcome.repeated > 0
    assert any("views without id 2, not [1]" in each for each in outcome.wrong)


@pytest.mark.proof
def test_counts_stay_exact_if_two_workers_count_the_same_batches_in_any_order(
    harness: Harness,
) -> None:
    with closing(Orders(harness)) as orders:
        outcome = orders.try_all("count page_view, sent twice", every=6)
    assert outcome.wrong == []
    assert {"known by the ledger", "apply_retries", "events_deduplicated"} <= set(
        +outcome.recoveries
    )


@pytest.mark.proof
def test_without_the_ledger_the_harness_finds_that_two_workers_count_a_batch_twice(
    harness: Harness,
) -> None:
    with closing(Orders(harness, broken=True)) as orders:
        outcome = orders.try_all("count page_view", every=10)
    assert outcome.repeated > 0


def test_a_gate_closes_the_connection_to_the_server_when_the_process_closes_its_own() -> None:
    with (
        create_server(("127.0.0.1", 0)) as server,
        Gate(server.getsockname()[1], redis_call) as gate,
    ):
        threading.Thread(target=gate.serve_forever, args=(0.05,), daemon=True).start()
        with create_connection(("127.0.0.1", gate.port)) as process:
            process.sendall(b"*1\r\n$4\r\nPING\r\n")
            accepted, _ = server.accept()
            accepted.settimeout(10)
            assert accepted.recv(100)
        with accepted:
            assert accepted.recv(100) == b""
        gate.shutdown()

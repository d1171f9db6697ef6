import threading
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest

from app.settings import Settings
from app.web.server import threads, workers
from tests.web.conftest import gunicorn


@pytest.fixture(scope="module")
def server(shared_settings: Settings) -> Iterator[str]:
    """The URL of a gunicorn whose threads say their names."""
    with gunicorn(shared_settings, shared_settings.data_dir, "tests.web.naming:app") as url:
        yield url


def test_a_thread_stays_with_a_connection_that_sends_one_request_after_another(
    server: str,
) -> None:
    with httpx.Client(base_url=server) as client:
        names = [client.get("/").text for _ in range(300)]
    stays = sum(one == other for one, other in pairwise(names))
    # Handed on, it would be the same thread one time in sixteen. A busy machine parts them, too.
    assert stays > len(names) / 4


def test_no_connection_is_kept_waiting_by_more_that_never_pause(server: str) -> None:
    over = threading.Event()

    def hammer() -> None:
        with httpx.Client(base_url=server) as client:
            while not over.is_set():
                assert client.get("/?0.001").is_success

    hammering = [threading.Thread(target=hammer) for _ in range(workers * threads + 8)]
    for thread in hammering:
        thread.start()
    try:
        for _ in range(20):
            assert httpx.get(server, timeout=10).is_success
    finally:
        over.set()
        for thread in hammering:
            thread.join()

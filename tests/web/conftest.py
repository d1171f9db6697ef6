import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from app.journal.journal import Journal
from app.local.processes import free_ports
from app.settings import Settings
from app.web.application import create_app
from tests.support.waiting import running, wait_until

MakeClient = Callable[..., FlaskClient]


@pytest.fixture
def client_with(settings: Settings, journal: Journal) -> MakeClient:
    """Makes the web application with some settings of its own."""

    def make(**changes: Any) -> FlaskClient:
        return create_app(replace(settings, **changes)).test_client()

    return make


@pytest.fixture
def client(client_with: MakeClient) -> FlaskClient:
    """The web application with default settings."""
    return client_with()


def is_up(url: str) -> bool:
    """Whether a web server answers at this URL."""
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


@contextmanager
def gunicorn(settings: Settings, home: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """The URL of a gunicorn with the project's own configuration and its log in this folder."""
    port = free_ports(1)[0]
    with running(
        *(sys.executable, "-m", "gunicorn", "--config", "python:app.web.server"),
        *arguments,
        log=home / "web.log",
        PORT=str(port),
        REDIS_URL=settings.redis_url,
        MONGODB_URL=settings.mongodb_url,
        DATA_DIR=str(home),
        **environment,
    ):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_up(url))
        yield url

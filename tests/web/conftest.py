from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.journal import Journal
from app.settings import Settings
from app.web.application import create_app

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

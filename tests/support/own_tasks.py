"""Running tasks in the test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.store.database import Database
from tasks import names, resources
from tasks.ad_click import ad_click
from tasks.ad_impression import ad_impression
from tasks.page_view import page_view


@contextmanager
def tasks_with(database: Database) -> Iterator[None]:
    """Make tasks in this process use this database and forget all others."""
    for cached in (names._loading, resources.archive):
        cached.cache_clear()
    # Not the test's own monkeypatch, which a test may undo before it ends.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "database", lambda: database)
        for task in (page_view, ad_impression, ad_click):
            patch.delitem(vars(task), "pipeline", raising=False)
        yield
        for task in (page_view, ad_impression, ad_click):
            vars(task).pop("pipeline", None)

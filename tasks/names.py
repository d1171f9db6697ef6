"""Has the names known that the database holds, so that they cost no sender's budget."""

from functools import cache

from app.journal import connect
from app.known_names import KnownNames
from app.loading_names import Loading
from app.settings import settings
from tasks import app

LOAD_SECONDS = 2.0


@app.task(name="tasks.load_names")
def load_names() -> bool:
    """Load names for LOAD_SECONDS, unless all are known; whether they are."""
    return _loading().go_on(LOAD_SECONDS)


@cache
def _loading() -> Loading:
    return Loading(KnownNames(connect(settings().redis_url), settings()))

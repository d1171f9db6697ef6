"""Makes the names in the database known, so that they don't use any sender's budget."""

from functools import cache

from app.ingest.name_loader import Loading
from app.redis.known_names import KnownNames
from app.settings import settings
from tasks import app, resources
from tasks.periodic import PeriodicTask

LOAD_SECONDS = 2.0


@app.task(base=PeriodicTask, name="tasks.load_names")
def load_names() -> bool:
    """Load names for LOAD_SECONDS, unless all are known. Returns whether they are."""
    return _loading().go_on(LOAD_SECONDS)


@cache
def _loading() -> Loading:
    return Loading(resources.database(), KnownNames(resources.redis(), settings()))

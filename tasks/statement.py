"""Makes the statements of closed months, and delivers them to a webhook and by mail."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta

from celery.exceptions import SoftTimeLimitExceeded

from app.errors import DeadlineMissed
from app.outputs import mail, statement, webhook
from app.outputs.mail import MailFailed
from app.outputs.webhook import WebhookFailed
from app.redis import counters
from app.redis.connection import broker_errors
from app.redis.counters import Counted
from app.settings import Settings, settings
from app.store import clock, months, statement_figures, statements
from app.store.database import Database
from app.store.statement_figures import Content
from app.store.statements import Owed
from tasks import app, resources
from tasks.periodic import PeriodicTask

READ_SECONDS = 2.0
"""After this long, the rest is left to the next task, because others wait in the same queue."""
TOO_SLOW = timedelta(minutes=15)
WEBHOOK_LIMIT_SECONDS = 10
MAIL_LIMIT_SECONDS = 20
"""Without limits, a server that answers byte by byte would hold up other tasks of the queue."""

logger = logging.getLogger(__name__)
_begun: dict[str, Iterator[Content | None]] = {}
"""The rest of what this process is reading, by month."""


@app.task(base=PeriodicTask, name="tasks.statements")
def make_statements(now: str | None = None) -> list[str]:
    """Make the statements and corrections that are due, and have them delivered.

    Returns what was made. `now` (ISO 8601 with a zone) replaces the current time, here and in the
    other tasks. Without it, nothing is done while the clocks of this machine and the database
    disagree.
    """
    config, database = settings(), resources.database()
    channels = _channels(config)
    if not channels or (now is None and not clock.agree(database)):
        return []
    moment = _moment(now)
    rows = statements.recent(database, moment)
    made = _go_on(database, config, rows, moment)
    if made:
        rows = statements.recent(database, moment)
    for channel, name in statements.give_up(database, rows, moment):
        logger.error("%s is given up, as it can't be delivered: %s", name, channel)
        _count(counters.STATEMENTS_GIVEN_UP, channel)
    for channel in statements.due_channels(rows, moment):
        if channel in channels:
            app.send_task(f"tasks.statement_{channel}")
    return made


@app.task(name="tasks.statement_webhook", soft_time_limit=WEBHOOK_LIMIT_SECONDS)
def post_statement(now: str | None = None) -> None:
    """Post a statement that is due to STATEMENT_WEBHOOK.

    If that fails, it is due again after a while. Nothing waits for it meanwhile.
    """
    config, database = settings(), resources.database()
    url = config.statement_webhook
    if url is None or (now is None and not clock.agree(database)):
        return
    owed = statements.claim_delivery(database, "webhook", _moment(now))
    if owed is None:
        return
    try:
        webhook.post(
            url,
            statement.body(owed),
            config.spike_webhook_secret,
            private=config.spike_webhook_private,
        )
    except (WebhookFailed, SoftTimeLimitExceeded) as error:
        _failed(owed, "webhook", str(error) or "too slow")
        return
    _delivered(database, owed, "webhook")


@app.task(name="tasks.statement_mail", soft_time_limit=MAIL_LIMIT_SECONDS)
def mail_statement(now: str | None = None) -> None:
    """Mail a statement that is due to those of STATEMENT_EMAIL who don't have it yet.

    If that fails, or the server refuses some of them, it is due again after a while.
    """
    config, database = settings(), resources.database()
    server, recipients = config.smtp_url, config.statement_email
    if server is None or not recipients or (now is None and not clock.agree(database)):
        return
    owed = statements.claim_delivery(database, "mail", _moment(now))
    if owed is None:
        return
    missing = [address for address in recipients if address not in owed.reached]
    sender = server.sender or recipients[0]
    try:
        reached = mail.send(server, statement.mail(owed, sender, missing), sender, missing)
    except (MailFailed, SoftTimeLimitExceeded) as error:
        _failed(owed, "mail", str(error) or "too slow")
        return
    refused = len(missing) - len(reached)
    _delivered(database, owed, "mail", reached, is_all=not refused)
    if refused:
        _failed(owed, "mail", f"{server.host} refused {refused} of {len(missing)} recipients")


def _go_on(
    database: Database, config: Settings, rows: list[statements.Row], moment: datetime
) -> list[str]:
    """Go on reading the months that are due, for READ_SECONDS. Returns what was made."""
    reader = f"{socket.gethostname()}-{os.getpid()}"
    until = time.monotonic() + READ_SECONDS
    made: list[str] = []
    while month := statements.claim_reading(database, rows, reader, moment):
        if month in months.due(database, moment):
            _begun.pop(month, None)
            return made  # it is aggregated first
        # Because of `pop`, reading starts over if it fails.
        reading = _begun.pop(month, None) or statement_figures.read(
            database,
            month,
            _pages_from(config, moment),
        )
        content = None
        try:
            for content in reading:
                if content or time.monotonic() > until:
                    break
        except DeadlineMissed as error:
            logger.warning("the statement of %s can't be made yet: %s", month, error)
            statements.postpone_reading(database, month, reader, moment + TOO_SLOW)
            return made
        if content is None:
            _begun[month] = reading
            return made
        if name := statements.keep(database, content, reader, _channels(config), moment):
            logger.info("made %s", name)
            made.append(name)
        if time.monotonic() > until:
            return made
        rows = statements.recent(database, moment)
    _begun.clear()  # what another process reads now
    return made


def _channels(config: Settings) -> list[str]:
    is_set = {"webhook": config.statement_webhook, "mail": config.statement_email}
    return [channel for channel in statements.CHANNELS if is_set[channel]]


def _pages_from(config: Settings, moment: datetime) -> date | None:
    """The first day for which views by page are kept; None: all are."""
    days = config.retention_days
    return moment.date() - timedelta(days=days) if days else None


def _moment(now: str | None) -> datetime:
    moment = datetime.fromisoformat(now) if now else clock.own()
    return moment.astimezone(settings().timezone)


def _delivered(
    database: Database,
    owed: Owed,
    channel: str,
    reached: frozenset[str] = frozenset(),
    *,
    is_all: bool = True,
) -> None:
    try:
        statements.note(database, owed, channel, delivered=is_all, reached=reached)
    except SoftTimeLimitExceeded:  # it comes only once, and must not cause another delivery
        statements.note(database, owed, channel, delivered=is_all, reached=reached)
    if is_all:
        logger.info("%s is delivered: %s", owed.name, channel)


def _failed(owed: Owed, channel: str, reason: str) -> None:
    logger.warning("%s is not delivered yet: %s", owed.name, reason)
    _count(counters.STATEMENT_FAILURES, channel)


def _count(counted: Counted, value: str) -> None:
    with broker_errors():
        resources.redis().hincrby(counters.KEY, f"{counted.name}|{value}", 1)

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest

import celeryconfig
from app import logs
from app.domain.calendar import month_before
from app.domain.events import AdClick, AdImpression, Event, PageView
from app.journal.redis_journal import RedisJournal
from app.outputs import webhook
from app.redis import counters
from app.settings import Settings, SmtpServer, read
from app.store import months
from app.store.ad_reports import Rules, ad_report
from app.store.ad_selection import Selection
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.documents import Statement
from app.store.statements import GIVE_UP, LEASE, LONGEST_PAUSE, READ_AGAIN, READ_EMPTY_AGAIN
from celeryconfig import task_time_limit
from tasks import app as celery
from tasks import statement
from tasks.statement import mail_statement, make_statements, post_statement
from tests.conftest import SetClock
from tests.support.counting import count_batch
from tests.support.receiver import Receiver, abrupt_receiver
from tests.support.smtp import PASSWORD, USER, MailServer, dripping_server, mail_server
from tests.support.waiting import wait_until
from tests.tasks.conftest import StartWorker

TO = ("a@example.com", "b@example.com")
CLOSED = datetime(2026, 12, 1, 1, tzinfo=UTC)

Configure = Callable[..., None]


@pytest.fixture
def mails() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


@pytest.fixture
def configure(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    receiver: Receiver,
    mails: MailServer,
    journal: RedisJournal,
) -> Iterator[Configure]:
    """Changes the settings; at first both the webhook and the mail are set."""

    def change(**changes: Any) -> None:
        both: dict[str, Any] = {
            "statement_webhook": f"{receiver.url}/statements",
            "spike_webhook_secret": "secret",
            "spike_webhook_private": True,
            "statement_email": TO,
            "smtp_url": SmtpServer("127.0.0.1", mails.port, sender="us@example.com"),
        }
        monkeypatch.setattr(statement, "settings", lambda: replace(settings, **both | changes))

    statement._begun.clear()
    change()
    yield change
    statement._begun.clear()


def count(database: Database, name: str, kind: type[Event], *events: Event) -> None:
    count_batch(database, Counting(database, ClickRule(3, "user")), name, kind, events)


@pytest.fixture
def november(database: Database, configure: Configure) -> None:
    """A month with something of every kind, which is closed."""
    moment = int(datetime(2026, 11, 24, tzinfo=UTC).timestamp() * 1000)
    shown = [AdImpression(None, "a.com", "34", f"u{n % 3}", "2026-11", moment) for n in range(5)]
    count(database, "1", AdImpression, *shown)
    count(
        database, "2", AdClick, *(AdClick(None, "a.com", "34", "u1", moment + n) for n in range(3))
    )
    count(database, "3", PageView, PageView(None, "a.com", "/a", "2026-11-24", moment))
    months.aggregate_due(database, CLOSED)


def late_view(database: Database, name: str) -> None:
    count(database, name, PageView, PageView(None, "a.com", "/late", "2026-11-25"))


def make(now: datetime) -> list[str]:
    """Make what is due at this time, and return it."""
    made: list[str] = make_statements(str(now))
    while statement._begun:  # a slow machine needs more than one task to read a month
        made += make_statements(str(now))
    return made


def run(now: datetime) -> list[str]:
    """Do all that is due at this time; returns what was made."""
    made = make(now)
    for _ in range(3):
        post_statement(str(now))
        mail_statement(str(now))
    return made


def posted(receiver: Receiver) -> list[Any]:
    return [msgspec.json.decode(body)["statement"] for _, _, body in receiver.got]


def message_ids(mails: MailServer) -> list[str]:
    return [mail.message["Message-ID"] for mail in mails.got]


def failures(journal: RedisJournal) -> dict[str, int]:
    return counters.values(journal.redis, counters.STATEMENT_FAILURES)


@pytest.mark.usefixtures("november")
def test_a_closed_month_is_posted_and_mailed_once(
    receiver: Receiver, mails: MailServer, database: Database
) -> None:
    assert run(CLOSED - timedelta(seconds=1)) == []
    assert (receiver.got, mails.got) == ([], [])
    assert run(CLOSED) == ["statement 2026-11"]
    for hours in (0, 1, 30):
        assert run(CLOSED + timedelta(hours=hours)) == []
    ((path, headers, body),) = receiver.got
    assert path == "/statements"
    assert headers[webhook.SIGNATURE_HEADER] == webhook.signature(body, "secret")
    [sent] = posted(receiver)
    days = Selection(first=date(2026, 11, 1), last=date(2026, 11, 30))
    reported = ad_report(database, days, (), Rules()).totals
    for metric in ("impressions", "reach", "frequency", "hits", "clicks", "ctr"):
        assert sent["total"]["figures"][metric] == reported[metric]
    assert reported["impressions"] == 5
    [mail] = mails.got
    assert mail.recipients == list(TO)
    assert (mail.sender, mail.message["From"]) == ("us@example.com", "us@example.com")
    assert mail.message["Message-ID"] == f"<statement.{sent['id']}@eventstream>"
    assert "a.com" in mail.message.get_body(("plain",)).get_content()  # type: ignore[union-attr]


@pytest.mark.usefixtures("november")
def test_without_settings_nothing_is_made(configure: Configure, database: Database) -> None:
    configure(statement_webhook=None, statement_email=())
    assert run(CLOSED) == []
    assert database[Statement].count_documents({}) == 0


@pytest.mark.usefixtures("november")
def test_a_month_that_closed_before_the_setting_was_set_is_sent_only_if_it_is_the_last(
    database: Database, receiver: Receiver
) -> None:
    september = AdImpression(None, "a.com", "34", "u1", "2026-09")
    count(database, "s", AdImpression, september)
    months.aggregate_due(database, CLOSED + timedelta(days=20))
    assert run(CLOSED + timedelta(days=20)) == ["statement 2026-11"]
    assert [sent["month"] for sent in posted(receiver)] == ["2026-11"]


@pytest.mark.usefixtures("configure")
def test_a_month_whose_events_come_just_after_the_start_is_sent_soon(database: Database) -> None:
    assert run(CLOSED) == []
    count(database, "1", PageView, PageView(None, "a.com", "/a", "2026-11-24"))
    months.aggregate_due(database, CLOSED)
    assert run(CLOSED + READ_EMPTY_AGAIN) == ["statement 2026-11"]


@pytest.mark.usefixtures("november")
def test_a_month_is_not_made_before_it_is_aggregated(database: Database) -> None:
    count(database, "late", AdImpression, AdImpression(None, "b.com", "34", "u1", "2026-11"))
    assert run(CLOSED) == []
    months.aggregate_due(database, CLOSED)
    assert run(CLOSED) == ["statement 2026-11"]


@pytest.mark.usefixtures("november")
def test_the_tasks_are_sent_for_what_is_due(journal: RedisJournal, configure: Configure) -> None:
    configure(statement_email=())
    make(CLOSED)
    waiting: Any = journal.redis.lrange("maintenance", 0, -1)
    tasks = [msgspec.json.decode(message)["headers"]["task"] for message in waiting]
    assert tasks == ["tasks.statement_webhook"]
    assert {post_statement.name, mail_statement.name} == {
        "tasks.statement_webhook",
        "tasks.statement_mail",
    }


@pytest.mark.usefixtures("november")
def test_late_events_lead_to_one_correction_a_day_that_refers_to_the_first(
    database: Database, receiver: Receiver, mails: MailServer
) -> None:
    run(CLOSED)
    late_view(database, "l1")
    assert run(CLOSED + timedelta(hours=23)) == []
    late_view(database, "l2")
    first_day = CLOSED + READ_AGAIN
    assert run(first_day) == ["statement 2026-11 correction 1"]
    late_view(database, "l3")
    assert run(first_day + timedelta(hours=23)) == []
    assert run(first_day + READ_AGAIN) == ["statement 2026-11 correction 2"]
    assert run(first_day + 2 * READ_AGAIN) == []
    sent = posted(receiver)
    assert [one["total"]["figures"]["views"] for one in sent] == [1, 3, 4]
    assert [one["corrects"] for one in sent] == [None, sent[0]["id"], sent[0]["id"]]
    ids = message_ids(mails)
    assert len(set(ids)) == 3
    assert [mail.message["In-Reply-To"] for mail in mails.got] == [None, ids[0], ids[0]]
    assert [mail.message["References"] for mail in mails.got] == [None, ids[0], ids[0]]
    assert mails.got[2].message["Subject"] == "eventstream: statement 2026-11 correction 2"


@pytest.mark.usefixtures("november")
def test_a_mail_server_that_fails_does_not_repeat_the_webhook(
    receiver: Receiver, mails: MailServer, journal: RedisJournal, caplog: pytest.LogCaptureFixture
) -> None:
    mails.answer = "451 hunter2"
    now = CLOSED
    for number in range(1, 5):
        run(now)
        assert failures(journal) == {"webhook": 0, "mail": number}
        now += LONGEST_PAUSE
    assert "statement 2026-11 is not delivered yet: 127.0.0.1 answered 451" in caplog.text
    assert "hunter2" not in caplog.text
    assert mails.got == []
    mails.answer = "250 OK"
    run(now)
    run(now + LONGEST_PAUSE)
    assert (len(receiver.got), len(mails.got)) == (1, 1)


@pytest.mark.usefixtures("november")
@pytest.mark.parametrize("status", [500, 429, 404, 302])
def test_a_webhook_that_fails_does_not_repeat_the_mail(
    receiver: Receiver, mails: MailServer, journal: RedisJournal, status: int
) -> None:
    receiver.status = status
    run(CLOSED)
    run(CLOSED + LEASE - timedelta(seconds=1))
    assert len(receiver.got) == 1, "it is tried again later"
    run(CLOSED + LEASE)
    receiver.status = 204
    run(CLOSED + LONGEST_PAUSE)
    run(CLOSED + 2 * LONGEST_PAUSE)
    assert (len(receiver.got), len(mails.got)) == (3, 1)
    assert len({sent["id"] for sent in posted(receiver)}) == 1
    assert len({body for _, _, body in receiver.got}) == 1
    assert failures(journal) == {"webhook": 2, "mail": 0}


@pytest.mark.usefixtures("november")
def test_who_is_refused_is_tried_again_without_the_others(
    mails: MailServer, journal: RedisJournal, caplog: pytest.LogCaptureFixture
) -> None:
    mails.refused = {TO[0]: "450 later"}
    run(CLOSED)
    assert "127.0.0.1 refused 1 of 2 recipients" in caplog.text
    run(CLOSED + LONGEST_PAUSE)
    assert failures(journal)["mail"] == 2
    mails.refused = {}
    run(CLOSED + 2 * LONGEST_PAUSE)
    run(CLOSED + 3 * LONGEST_PAUSE)
    assert [mail.recipients for mail in mails.got] == [[TO[1]], [TO[0]]]
    assert len(set(message_ids(mails))) == 1


@pytest.mark.usefixtures("november")
def test_an_address_that_is_corrected_meanwhile_gets_the_mail(
    mails: MailServer, configure: Configure
) -> None:
    mails.refused = {TO[0]: "550 no such user"}
    run(CLOSED)
    configure(statement_email=("c@example.com", TO[1]))
    run(CLOSED + LONGEST_PAUSE)
    assert [mail.recipients for mail in mails.got] == [[TO[1]], ["c@example.com"]]


@pytest.mark.usefixtures("november")
def test_it_is_given_up_after_a_week_with_a_log_line_and_a_metric(
    mails: MailServer, journal: RedisJournal, caplog: pytest.LogCaptureFixture
) -> None:
    mails.answer = "451 later"
    run(CLOSED)
    run(CLOSED + GIVE_UP)
    assert counters.values(journal.redis, counters.STATEMENTS_GIVEN_UP)["mail"] == 0
    for seconds in (1, 2):
        run(CLOSED + GIVE_UP + timedelta(seconds=seconds))
    given_up = counters.values(journal.redis, counters.STATEMENTS_GIVEN_UP)
    assert given_up == {"webhook": 0, "mail": 1}
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in said] == [
        "statement 2026-11 is given up, as it can't be delivered: mail"
    ]
    mails.answer = "250 OK"
    run(CLOSED + 2 * GIVE_UP)
    assert mails.got == []


@pytest.mark.usefixtures("november")
def test_a_mail_server_that_dies_after_its_answer_has_the_mail_once(mails: MailServer) -> None:
    mails.dies = "after"
    run(CLOSED)
    run(CLOSED + LONGEST_PAUSE)
    assert len(mails.got) == 1


@pytest.mark.usefixtures("november")
def test_a_mail_server_that_dies_before_its_answer_gets_the_mail_again_under_the_same_id(
    mails: MailServer,
) -> None:
    mails.dies = "before"
    run(CLOSED)
    mails.dies = ""
    run(CLOSED + LONGEST_PAUSE)
    run(CLOSED + 2 * LONGEST_PAUSE)
    assert len(mails.got) == 2
    assert len(set(message_ids(mails))) == 1


@pytest.mark.usefixtures("november")
@pytest.mark.parametrize("dies_after", [True, False])
def test_a_receiver_that_dies_gets_it_again_only_if_it_has_not_answered(
    configure: Configure, receiver: Receiver, mails: MailServer, dies_after: bool
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" if dies_after else b""
    with abrupt_receiver(answer) as (url, bodies):
        configure(statement_webhook=url)
        run(CLOSED)
    configure()
    run(CLOSED + LONGEST_PAUSE)
    assert len(bodies) == 1
    assert [body for _, _, body in receiver.got] == bodies * (not dies_after)
    assert len(mails.got) == 1


@pytest.mark.usefixtures("november")
@pytest.mark.parametrize("reading", [True, False])
def test_several_workers_at_once_send_it_once(
    receiver: Receiver, mails: MailServer, reading: bool
) -> None:
    if not reading:
        make(CLOSED)
    with ThreadPoolExecutor(6) as pool:
        tasks = [make_statements, post_statement, mail_statement] * 4
        for done in [pool.submit(task, str(CLOSED)) for task in tasks]:
            done.result()
    run(CLOSED)
    assert (len(receiver.got), len(mails.got)) == (1, 1)


# What a killed worker leaves behind.


@pytest.mark.usefixtures("november")
@pytest.mark.parametrize(
    ("when", "call", "times"),
    [
        ("before", "keep", (1, 1)),
        ("after", "keep", (1, 1)),
        ("before", "claim_delivery", (1, 1)),
        ("after", "claim_delivery", (1, 1)),
        ("before", "note", (2, 1)),
        ("after", "note", (1, 1)),
    ],
)
def test_a_killed_worker_loses_nothing_and_repeats_only_what_it_could_not_note(
    settings: Settings,
    receiver: Receiver,
    mails: MailServer,
    when: str,
    call: str,
    times: tuple[int, int],
) -> None:
    killed(settings, receiver, mails, when, call, CLOSED)
    for _ in range(2):
        run(CLOSED + LEASE)
    run(CLOSED + LONGEST_PAUSE)
    assert (len(receiver.got), len(mails.got)) == times
    assert len({sent["id"] for sent in posted(receiver)}) == 1
    assert len({body for _, _, body in receiver.got}) == 1


@pytest.mark.usefixtures("november")
def test_a_worker_killed_between_the_mail_servers_answer_and_the_note_repeats_the_same_mail(
    settings: Settings, receiver: Receiver, mails: MailServer
) -> None:
    make(CLOSED)
    post_statement(str(CLOSED))
    killed(settings, receiver, mails, "before", "note", CLOSED)
    assert len(mails.got) == 1
    run(CLOSED + LEASE)
    run(CLOSED + LONGEST_PAUSE)
    assert (len(receiver.got), len(mails.got)) == (1, 2)
    one, other = (mail.message for mail in mails.got)
    assert [one[name] for name in ("Message-ID", "Date", "Subject")] == [
        other[name] for name in ("Message-ID", "Date", "Subject")
    ]


def killed(
    settings: Settings,
    receiver: Receiver,
    mails: MailServer,
    when: str,
    call: str,
    now: datetime,
) -> None:
    """Run the tasks in a process that kills itself at this call."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.dying_statement", when, call, str(now)],
        env=os.environ | environment(settings, receiver, mails),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def environment(settings: Settings, receiver: Receiver, mails: MailServer) -> dict[str, str]:
    return {
        "REDIS_URL": settings.redis_url,
        "MONGODB_URL": settings.mongodb_url,
        "STATEMENT_WEBHOOK": f"{receiver.url}/statements",
        "SPIKE_WEBHOOK_PRIVATE": "true",
        "STATEMENT_EMAIL": ",".join(TO),
        "SMTP_URL": f"smtp://127.0.0.1:{mails.port}?from=us@example.com",
    }


# Reading takes no longer than other tasks can wait.


@pytest.mark.usefixtures("november")
def test_reading_that_takes_too_long_goes_on_with_the_next_task(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setattr(statement, "READ_SECONDS", 0)
    tasks = 0
    while not make_statements(str(CLOSED)):
        tasks += 1
        assert tasks < 100
    assert tasks > 3
    run(CLOSED)
    assert len(receiver.got) == 1


@pytest.mark.usefixtures("november")
def test_reading_that_another_process_took_over_is_started_again(
    monkeypatch: pytest.MonkeyPatch, database: Database, receiver: Receiver
) -> None:
    with monkeypatch.context() as busy:
        busy.setattr(statement, "READ_SECONDS", 0)
        for _ in range(4):
            assert make_statements(str(CLOSED)) == []
    assert statement._begun
    other = {"$set": {"read_by": "other", "read_until": CLOSED + LEASE}}
    database[Statement].update_one({"_id": "2026-11 0"}, other)
    assert make_statements(str(CLOSED)) == []
    assert not statement._begun
    late_view(database, "l")
    run(CLOSED + LEASE)
    [sent] = posted(receiver)
    assert sent["total"]["figures"]["views"] == 2


@pytest.mark.usefixtures("november")
def test_a_month_that_the_database_is_too_slow_for_is_read_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as slow:
        slow.setattr("app.store.ad_reports.REPORT_SECONDS", 0.000_001)
        assert run(CLOSED) == []
    assert "the statement of 2026-11 can't be made yet" in caplog.text
    assert run(CLOSED + statement.TOO_SLOW - timedelta(seconds=1)) == []
    assert run(CLOSED + statement.TOO_SLOW) == ["statement 2026-11"]


@pytest.mark.usefixtures("november")
def test_nothing_is_made_or_sent_while_this_machines_clock_is_ahead(
    set_clock: SetClock, receiver: Receiver, mails: MailServer
) -> None:
    run(CLOSED - timedelta(days=1))
    set_clock(timedelta(days=400))
    assert make_statements() == []
    make(CLOSED)
    post_statement()
    mail_statement()
    assert (receiver.got, mails.got) == ([], [])


# With a worker.


@pytest.mark.proof
def test_a_worker_delivers_whatever_holds_up_the_mail(
    database: Database,
    receiver: Receiver,
    settings: Settings,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    journal: RedisJournal,
) -> None:
    now = datetime.now(UTC)
    if (now - timedelta(hours=1)).month != now.month:
        pytest.skip("the last month is not closed yet")
    month = month_before(f"{now:%Y-%m}")
    count(database, "1", AdImpression, AdImpression(None, "a.com", "34", "u1", month))
    months.aggregate_due(database, now)
    with ExitStack() as stack:
        port = stack.enter_context(dripping_server())
        monkeypatch.setenv("STATEMENT_WEBHOOK", receiver.url)
        monkeypatch.setenv("SPIKE_WEBHOOK_PRIVATE", "true")
        monkeypatch.setenv("STATEMENT_EMAIL", "a@example.com")
        monkeypatch.setenv("SMTP_URL", f"smtp://user:hunter2@127.0.0.1:{port}")
        stack.enter_context(start_worker())
        celery.send_task(make_statements.name)
        wait_until(lambda: len(receiver.got) == 1)
        # The soft limit ends what the server holds up.
        wait_until(lambda: failures(journal)["mail"] == 1, statement.MAIL_LIMIT_SECONDS + 30)
    [sent] = posted(receiver)
    assert sent["month"] == month
    assert sent["total"]["figures"]["impressions"] == 1


def test_the_limits_end_a_delivery_before_the_lease() -> None:
    limits = statement.WEBHOOK_LIMIT_SECONDS, statement.MAIL_LIMIT_SECONDS
    assert max(limits) < task_time_limit
    assert timedelta(seconds=task_time_limit) + timedelta(minutes=2) <= LEASE
    assert post_statement.soft_time_limit == limits[0]
    assert mail_statement.soft_time_limit == limits[1]


@pytest.mark.usefixtures("november")
def test_no_log_shows_a_password_or_the_webhooks_address(
    configure: Configure, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("DEBUG")
    with mail_server(login=True) as server:
        url = f"smtp://{USER.replace('@', '%40')}:hunter3@127.0.0.1:{server.port}"
        wrong = read({"SMTP_URL": url}).smtp_url
        configure(smtp_url=wrong, statement_webhook=f"{receiver.url}/{PASSWORD[:7]}")
        receiver.status = 500
        with caplog.at_level(logging.DEBUG):
            run(CLOSED)
        assert server.logins
    assert "answered 535" in caplog.text
    said = [record.getMessage() for record in caplog.records if record.name != "mail.log"]
    assert not [line for line in said if "hunter" in line]


def test_beat_looks_for_statements_every_few_seconds() -> None:
    entry = celeryconfig.beat_schedule["statements"]
    assert entry["task"] == make_statements.name
    assert timedelta(seconds=entry["schedule"]) < LEASE / 2

import csv
import hmac
import io
import json
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import msgspec
import pytest
from click.testing import CliRunner

from app.cli.main import main
from app.domain import share_links
from app.journal.batches import Batch
from app.journal.redis_journal import RedisJournal
from app.redis.connection import connect
from app.settings import ADDRESSES_FILE, settings
from app.store.ad_reports import METRICS
from tests.support.collector import BIN, Stack
from tests.support.receiver import Receiver
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def counted(stack: Stack) -> Stack:
    """The collector, with a view, an impression and a click counted for main.example."""
    where = {"Url": "main.example/[red]a", "Meta": {"UserId": "u", "AdId": "[bold]"}}
    events = [where | {"Type": kind} for kind in ("PageView", "AdImpression", "AdClick")]
    assert httpx.post(f"{stack.url}/events", json=events).json()["accepted"] == 3
    robot = {"User-Agent": "Googlebot/2.1"}
    assert httpx.post(f"{stack.url}/events", json=events[:2], headers=robot).status_code == 202
    stack.run("eventstream", "drain")
    return stack


@pytest.mark.parametrize(
    ("arguments", "header", "row"),
    [
        (["page-views"], ["website", "page", "views"], ["main.example", "/[red]a", "1"]),
        (
            ["clicks", "--ad-id", "[bold]"],
            ["website", "ad_id", "hits", "clicks"],
            ["main.example", "[bold]", "1", "0"],
        ),
        (
            ["filtered", "--limit", "1"],
            ["website", "type", "reason", "events"],
            ["main.example", "AdImpression", "robot", "1"],
        ),
        (
            ["differences", "--ad-id", "[bold]"],
            ["website", "ad_id", "type", "reason", "events"],
            ["main.example", "[bold]", "AdImpression", "robot", "1"],
        ),
    ],
)
def test_a_report_is_a_table_or_csv(
    counted: Stack, arguments: list[str], header: list[str], row: list[str]
) -> None:
    command = ["eventstream", "report", *arguments, "--website", "main.example"]
    table = counted.run(*command).stdout
    assert all(text in table for text in (*header, *row)), table
    rows = list(csv.reader(io.StringIO(counted.run(*command, "--csv").stdout)))
    assert rows == [header, row]


def test_impressions_are_shown_by_month(counted: Stack) -> None:
    command = ["eventstream", "report", "impressions", "--website", "main.example", "--csv"]
    (header, row) = csv.reader(io.StringIO(counted.run(*command).stdout))
    assert header == ["month", "website", "impressions", "visitors", "closed"]
    assert row[1:] == ["main.example", "1", "1", "false"]
    assert len(counted.run(*command, "--month", "2001-01").stdout.splitlines()) == 1


def test_the_ad_reports_are_tables_with_totals_csv_or_json(counted: Stack) -> None:
    command = ["eventstream", "report", "ads", "--website", "WWW.main.example"]
    table = counted.run(*command).stdout
    assert all(text in table for text in ("[bold]", "frequency", "1.0", "total")), table
    header, row = csv.reader(io.StringIO(counted.run(*command, "--csv").stdout))
    assert dict(zip(header, row, strict=True))["viewable_rate"] == "1.0"
    found = json.loads(counted.run(*command, "--json", "--by", "website,day").stdout)
    assert found["items"][0]["website"] == "main.example"
    assert found["totals"]["impressions"] == 1
    hours = json.loads(
        counted.run("eventstream", "report", "traffic", "--json", "--by", "hour").stdout
    )
    assert sum(row["impressions"] for row in hours["items"]) >= 1
    frequency = counted.run("eventstream", "report", "frequency", "--csv").stdout.splitlines()
    assert frequency[0] == "impressions,users"
    assert len(frequency) == 9


def test_an_option_that_is_given_twice_is_refused(counted: Stack) -> None:
    for arguments in (["ads", "--ad-id", "1", "--ad-id=2"], ["page-views", *["--limit", "1"] * 2]):
        refused = counted.run("eventstream", "report", *arguments, check=False)
        assert refused.returncode == 2
        assert "may be given only once." in refused.stderr


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_website_that_nothing_was_counted_for_is_said_to_be_unknown(
    counted: Stack, elsewhere: bool
) -> None:
    of = ["--url", counted.url] if elsewhere else []
    for report in ("ads", "page-views", "traffic"):
        command = ["eventstream", "report", report, *of, "--website"]
        assert "Nothing was ever counted" in counted.run(*command, "nosuch.example").stderr
        assert "Nothing was ever counted" not in counted.run(*command, "main.example").stderr


def test_compared_days_are_printed_side_by_side(counted: Stack) -> None:
    command = ["eventstream", "report", "ads", "--compare", "previous", "--from", "2001-01-01"]
    header, *_ = csv.reader(io.StringIO(counted.run(*command, "--csv").stdout))
    assert header[-9:] == [f"previous_{name}" for name in METRICS]
    for arguments, said in (
        (["--compare", "year"], "--from: It is required by --compare."),
        (["--compare", "year", "--from", "0001-01-01"], "--from: There are no such earlier days."),
        (["--from", "2026-11-02", "--to", "2026-11-01"], "--to: It comes before --from."),
        (["--campaign", "\udcff"], "--campaign: It is not UTF-8."),
    ):
        refused = counted.run("eventstream", "report", "ads", *arguments, check=False)
        assert refused.returncode == 1
        assert said in refused.stderr


def test_a_report_from_a_remote_collector_is_the_same(counted: Stack) -> None:
    for arguments in (
        ["ads", "--by", "ad,day", "--ad-id", "[bold]"],
        ["page-views", "--limit", "1"],
        ["traffic", "--by", "day", "--website", "main.example"],
        ["frequency"],
        ["ads", "--ad-id", "nothing has this id"],
    ):
        command = ["eventstream", "report", *arguments, "--json"]
        here = json.loads(counted.run(*command).stdout)
        assert here["items"] or "nothing has this id" in arguments
        assert json.loads(counted.run(*command, "--url", counted.url).stdout) == here
    refused = counted.run(
        *("eventstream", "report", "ads", "--url", f"{counted.url}/nowhere"), check=False
    )
    assert refused.returncode == 1
    assert "collector unavailable: status 404" in refused.stderr
    away = counted.run(
        *("eventstream", "report", "ads", "--url", "http://127.0.0.1:1"), check=False
    )
    assert away.returncode == 1
    assert away.stderr.startswith("Error: collector unavailable: ConnectError")


@pytest.mark.parametrize(
    "answer",
    [
        b"no JSON",
        b'{"items":{},"next_cursor":null}',
        b'{"items":[7],"next_cursor":null}',
        b'{"items":[],"next_cursor":null,"notes":["x"]}',
    ],
)
def test_an_answer_that_is_not_a_report_is_explained_in_a_sentence(
    receiver: Receiver, answer: bytes
) -> None:
    receiver.body = answer
    done = CliRunner().invoke(main, ["report", "ads", "--url", receiver.url])
    assert done.exit_code == 1
    assert done.output.startswith("Error: collector unavailable: ")


def test_a_remote_collector_cannot_control_the_terminal_or_make_paging_endless(
    receiver: Receiver,
) -> None:
    receiver.body = msgspec.json.encode(
        {
            "items": [{"[red]x[/y]": "\x1b[31m", "b": 1}, {"c": None}],
            "next_cursor": "same",
            "notes": {"a": "\x1b[31mnote"},
        }
    )
    done = CliRunner().invoke(main, ["report", "ads", "--url", receiver.url])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "[red]x[/y]" in done.output
    assert len(receiver.got) == 2


def test_ads_are_imported_and_listed(counted: Stack, tmp_path: Path) -> None:
    file = tmp_path / "ads.csv"
    file.write_text("ad_id,name,campaign\n[bold],Autumn,c1\n34,,\n")
    assert counted.run("eventstream", "ads", "import", str(file)).stdout == "entered 2 ads\n"
    listed = counted.run("eventstream", "ads", "list", "--campaign", "c1").stdout
    assert "Autumn" in listed
    assert "34" not in listed
    report = counted.run("eventstream", "report", "ads", "--by", "campaign", "--json").stdout
    assert json.loads(report)["items"][0]["campaign"] == "c1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\nAutumn\n", "columns: They must be ad_id"),
        ("ad_id,nam\n1,2\n", "columns: They must be ad_id"),
        ("ad_id,name\n1,x\n,y\n", "line 3: ad_id must have"),
        ("ad_id,name\n1,Autumn, large\n", "line 2: It has more or fewer cells than line 1."),
        ("ad_id,name\n1\n", "line 2: It has more or fewer cells than line 1."),
        ("ad_id,ad_id\n1,2\n", "columns: They must be ad_id"),
        ("ad_id\n1\n2\n1\n", "line 4: An earlier line has the same ad."),
        ("ad_id,name\n1," + "x" * 201 + "\n", "line 2: name is over 200 characters."),
    ],
)
def test_an_invalid_file_of_ads_imports_nothing(
    stack: Stack, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "ads.csv"
    file.write_text(text)
    refused = stack.run("eventstream", "ads", "import", str(file), check=False)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Autumn" not in stack.run("eventstream", "ads", "list", "--campaign", "x").stdout


def test_page_views_can_be_filtered_by_days(counted: Stack) -> None:
    command = ["eventstream", "report", "page-views", "--website", "main.example", "--csv"]
    assert len(counted.run(*command, "--from", "2001-01-01").stdout.splitlines()) == 2
    assert len(counted.run(*command, "--to", "2001-01-01").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["aggregate", "2026-13"],
        ["aggregate", "november"],
        ["report", "page-views", "--from", "yesterday"],
        ["report", "impressions", "--month", "2026"],
        ["report", "clicks", "--website", "ftp://a.com"],
        ["report", "ads", "--by", "day,week"],
        ["report", "ads", "--by", "ad,ad"],
        ["report", "ads", "--by", "ad,website,campaign,day"],
    ],
)
def test_a_wrong_argument_is_explained_in_a_sentence(stack: Stack, arguments: list[str]) -> None:
    done = stack.run("eventstream", *arguments, check=False)
    assert done.returncode == 2
    assert f"'{arguments[-1]}' is not " in done.stderr


def test_aggregate_prints_how_many_websites_the_month_has(counted: Stack) -> None:
    assert counted.run("eventstream", "aggregate", "2001-01").stdout == "2001-01: 0 websites\n"


def test_drain_exits_with_1_if_not_everything_is_counted_in_time(stack: Stack) -> None:
    addresses = json.loads((Path(stack.environment["DATA_DIR"]) / ADDRESSES_FILE).read_text())
    # In another database of the same Redis, from which no worker takes batches.
    url = addresses["REDIS_URL"].replace("/0", "/5")
    journal = RedisJournal(connect(url))
    journal.write([Batch("b1", "page_view", b"[]")])
    drained = stack.run("eventstream", "drain", "--timeout", "0.3", check=False, REDIS_URL=url)
    assert drained.returncode == 1
    assert "1 batches are not counted yet." in drained.stderr
    journal.remove([Batch("b1", "page_view", b"[]")])
    assert stack.run("eventstream", "drain", REDIS_URL=url).returncode == 0


def test_dead_letters_are_listed_replayed_and_dropped(stack: Stack) -> None:
    bad = {"Type": "AdClick", "Url": "dead.example"}
    assert httpx.post(f"{stack.url}/events", json=bad).status_code == 400
    listed = stack.run("eventstream", "dead-letters", "list", COLUMNS="200").stdout
    assert "dead.example" in listed
    assert "Missing data for required field." in listed
    tried = stack.run("eventstream", "dead-letters", "replay", "--all", check=False)
    assert (tried.returncode, tried.stdout) == (1, "accepted 0, remaining 1\n")
    letter_id = httpx.get(f"{stack.url}/dead-letters").json()["items"][0]["id"]
    tried = stack.run("eventstream", "dead-letters", "replay", letter_id, check=False)
    assert (tried.returncode, tried.stdout) == (1, "accepted 0, remaining 1\n")
    dropped = stack.run("eventstream", "dead-letters", "drop", letter_id)
    assert dropped.stdout == "dropped 1\n"
    for command in ("replay", "drop"):
        nothing = stack.run("eventstream", "dead-letters", command, "1-1", check=False)
        assert (nothing.returncode, nothing.stderr) == (1, "Error: There is no dead letter 1-1.\n")
    assert httpx.post(f"{stack.url}/events", json=bad).status_code == 400
    for kind, number in (("batches", 0), ("events", 1)):
        dropped = stack.run("eventstream", "dead-letters", "drop", "--all", "--kind", kind)
        assert dropped.stdout == f"dropped {number}\n"


def test_dead_letters_are_counted_by_reason_and_chosen_by_reason_or_text(stack: Stack) -> None:
    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return stack.run("eventstream", "dead-letters", *arguments, check=check)

    run("drop", "--all")
    pad = "x" * 3_000
    for n in range(3):
        bad = {"type": "PageView", "Url": "whole.example", "N": f"number{n}", "Pad": pad}
        assert httpx.post(f"{stack.url}/events", json=bad).status_code == 400
    assert httpx.post(f"{stack.url}/events", json={"Type": "click"}).status_code == 400
    no_type = "Type: Missing data for required field."
    listed = run("list", "--limit", "2").stdout
    shown, hint = listed.splitlines(), "Did you mean Type instead of type?"
    wrong_type = "Type: Must be one of: PageView, AdImpression, AdClick. "
    wrong_type += "Url: Missing data for required field."
    assert shown[-3:] == [f"     3  {no_type}", f"     1  {wrong_type}", "     4  dead letters"]
    assert [line for line in shown if "Did you mean" in line] == [
        "hint      Did you mean AdClick?",
        f"hint      {hint}",
    ]
    assert sum(line.startswith("id  ") for line in shown) == 2
    assert any(line.startswith("event") and pad in line and "number2" in line for line in shown)
    found = run("list", "--reason", no_type, "--q", "NUMBER1").stdout
    assert "number1" in found
    assert "number2" not in found
    assert found.splitlines()[-2:] == [f"     1  {no_type}", "     1  dead letters"]
    tried = run("replay", "--reason", no_type, "--q", "number", check=False)
    assert (tried.returncode, tried.stdout) == (1, "accepted 0, remaining 3\n")
    assert run("drop", "--q", "number1").stdout == "dropped 1\n"
    assert run("drop", "--reason", no_type).stdout == "dropped 2\n"
    assert run("replay", "--q", "nowhere").stdout == "accepted 0, remaining 0\n"
    assert run("list").stdout.splitlines()[-1] == "     1  dead letters"
    for command in ("replay", "drop"):
        for wrong in ([], ["--q", ""], ["--all", "--q", "a"], ["1-1", "--reason", "a"]):
            refused = run(command, *wrong, check=False)
            assert refused.returncode == 2
            assert "Name dead letters, or give --all, or --reason or --q." in refused.stderr
        assert "--q" in run(command, "--reason", "<other>", check=False).stderr
    assert run("drop", "--all").stdout == "dropped 1\n"


STEERING = "\x1b]0;a\x07[red]\x9b31m\x7f\u202e\u2066\u2028"


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["report", "clicks"], "steered.example"),
        (["report", "clicks", "--csv"], "[red]"),
        (["dead-letters", "list"], '{"Type":'),
    ],
)
def test_no_event_can_control_the_terminal_of_whoever_views_it(
    stack: Stack, command: list[str], found: str
) -> None:
    good, bad = (
        {"Type": kind, "Url": "steered.example", "Meta": {"UserId": "u", "AdId": STEERING}}
        for kind in ("AdClick", STEERING)
    )
    assert httpx.post(f"{stack.url}/events", json=[good, bad]).status_code == 202
    stack.run("eventstream", "drain")
    shown = on_a_terminal(stack, "eventstream", *command)
    assert [line for line in re.split(r"\r*\n", shown) if not line.isprintable()] == []
    assert found in shown


def test_csv_for_a_program_holds_names_unchanged(stack: Stack) -> None:
    ad = "\x1b[31mred"
    click = {"Type": "AdClick", "Url": "file.example", "Meta": {"UserId": "u", "AdId": ad}}
    assert httpx.post(f"{stack.url}/events", json=click).status_code == 202
    stack.run("eventstream", "drain")
    command = ["eventstream", "report", "clicks", "--website", "file.example", "--csv"]
    (_, row) = csv.reader(io.StringIO(stack.run(*command).stdout))
    assert row == ["file.example", ad, "1", "0"]


def on_a_terminal(stack: Stack, *command: str) -> str:
    """The output of a command when it writes to a terminal."""
    ours, its = pty.openpty()
    done = subprocess.Popen(
        command,
        env=stack.environment | {"TERM": "dumb", "COLUMNS": "300"},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal, suppress(OSError):  # reading ends with EIO
        while more := terminal.read(65_536):
            shown += more
    done.wait()
    return shown.decode()


def test_an_unavailable_server_is_explained_in_a_sentence(stack: Stack) -> None:
    away = stack.run("eventstream", "drain", check=False, REDIS_URL="redis://127.0.0.1:1/0")
    assert away.returncode == 1
    assert away.stderr.startswith("Error: broker unavailable")
    assert len(away.stderr.splitlines()) == 1


def test_a_link_is_signed_for_its_target_page_and_ad(stack: Stack) -> None:
    command = ["eventstream", "sign-click", "https://shop.example/a?b=c", "--page", "a.com/x"]
    done = stack.run(*command, "--ad", "34", CLICK_SECRET="secret", WRITE_KEYS="k1,k2")
    link = urlsplit(done.stdout.strip())
    assert f"{link.scheme}://{link.netloc}{link.path}" == f"{stack.url}/click"
    to = "https://shop.example/a?b=c"
    sig = hmac.new(b"secret", f"{to}\na.com/x\n34".encode(), "sha256").hexdigest()
    signed = {"to": to, "url": "a.com/x", "ad": "34", "sig": sig, "key": "k1"}
    assert dict(parse_qsl(link.query)) == signed
    short = stack.run(*command[:3], "--url", "https://c.example/", CLICK_SECRET="secret").stdout
    assert short.startswith(
        "https://c.example/click?to=https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc&sig="
    )


def test_a_link_that_cannot_be_signed_is_explained_in_a_sentence(stack: Stack) -> None:
    bad = stack.run(
        "eventstream", "sign-click", "javascript:alert(1)", check=False, CLICK_SECRET="secret"
    )
    assert (bad.returncode, "Not an http or https URL." in bad.stderr) == (2, True)
    unset = stack.run("eventstream", "sign-click", "https://a.com", check=False)
    assert (unset.returncode, unset.stderr) == (1, "Error: CLICK_SECRET is not set.\n")


def test_live_traffic_is_posted_at_the_given_rate_until_ctrl_c(stack: Stack) -> None:
    before = views_today(stack)
    command = [str(BIN / "eventstream"), "simulate", "--live", "--rate", "100"]
    with subprocess.Popen(
        command, env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as simulating:
        started = time.monotonic()
        try:
            wait_until(lambda: views_today(stack) >= before + 100)
        finally:
            simulating.send_signal(signal.SIGINT)
        said, _ = simulating.communicate(timeout=20)
        took = time.monotonic() - started
    assert simulating.returncode == 0
    found = re.fullmatch(r"accepted (\d+), rejected 0\n", said)
    assert found
    assert 100 <= int(found[1]) <= 100 * (took + 1)


def views_today(stack: Stack) -> int:
    today = datetime.now(UTC).date()
    rows = stack.items(f"page-views/daily?from={today}&to={today}")
    return sum(int(row["views"]) for row in rows)  # type: ignore[call-overload]


def test_a_shared_link_opens_what_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a secret that signs links"
    monkeypatch.setenv("SHARE_SECRET", secret)
    settings.cache_clear()
    command = ["share", "--website", "WWW.Site1.com", "--campaign", "Größe", "--days", "2"]
    done = CliRunner().invoke(main, [*command, "--url", "https://count.example/"])
    settings.cache_clear()
    assert done.exit_code == 0
    url, _, text = done.output.strip().rpartition("/")
    assert url == "https://count.example/shared"
    share = share_links.read(text, secret)
    assert share[:3] == ("site1.com", "Größe", None)
    assert abs(share.until - time.time() - 2 * 24 * 3600) < 60


@pytest.mark.parametrize(
    ("options", "secret", "said"),
    [
        ([], "", "Error: SHARE_SECRET is not set."),
        (["--website", "a b"], "a secret that signs links", "is not a website"),
        (["--website", "a.com/page"], "a secret that signs links", "is not a website"),
        (["--campaign", ""], "a secret that signs links", "--campaign must have 1 to 200"),
        (["--advertiser", "x" * 201], "a secret that signs links", "--advertiser must have 1 to"),
        (["--advertiser", "\udcff"], "a secret that signs links", "not UTF-8"),
        (["--days", "0"], "a secret that signs links", "--days"),
    ],
)
def test_a_link_that_cannot_be_made_is_refused_in_a_sentence(
    options: list[str], secret: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARE_SECRET", secret)
    settings.cache_clear()
    done = CliRunner().invoke(main, ["share", *options])
    settings.cache_clear()
    assert done.exit_code != 0
    assert said in done.output
    assert "/shared/" not in done.output

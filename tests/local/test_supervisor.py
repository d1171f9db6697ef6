import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pymongo
import pytest
from pymongo.errors import PyMongoError

from app.local.processes import Pulse, Refuses, free_ports
from app.settings import ADDRESSES_FILE
from tests.support.collector import BIN, CLEAN, Stack, filled, is_alive, small_disk, start_stack
from tests.support.waiting import running, wait_until

VIEW = {"Type": "PageView", "Url": "up.example/a"}


def test_up_prints_every_address_and_then_ready(stack: Stack) -> None:
    dashboard, *addresses, ready = stack.output.read_text().splitlines()[:8]
    assert ready == "ready"
    assert dashboard.endswith(f" {stack.url}/")
    assert f"{stack.url}/events" in addresses[0]
    assert f"{stack.url}/reports/page-views" in addresses[1]
    assert stack.flower in addresses[2]
    assert re.search(r"redis://127\.0\.0\.1:\d+/0", addresses[3])
    assert re.search(r"mongodb://127\.0\.0\.1:\d+/eventstream", addresses[4])


def test_after_ready_it_says_what_to_do_next_and_that_works(stack: Stack) -> None:
    wait_until(lambda: len(stack.output.read_text().splitlines()) >= 10)
    post, see = stack.output.read_text().splitlines()[8:10]
    assert f"{stack.url}/" in see
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    posted = stack.run("bash", "-c", post.removeprefix("post an event: "))
    assert posted.stdout == '{"accepted":1,"rejected":[]}'


def test_an_event_posted_as_in_the_readme_is_in_the_report_within_two_seconds(stack: Stack) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    posted = stack.run(
        *("curl", "-sS", "-w", "%{http_code}"),
        *("-d", '{"Type":"PageView","Url":"site1.com/page1","Meta":{"UserId":"u1","AdId":"34"}}'),
        *("-H", "Content-Type: application/json", f"{stack.url}/events"),
    )
    assert posted.stdout == '{"accepted":1,"rejected":[]}202'
    row = {"website": "site1.com", "page": "/page1", "views": 1}
    wait_until(lambda: row in stack.items("page-views"), seconds=2)


@pytest.mark.parametrize(("hits", "clicks"), [(3, 1), (7, 2)])
def test_hits_of_one_user_on_one_ad_make_clicks(stack: Stack, hits: int, clicks: int) -> None:
    website = f"clicks{hits}.example"
    meta = {"UserId": website, "AdId": "34"}
    for _ in range(hits):
        event = {"Type": "AdClick", "Url": website, "Meta": meta}
        assert httpx.post(f"{stack.url}/events", json=event).status_code == 202
    stack.run("eventstream", "drain")
    assert stack.items(f"clicks?website={website}") == [
        {"website": website, "ad_id": "34", "hits": hits, "clicks": clicks}
    ]


def test_flower_shows_the_workers_and_the_four_queues(stack: Stack) -> None:
    queues = ["page_view", "ad_impression", "ad_click", "maintenance"]

    def shown(path: str, names: list[str]) -> bool:
        page = httpx.get(f"{stack.flower}{path}").text
        return all(name in page for name in names)

    wait_until(lambda: shown("/workers", [f"{queue}@" for queue in queues]))
    wait_until(lambda: shown("/broker", [f">{queue}<" for queue in queues]))


@pytest.mark.proof
def test_a_part_that_dies_is_started_again_and_nothing_is_lost(
    stack: Stack, tmp_path: Path
) -> None:
    parts = [
        ("gunicorn",),
        ("worker", "--queues page_view"),
        ("celery", "beat"),
        ("redis-server",),
        ("app.local.database",),
    ]
    events = tmp_path / "events.ndjson"
    accepted = 0
    for number, words in enumerate(parts):
        lines = [
            json.dumps(VIEW | {"Url": "killed.example/a", "EventId": f"killed-{number}-{n}"})
            for n in range(300)
        ]
        events.write_text("\n".join(lines))
        killed = stack.part(*words)
        sending = subprocess.Popen(
            [BIN / "eventstream", "send", "--batch", "10", events],
            env=stack.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda killed=killed: not is_alive(killed))  # type: ignore[misc]
        if sending.wait(60) != 0:  # the connection broke; events with ids can all be sent again
            stack.run("eventstream", "send", str(events))
        accepted += 300
    stack.run("eventstream", "drain", "--timeout", "60")
    assert stack.items("page-views?website=killed.example") == [
        {"website": "killed.example", "page": "/a", "views": accepted}
    ]
    assert stack.output.read_text().count("starting it again") == len(parts)


def processes_left_by_stop(stack: Stack, number: signal.Signals) -> list[str]:
    processes = stack.descendants()
    assert len(processes) >= 9
    stack.stop(number)
    assert stack.process.returncode == 0
    return [command for command, pid in processes.items() if is_alive(pid)]


@pytest.mark.proof
def test_ctrl_c_stops_everything_and_a_second_start_continues_where_it_stopped(
    tmp_path: Path,
) -> None:
    events = tmp_path / "events.ndjson"
    secret = tmp_path / "var" / "user-hash-secret"
    lines = [json.dumps(VIEW | {"EventId": str(number)}) for number in range(5_000)]
    events.write_text("\n".join(lines))
    with start_stack(tmp_path, ARCHIVE="1") as first:
        made = secret.read_text()
        assert secret.stat().st_mode & 0o777 == 0o600
        post_of_one_user(first)
        with subprocess.Popen(
            [BIN / "eventstream", "send", "--batch", "20", events],
            env=first.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as sending:
            wait_until(lambda: first.items("page-views"))
            assert processes_left_by_stop(first, signal.SIGINT) == []
            assert first.output.read_text().endswith("stop: Ctrl-C\n")
            sending.kill()
    with start_stack(tmp_path, ARCHIVE="1") as second:
        assert second.items("page-views")[0]["page"] == "/a"
        assert secret.read_text() == made, "it is created only once"
        post_of_one_user(second)
        second.run("eventstream", "send", str(events))
        second.run("eventstream", "drain")
        assert second.items("page-views") == [
            {"website": "up.example", "page": "/a", "views": 5_000}
        ]
        visitors = [row["visitors"] for row in second.items("impressions")]
        assert visitors == [1, 1], "it is the same user after both starts"
        assert processes_left_by_stop(second, signal.SIGTERM) == []
    for file in (tmp_path / "var").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            unpacked = gzip.decompress(content) if file.suffix == ".gz" else b""
            assert b"someone-in-person" not in content + unpacked, f"the user's id is in {file}"


def post_of_one_user(stack: Stack) -> None:
    meta = {"UserId": "someone-in-person", "AdId": "1"}
    for kind in ("AdImpression", "AdClick"):
        event = {"Type": kind, "Url": "a.example", "Meta": meta}
        assert httpx.post(f"{stack.url}/events", json=event).status_code == 202


@pytest.mark.proof
def test_parts_do_not_outlive_a_killed_up(tmp_path: Path) -> None:
    with start_stack(tmp_path) as stack:
        processes = stack.descendants()
        stack.process.kill()
        stack.process.wait()
        for pid in processes.values():
            wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]


@pytest.mark.parametrize("variable", ["PORT", "FLOWER_PORT"])
def test_a_port_that_is_taken_is_reported_in_a_sentence(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start_stack(tmp_path, **{variable: str(port)}) as stack:
            assert stack.process.wait() == 1
            said = stack.output.read_text()
    assert said.startswith(f"Error: Port {port} on 127.0.0.1 can't be used (Address already in use")
    assert variable in said
    assert len(said.splitlines()) == 1


def test_a_data_directory_in_use_is_reported_in_a_sentence(stack: Stack) -> None:
    second = stack.run("eventstream", "up", check=False)
    assert second.returncode == 1
    assert "Another eventstream is using" in second.stderr
    assert len(second.stderr.splitlines()) == 1


@pytest.mark.proof
def test_servers_named_in_the_environment_are_used_and_not_started(
    stack: Stack, tmp_path: Path
) -> None:
    addresses = json.loads((Path(stack.environment["DATA_DIR"]) / "addresses.json").read_text())
    mongodb = addresses["MONGODB_URL"].replace("eventstream", "other")
    redis = addresses["REDIS_URL"].replace("/0", "/1")
    with start_stack(tmp_path, REDIS_URL=redis, MONGODB_URL=mongodb) as other:
        assert not [
            command
            for command in other.descendants()
            if "redis-server" in command or "app.local.database" in command
        ]
        event = VIEW | {"Url": "given.example"}
        assert httpx.post(f"{other.url}/events", json=event).status_code == 202
        other.run("eventstream", "drain")
        assert other.items("page-views") == [{"website": "given.example", "page": "/", "views": 1}]
    assert stack.items("page-views?website=given.example") == []


def test_up_says_that_it_is_waiting_for_an_unavailable_server(tmp_path: Path) -> None:
    port, flower_port = map(str, free_ports(2))
    settings = {"DATA_DIR": str(tmp_path / "var"), "REDIS_URL": "redis://:secret@127.0.0.1:1/0"}
    settings |= {"PORT": port, "FLOWER_PORT": flower_port}
    with running(str(BIN / "eventstream"), "up", log=tmp_path / "up.log", **CLEAN, **settings):
        wait_until(lambda: "REDIS_URL" in (tmp_path / "up.log").read_text())
    said = (tmp_path / "up.log").read_text()
    assert "waiting for Redis of REDIS_URL, redis://" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            {"MONGODB_URL": "mongodb://u:secret@127.0.0.1:1"},
            "MONGODB_URL can't be used: it names no",
        ),
        ({"BROKER_URL": "rediss://127.0.0.1:1/0?ssl_ca_certs=/nonexistent.pem"}, "No such file"),
        (
            {"BROKER_URL": "rediss://:secret@127.0.0.1:1/0?ssl_cert_reqs=any"},
            "Requirements Flag: any",
        ),
    ],
)
def test_an_unusable_url_is_reported_before_waiting_for_anything(
    tmp_path: Path, url: dict[str, str], said: str
) -> None:
    away = {"REDIS_URL": "redis://127.0.0.1:1/0"} | url
    with start_stack(tmp_path, **away) as stack:
        assert stack.process.wait(30) == 1
        [sentence] = stack.output.read_text().splitlines()
    assert said in sentence
    assert next(iter(url)) in sentence
    assert "secret" not in sentence


def test_a_store_that_stays_silent_too_long_is_lost_and_then_gets_time_again() -> None:
    answers = {"now": True}
    pulse = Pulse(lambda: answers["now"], silence=70, errors=7)
    assert not pulse.is_lost(now=0)
    assert not pulse.is_lost(now=100)
    answers["now"] = False
    assert not pulse.is_lost(now=105)
    assert not pulse.is_lost(now=170)
    assert pulse.is_lost(now=175)
    assert not pulse.is_lost(now=180)
    assert not pulse.is_lost(now=250)
    assert pulse.is_lost(now=255)


def test_a_store_that_answers_only_errors_is_lost_sooner() -> None:
    refused: list[int] = []

    def answers() -> bool:
        if refused:
            raise Refuses
        return True

    pulse = Pulse(answers, silence=70, errors=7)
    assert not pulse.is_lost(now=0)
    refused.append(1)
    assert not pulse.is_lost(now=5)
    assert pulse.is_lost(now=10)
    refused.clear()
    assert not pulse.is_lost(now=15)
    assert not pulse.is_lost(now=20)


@pytest.mark.proof
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_after_a_full_disk_everything_accepted_is_counted_once(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", megabytes=120) as disk, start_stack(disk) as stack:
        assert stack.process.poll() is None, stack.output.read_text()
        ready = f"{stack.url}/ready"
        accepted = 0

        def post() -> int:
            nonlocal accepted
            answer = httpx.post(f"{stack.url}/events", json=[VIEW] * 100, timeout=10)
            accepted += answer.json().get("accepted", 0)
            return answer.status_code

        assert post() == 202
        stack.run("eventstream", "drain")
        url = json.loads((disk / "var" / ADDRESSES_FILE).read_text())["MONGODB_URL"]
        with pymongo.MongoClient[dict[str, object]](url, retryWrites=False) as client:
            client.other.things.insert_one({})
            with filled(disk):
                post()
                with pytest.raises(PyMongoError):
                    client.other.things.insert_many({"of": "x" * 60_000} for _ in range(1_000))
                wait_until(lambda: httpx.get(ready, timeout=10).json()["database"] == "away")
                post()
                wait_until(lambda: "database ended" in stack.output.read_text())
        wait_until(lambda: httpx.get(ready, timeout=10).status_code == 200, seconds=60)
        wait_until(lambda: post() == 202, seconds=30)
        stack.run("eventstream", "drain")
        [row] = stack.items("page-views?website=up.example")
        assert row["views"] == accepted


def test_help_names_every_command() -> None:
    shown = subprocess.run(
        [BIN / "eventstream", "--help"], env=CLEAN, capture_output=True, text=True, check=True
    ).stdout
    for command in (
        *("up", "send", "simulate", "report", "aggregate", "drain", "dead-letters"),
        *("forget", "rebuild", "migrate"),
    ):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)

import gzip
import json
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from app.domain.events import AdClick, AdImpression, PageView
from app.errors import Unavailable
from app.journal.redis_journal import RedisJournal
from app.outputs.archive import UNFINISHED, Archive, RewriteTurn, rewriting

VIEW = PageView("e1", "site1.com", "/a", "2026-11-24", 1_795_521_600_000)
LATER = timedelta(hours=1)


def click(user: str) -> AdClick:
    return AdClick(None, "site1.com", "34", user, 5)


@pytest.fixture(params=["file", "memory"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    """An archive in a folder, and one in a backend without files on disk."""
    yield Archive(f"{request.param}://{tmp_path}/archive")
    MemoryFileSystem.store.clear()


@pytest.fixture
def turn(journal: RedisJournal) -> Iterator[RewriteTurn]:
    with rewriting(journal.redis) as turn:
        yield turn


def everything(archive: Archive, queue: str) -> list[dict[str, object]]:
    return [dict(archive.read(name)) for name in archive.files(queue)]


def test_written_events_are_read_back_in_order_by_batch(archive: Archive) -> None:
    archive.write("page_view", {"b1": [VIEW], "b2": [VIEW, VIEW]})
    archive.write("page_view", {"b3": [VIEW]})
    archive.write("ad_click", {"b4": [click("u1")]})
    assert everything(archive, "page_view") == [{"b1": [VIEW], "b2": [VIEW, VIEW]}, {"b3": [VIEW]}]
    assert everything(archive, "ad_click") == [{"b4": [click("u1")]}]


def test_an_archive_of_nothing_is_empty(archive: Archive) -> None:
    archive.write("page_view", {"b1": []})
    assert archive.first_day() is None
    assert archive.files("page_view") == []


def test_a_file_has_gzipped_json_lines_and_is_in_the_folder_of_its_hour(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    Archive(f"file://{tmp_path}").write("page_view", {"b1": [VIEW], "b2": [VIEW]})
    (file,) = tmp_path.glob("*/*/*")
    folders = {f"{moment:%Y-%m-%d/%H}" for moment in (before, datetime.now(UTC))}
    assert str(file.parent.relative_to(tmp_path)) in folders
    lines = gzip.decompress(file.read_bytes()).splitlines()
    assert [json.loads(line)["batch"] for line in lines] == ["b1", "b2"]
    assert json.loads(lines[0])["events"] == [
        {
            "event_id": "e1",
            "website": "site1.com",
            "page": "/a",
            "day": "2026-11-24",
            "time": 1_795_521_600_000,
        }
    ]


def test_a_file_that_a_killed_worker_left_unfinished_is_ignored_and_later_deleted(
    tmp_path: Path, turn: RewriteTurn
) -> None:
    archive = Archive(f"file://{tmp_path}")
    archive.write("page_view", {"b1": [VIEW]})
    (file,) = tmp_path.glob("*/*/*")
    torn = file.with_name("page_view-1-a.ndjson.gz" + UNFINISHED)
    torn.write_bytes(file.read_bytes()[:30])
    assert everything(archive, "page_view") == [{"b1": [VIEW]}]
    archive.tidy(datetime.now(UTC), turn, seconds=5)
    assert torn.exists(), "its worker may be about to finish it"
    archive.tidy(datetime.now(UTC) + LATER, turn, seconds=5)
    assert not torn.exists()
    assert everything(archive, "page_view") == [{"b1": [VIEW]}]


def test_a_damaged_file_is_an_error_and_is_not_skipped(tmp_path: Path) -> None:
    archive = Archive(f"file://{tmp_path}")
    archive.write("page_view", {"b1": [VIEW]})
    (file,) = tmp_path.glob("*/*/*")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(Unavailable, match=file.name):
        everything(archive, "page_view")


def test_small_files_of_a_past_hour_are_joined_without_losing_anything(
    archive: Archive, turn: RewriteTurn
) -> None:
    for name in ("b1", "b2", "b1", "b3"):
        archive.write("page_view", {name: [VIEW]})
        archive.write("ad_click", {name: [click("u1")]})
    archive.tidy(datetime.now(UTC), turn, seconds=5)
    assert len(archive.files("page_view")) == 4, "files of this hour are left alone"
    for _ in range(2):
        archive.tidy(datetime.now(UTC) + LATER, turn, seconds=5)
        assert everything(archive, "page_view") == [{"b1": [VIEW], "b2": [VIEW], "b3": [VIEW]}]
        assert len(archive.files("ad_click")) == 1


def test_joined_files_never_exceed_what_a_reader_has_room_for(
    archive: Archive, turn: RewriteTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        archive.write("page_view", {str(number): [VIEW]})
    size = len(archive._files.cat_file(archive.files("page_view")[0]))
    monkeypatch.setattr("app.outputs.archive.SMALL_BYTES", size * 2)
    monkeypatch.setattr("app.outputs.archive.JOINED_BYTES", size * 4)
    archive.tidy(datetime.now(UTC) + LATER, turn, seconds=5)
    assert list(map(len, everything(archive, "page_view"))) == [2, 2, 2]


def test_each_forgotten_user_is_replaced_by_one_random_id(
    archive: Archive, turn: RewriteTurn
) -> None:
    shown = AdImpression(None, "site1.com", "34", "u1", "2026-11")
    archive.write("ad_click", {"b1": [click("u1"), click("u2")], "b2": [click("u2")]})
    archive.write("ad_click", {"b3": [click("u1"), click("u3")]})
    archive.write("ad_impression", {"b4": [shown]})
    archive.write("page_view", {"b5": [VIEW]})
    assert archive.forget({"u1", "u3"}, turn) == 4
    first, second = everything(archive, "ad_click")
    nobody = first["b1"][0].user_id  # type: ignore[index]
    assert first == {"b1": [click(nobody), click("u2")], "b2": [click("u2")]}
    assert second["b3"][0] == click(nobody)  # type: ignore[index]
    assert len({"u1", "u2", "u3", nobody, second["b3"][1].user_id}) == 5  # type: ignore[index]
    assert everything(archive, "ad_impression") == [
        {"b4": [AdImpression(None, "site1.com", "34", nobody, "2026-11")]}
    ]
    assert archive.forget({"u1", "u3"}, turn) == 0


def test_days_before_the_ones_to_keep_are_dropped(archive: Archive) -> None:
    archive.write("page_view", {"b1": [VIEW]})
    today = archive.first_day()
    assert today is not None
    archive.drop(today)
    assert len(archive.files("page_view", today)) == 1
    assert archive.files("page_view", today + timedelta(days=1)) == []
    archive.drop(today + timedelta(days=1))
    assert archive.files("page_view", date.min) == []


def test_one_process_at_a_time_changes_the_archive(journal: RedisJournal) -> None:
    with (
        rewriting(journal.redis) as turn,
        pytest.raises(Unavailable, match="another process"),
        rewriting(journal.redis, wait_seconds=0),
    ):
        pass
    with pytest.raises(Unavailable):
        turn.prolong()
    with rewriting(journal.redis, wait_seconds=0):
        pass


def test_an_archive_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "archive").touch()
    with pytest.raises(Unavailable, match="archive unavailable"):
        Archive(f"file://{tmp_path}/archive").write("page_view", {"b1": [VIEW]})


def test_files_are_private_to_their_owner_if_the_umask_says_so(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        Archive(f"file://{tmp_path}/archive").write("page_view", {"b1": [VIEW]})
    finally:
        os.umask(before)
    (file,) = tmp_path.glob("archive/*/*/*")
    assert file.stat().st_mode & 0o077 == 0

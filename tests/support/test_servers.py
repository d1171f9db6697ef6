from pathlib import Path

import pytest

from tests.conftest import pytest_report_header
from tests.support.servers import database_to_use


def test_a_given_database_is_used_or_else_a_mongod_or_else_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_MONGODB_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert database_to_use()[0] == "embedded"
    program = tmp_path / "mongod"
    program.touch(mode=0o755)
    assert database_to_use() == ("mongod", str(program))
    monkeypatch.setenv("TEST_MONGODB_URL", "mongodb://me:secret@h:1/?replicaSet=rs")
    assert database_to_use() == ("given", "mongodb://me:secret@h:1/?replicaSet=rs")
    assert pytest_report_header() == "database: given, mongodb://h:1/"

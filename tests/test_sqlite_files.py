"""The files of SQLite databases are made for the group."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from labstack.sqlite_files import prepare


@pytest.mark.usefixtures("group_writable")
def test_a_database_and_its_log_are_writable_for_the_group(tmp_path: Path) -> None:
    prepare(make_url(f"sqlite:///{tmp_path}/new/file.db"))
    with closing(sqlite3.connect(tmp_path / "new/file.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert modes == {"file.db": 0o664, "file.db-wal": 0o664, "file.db-shm": 0o664}


def test_databases_without_a_file_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite://", "sqlite:///:memory:", "postgresql://host/name"):
        prepare(make_url(url))
    assert list(tmp_path.iterdir()) == []

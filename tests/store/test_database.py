"""The engine, its transactions and its migrations."""

import os
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event, text

from labstack.store import audit, datasets, sqlite  # noqa: F401  # the tables that are compared
from labstack.store.audit import Entry, role_moves
from labstack.store.database import Base, DatabaseError, connect, migrate, moving, reading, writing
from tests.conftest import environment


def move(number: int) -> Entry:
    return Entry(model="m", role="production", from_version=None, to_version=number, actor="a", reason="r")


def test_sqlite_is_set_up_for_several_processes(engine: Engine) -> None:
    with reading(engine) as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 20_000}


def test_the_migrations_make_the_tables_that_the_code_knows(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    assert role_moves(engine) == []


@pytest.mark.usefixtures("group_writable")
def test_a_new_database_is_the_groups_too(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/new/lab.db")
    migrate(engine)
    with moving(engine), reading(engine) as session:
        session.connection()
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert modes == dict.fromkeys(("lab.db", "lab.db-moves", "lab.db-shm", "lab.db-wal"), 0o664)


def test_processes_that_prepare_one_new_database_at_once_all_succeed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new folder/lab.db"
    command = [sys.executable, "-m", "labstack.store"]
    started = [
        subprocess.Popen(
            command, env=environment(lab_database_url=url), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(4)
    ]
    outputs = [process.communicate()[0].decode() for process in started]
    assert outputs == ["iris 150 rows, student_exam_scores 200 rows\n"] * 4
    assert len(datasets.read(connect(url), "iris")) == 150


def test_two_writers_queue(engine: Engine) -> None:
    inside, entered = threading.Event(), []

    def second() -> None:
        inside.wait(10)
        with writing(engine) as session:
            entered.append(len(session.query(Entry).all()))

    thread = threading.Thread(target=second)
    thread.start()
    with writing(engine) as session:
        inside.set()
        thread.join(0.3)
        assert entered == []
        session.add(move(1))
    thread.join(10)
    assert entered == [1]


def test_a_failed_transaction_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="midway"), writing(engine) as session:
        session.add(move(1))
        session.flush()
        raise RuntimeError("midway")
    assert role_moves(engine) == []


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_text("Dear diary, " * 1000)
    with pytest.raises(DatabaseError, match=r"lab\.db.*not a database"):
        migrate(connect(f"sqlite:///{tmp_path}/lab.db"))


def test_a_database_of_a_newer_labstack_is_said_so(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="newer Labstack"):
        migrate(engine)


def test_a_url_that_names_no_database_is_said_so() -> None:
    with pytest.raises(DatabaseError, match="LAB_DATABASE_URL"):
        connect("lab.db")


def test_a_database_that_somebody_locked_is_said_so(engine: Engine) -> None:
    impatient = connect(str(engine.url), busy_seconds=0.1)
    holder = sqlite3.connect(str(engine.url.database), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked"), writing(impatient):
        pass
    holder.close()


def test_a_query_without_an_end_is_given_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "READ_SECONDS", 0.1)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(DatabaseError, match="interrupted"), reading(engine) as session:
        session.execute(text(endless))
    assert role_moves(engine) == [], "the next query has its own time"


def test_a_file_that_is_gone_is_not_made_anew(engine: Engine, tmp_path: Path) -> None:
    assert role_moves(engine) == []
    (tmp_path / "lab.db").rename(tmp_path / "away.db")
    for _ in range(2):
        with pytest.raises(DatabaseError, match=r"lab\.db is gone.*Put it back"):
            role_moves(engine)
    assert not (tmp_path / "lab.db").exists()
    (tmp_path / "away.db").rename(tmp_path / "lab.db")
    assert role_moves(engine) == []


def test_a_file_that_is_replaced_is_used_from_then_on(engine: Engine, tmp_path: Path) -> None:
    other = connect(f"sqlite:///{tmp_path}/other.db")
    migrate(other)
    with writing(other) as session:
        session.add(move(7))
    other.dispose()
    assert role_moves(engine) == []
    for path in tmp_path.glob("lab.db*"):
        path.rename(tmp_path / f"old-{path.name}")
    (tmp_path / "other.db").rename(tmp_path / "lab.db")
    assert [entry.to_version for entry in role_moves(engine)] == [7]


@pytest.mark.parametrize("moment", ["before the commit", "in the commit"])
def test_what_is_written_to_a_file_that_is_moved_meanwhile_does_not_count(
    engine: Engine, tmp_path: Path, moment: str
) -> None:
    def lose(*_: object) -> None:
        (tmp_path / "lab.db").rename(tmp_path / "away.db")

    if moment == "in the commit":
        event.listen(engine, "commit", lose)
    with pytest.raises(DatabaseError, match="moved, deleted or replaced"), writing(engine) as session:
        session.add(move(1))
        session.flush()
        if moment == "before the commit":
            lose()


def test_a_full_disk_is_said_so(engine: Engine) -> None:
    with pytest.raises(DatabaseError, match="full"), writing(engine) as session:
        pages = session.execute(text("PRAGMA page_count")).scalar()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
        session.add_all([move(number) for number in range(5000)])
    assert role_moves(engine) == []


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_text("Dear diary, " * 1000)
    done = subprocess.run(
        [sys.executable, "-m", "labstack.store"],
        env=environment(lab_database_url=f"sqlite:///{tmp_path}/lab.db"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not a database" in done.stderr
    assert os.listdir(tmp_path) == ["lab.db"]


def test_rows_of_the_first_form_are_taken_over(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/lab.db")
    migrate(engine, "0001")
    with engine.execution_options(writes=True).begin() as connection:
        columns = '[{"name": "a", "type": "number"}, {"name": "b", "type": "text"}]'
        connection.execute(text("INSERT INTO datasets VALUES (1, 't', '', :c, '', '2026-01-01 00:00')"), {"c": columns})
        for cells in ('[1.5, "x"]', "[null, null]"):
            query = text("INSERT INTO dataset_rows VALUES (NULL, 1, :c, '2026-01-01 00:00')")
            connection.execute(query, {"c": cells})
    migrate(engine)
    assert list(datasets.read(engine, "t").dicts()) == [{"a": 1.5, "b": "x"}, {"a": None, "b": None}]


def test_moves_of_the_second_form_are_taken_over(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/lab.db")
    migrate(engine, "0002")
    with engine.execution_options(writes=True).begin() as connection:
        for number in (1, 2):
            values = {"at": f"2026-01-0{number} 00:00:00", "to": number}
            query = "INSERT INTO role_moves VALUES (NULL, :at, 'm', 'production', NULL, :to, 'me', 'why')"
            connection.execute(text(query), values)
    migrate(engine)
    newest, oldest = role_moves(engine, "m")
    assert (newest.to_version, oldest.to_version, oldest.actor, oldest.reason) == (2, 1, "me", "why")
    assert oldest.at == datetime(2026, 1, 1, tzinfo=UTC)

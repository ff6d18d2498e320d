"""The lab's database on a real PostgreSQL server: the tests of SQLite's, and the API on it."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, select, text

from labstack.errors import LabError
from labstack.registry import moves
from labstack.store import audit, datasets, predictions
from labstack.store.database import Base, DatabaseError, connect, migrate, reading, writing
from labstack.store.predictions import Prediction
from labstack.training import data
from tests.api.recording.test_prediction_log import accounted, load, reachable
from tests.conftest import IRIS_ROW, Lab, ask, free_port, run_api, wait_until
from tests.registry.test_moves import *  # noqa: F403
from tests.store.test_predictions import *  # noqa: F403  # the same tests, with the engine of this module
from tests.store.test_windows import *  # noqa: F403
from tests.training.test_data import pipeline

SERVERS = Path("/usr/lib/postgresql")  # where Debian puts them


def program(name: str) -> str:
    path = shutil.which(name) or next((str(path) for path in sorted(SERVERS.glob(f"*/bin/{name}"))[-1:]), None)
    assert path, f"{name} is needed: apt-get install postgresql"
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server; the URL of its databases."""
    folder, port = tmp_path_factory.mktemp("postgresql"), free_port()
    user = None
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        user = "postgres"
        for path in (folder, *folder.parents[:2]):
            path.chmod(0o755)
        shutil.chown(folder, user)
    data = folder / "data"
    subprocess.run(
        [program("initdb"), "--username", "lab", "--auth", "trust", "--no-sync", data],
        check=True,
        user=user,
        stdout=subprocess.DEVNULL,
    )
    command: list[Any] = [
        program("postgres"),
        "-D",
        data,
        "-p",
        str(port),
        "-k",
        folder,
        "-c",
        "listen_addresses=127.0.0.1",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, user=user, stdout=log, stderr=log)
    try:
        wait_until(lambda: "ready to accept connections" in (folder / "log").read_text(), 30, "PostgreSQL is up")
        yield f"postgresql://lab@127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)  # which waits for no client
        process.wait(30)


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"lab_{abs(hash(request.node.name))}"
    admin = connect(f"{server}/postgres")
    with admin.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"{server}/{name}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = connect(url)
    migrate(engine)
    yield engine
    engine.dispose()


def test_many_migrate_at_once_and_the_tables_are_those_of_the_code(url: str) -> None:
    engines = [connect(url) for _ in range(6)]
    threads = [threading.Thread(target=migrate, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engines[0].connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    for engine in engines:
        engine.dispose()


def test_datasets_live_there(engine: Engine) -> None:
    assert dict(datasets.load_bundled(engine)) == {"iris": 150, "student_exam_scores": 200}
    assert len(list(datasets.read(engine, "iris").dicts())) == 150


def test_one_writes_at_a_time(engine: Engine) -> None:
    impatient = connect(engine.url.render_as_string(hide_password=False), busy_seconds=1)
    with writing(engine), pytest.raises(DatabaseError, match="lock timeout"), writing(impatient):
        pass
    impatient.dispose()


def test_a_pipelines_query_reads_another_database_and_changes_nothing(server: str, engine: Engine) -> None:
    there = f"{server}/postgres".replace("postgresql:", "postgresql+psycopg:")
    select = "SELECT n AS x, CASE WHEN n % 3 = 0 THEN 'a' ELSE 'b' END AS y FROM generate_series(1, 60) n"
    assert len(data.load(engine, pipeline(data={"sql": {"url": there, "query": select}})).target) == 60
    for query in (
        "CREATE TABLE sneaked (a int)",
        f"{select}; COMMIT; CREATE TABLE sneaked (a int); SELECT 1",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; COMMIT; CREATE TABLE sneaked (a int)",
        "DO $$ BEGIN COMMIT; CREATE TABLE sneaked (a int); END $$",
        "SELECT set_config('transaction_read_only', 'off', false) AS x, 1 AS y",
    ):
        with pytest.raises(LabError, match="An SQL query cannot be read: "):
            data.load(engine, pipeline(data={"sql": {"url": there, "query": query}}))
    source = create_engine(there)
    with source.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_tables WHERE tablename = 'sneaked'")).scalar() == 0
    source.dispose()
    own = engine.url.render_as_string(hide_password=False).replace("127.0.0.1", "localhost")
    with pytest.raises(LabError, match=r"the lab's own database \(LAB_DATABASE_URL\)"):
        data.load(engine, pipeline(data={"sql": {"url": own, "query": select}}))


def test_roles_move_and_are_recorded(engine: Engine, lab: Lab, model: str) -> None:
    moves.promote(lab.registry, engine, model, 1, reason="first")
    moves.promote(lab.registry, engine, model, 2, reason="second")
    assert [entry.to_version for entry in audit.role_moves(engine, model)] == [1, 2, 1]


@contextmanager
def paused(engine: Engine) -> Iterator[None]:
    """A server that keeps its connections and does nothing."""
    with engine.connect() as connection:
        folder = connection.execute(text("SHOW data_directory")).scalar()
    engine.dispose()
    server = psutil.Process(int((Path(str(folder)) / "postmaster.pid").read_text().split()[0]))
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@pytest.mark.parametrize("mode", ["batched", "durable"])
def test_a_server_that_is_paused_holds_up_nobody_and_no_row_is_lost_or_in_doubt(
    url: str, engine: Engine, lab: Lab, tmp_path: Path, mode: str
) -> None:
    settings: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "lab_database_url": url}
    with run_api(tmp_path, **settings, prediction_log=mode, api_threads=12) as api:
        wait_until(lambda: reachable(api), 20, "all is well")
        with load(api, 8) as seen:
            for _ in range(3):
                wait_until(lambda: reachable(api), 30, "it recovers")
                with paused(engine), ThreadPoolExecutor(1) as pool:
                    answer = pool.submit(ask, f"{api.url}/metrics")
                    wait_until(answer.done, 5, "/metrics answers")
                    wait_until(lambda: not reachable(api), 10, "the error is reported")
                    assert ask(f"{api.url}/health").status == 200
        numbers = wait_until(lambda: accounted(api, len(seen)), 30, "each is kept or dropped")
        wait_until(lambda: reachable(api), 30, "it recovers")
        assert api.stop() == 0
    with reading(engine) as session:
        names = list(session.scalars(select(Prediction.request_id)))
    assert len(names) == len(set(names)) == numbers[0]
    assert {status for _, status in seen} == {200} if mode == "batched" else {200, 503}
    if mode == "durable":
        assert sorted(names) == sorted(name for name, status in seen if status == 200)


def test_two_apis_keep_predictions_and_tell_of_drift(url: str, engine: Engine, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shared: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "lab_database_url": url, "api_workers": 2}
    with (
        run_api(tmp_path, **shared) as first,
        run_api(tmp_path / "other", **shared, prediction_log="durable") as second,
    ):
        for number in range(200):
            api = (first, second)[number % 2]
            headers = {"X-Request-Id": f"r{number}"}
            assert ask(f"{api.url}/predict", IRIS_ROW, headers=headers).status == 200
        wait_until(lambda: len(predictions.recent(engine, "iris", 1000)) == 200, 10, "all are kept")
        wait_until(lambda: ask(f"{first.url}/drift").json["versions"][0]["rows"] == 200, 10, "all are counted")
        outcome = {"request_id": "r7", "outcome": "setosa"}
        assert ask(f"{second.url}/feedback", outcome).json["recorded"] == 1
        assert ask(f"{first.url}/drift").json["versions"][0]["live"]["accuracy"] == 1
        assert ask(f"{first.url}/admin/reload", b"", "POST").status == 200
        assert ask(f"{second.url}/audit").json["entries"][0]["action"] == "reload"

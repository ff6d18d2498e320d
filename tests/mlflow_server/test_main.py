"""The MLflow server as the lab configures it."""

import os
import sqlite3
from pathlib import Path

import psutil
import pytest

from labstack.mlflow_server.main import prepare_sqlite
from tests.conftest import Lab, ask


def test_it_rejects_other_host_names(lab: Lab) -> None:
    port = lab.tracking_uri.rpartition(":")[2]
    url = f"{lab.tracking_uri}/api/2.0/mlflow/registered-models/search"
    for host, status in (
        (f"localhost:{port}", 200),
        (f"127.0.0.1:{port}", 200),
        (f"server_mlflow:{port}", 200),
        ("evil.example", 403),
        (f"evil.example:{port}", 403),
    ):
        assert ask(url, headers={"Host": host}).status == status, host


def test_its_page_is_served(lab: Lab) -> None:
    page = ask(lab.tracking_uri)
    assert page.status == 200
    assert "<title>MLflow</title>" in page.text


def test_its_database_is_in_wal_mode(lab: Lab) -> None:
    connection = sqlite3.connect(lab.folder / "mlruns.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.usefixtures("group_writable")
def test_the_group_may_write_a_new_database(tmp_path: Path) -> None:
    prepare_sqlite(f"sqlite:///{tmp_path}/new/mlruns.db")
    assert (tmp_path / "new/mlruns.db").stat().st_mode & 0o777 == 0o664


def test_it_runs_one_worker_and_no_job_runner(lab: Lab) -> None:
    port = lab.tracking_uri.rpartition(":")[2]
    [leader] = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["cmdline"] or [])[1:4] == ["-m", "mlflow", "server"]
        and (process.info["environ"] or {}).get("MLFLOW_PORT") == port
    ]
    family = [leader, *leader.children(recursive=True)]
    assert len(family) == 2
    assert os.getsid(leader.pid) == leader.pid
    assert leader.environ()["MLFLOW_DISABLE_TELEMETRY"] == "true"

"""`python -m labstack.mlflow_server.main`: start the MLflow server, configured as the lab needs it."""

import os
import sqlite3
import sys

from sqlalchemy import make_url

from labstack import settings, sqlite_files
from labstack.errors import LabError
from labstack.mlflow_server import archive


def environment(config: settings.Settings) -> dict[str, str]:
    """Return the environment variables that configure MLflow.

    Without the job runner and with one worker, the server takes 2 processes and 0.5 GB instead of 14 processes and more
    than 2 GB, and only one process writes to SQLite. The list of allowed hosts replaces MLflow's default, which rejects
    the name of a container.
    """
    return {
        "MLFLOW_BACKEND_STORE_URI": config.mlflow_backend_store_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": config.mlflow_artifacts_destination,
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_HOST": config.mlflow_host,
        "MLFLOW_PORT": str(config.mlflow_port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ALLOWED_HOSTS": config.mlflow_server_allowed_hosts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def prepare_sqlite(uri: str) -> None:
    """Make the file of an SQLite database, in write-ahead-log mode, which the file keeps; ignore other databases."""
    url = make_url(uri)
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    sqlite_files.prepare(url)
    connection = sqlite3.connect(url.database, timeout=20)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def main() -> None:
    config = settings.load()
    try:
        archive.begin(config)
        prepare_sqlite(config.mlflow_backend_store_uri)
    except LabError as error:
        sys.exit(str(error))
    except (OSError, sqlite3.Error) as error:
        sys.exit(f"MLflow's database {config.mlflow_backend_store_uri} cannot be opened: {error}")
    # clients would take an artifact root for a path on their own machine; without one, artifacts go through the server
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_DEFAULT_ARTIFACT_ROOT"}
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server"], inherited | environment(config))  # noqa: S606


if __name__ == "__main__":
    main()

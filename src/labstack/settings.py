"""All environment variables of all services, typed and documented.

The variable of a setting is its field's name in capitals. Settings come from the process environment, then from `.env`
at the root of the project; an empty variable counts as unset. `.env.example` and `docs/settings.md` are for people.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    # The MLflow server
    mlflow_bind: str = Field(
        "127.0.0.1",
        description="The address that the MLflow server is published on. MLflow has no authentication.",
    )
    mlflow_host: str = Field(
        default_factory=lambda data: data["mlflow_bind"],
        description="The address that the MLflow server listens on; by default MLFLOW_BIND. The images set it to all.",
    )
    mlflow_port: int = Field(5001, ge=1, le=65535, description="The port of the MLflow server.")
    mlflow_backend_store_uri: str = Field(
        f"sqlite:///{ROOT}/db/mlruns.db",
        description="MLflow's own database, as an SQLAlchemy URL; by default db/mlruns.db.",
    )
    mlflow_artifacts_destination: str = Field(
        str(ROOT / "db" / "mlartifacts"),
        description="The folder of MLflow's artifacts; by default db/mlartifacts. Only the server reads it.",
    )
    mlflow_server_allowed_hosts: str = Field(
        "localhost:*,127.0.0.1:*,server_mlflow:*",
        description="The Host headers that the MLflow server accepts, with ports.",
    )

    # All services
    mlflow_tracking_uri: str = Field(
        default_factory=lambda data: f"http://localhost:{data['mlflow_port']}",
        description="The URL of the MLflow server for the services; by default this machine, at MLFLOW_PORT.",
    )
    mlflow_public_url: str = Field(
        default_factory=lambda data: data["mlflow_tracking_uri"],
        description="The URL of the MLflow page for people, used in links; by default MLFLOW_TRACKING_URI.",
    )
    lab_database_url: str = Field(
        f"sqlite:///{ROOT}/db/lab.db",
        description="Labstack's own database, as an SQLAlchemy URL of SQLite or PostgreSQL; by default db/lab.db.",
    )
    search_database_url: str = Field(
        f"sqlite:///{ROOT}/db/search.db",
        description="The database of hyperparameter searches, as an SQLAlchemy URL; by default db/search.db.",
    )
    lab_outputs: Path = Field(
        ROOT / "outputs",
        description="The folder of the manifest and of packages that could not be logged; by default outputs.",
    )
    git_commit: str | None = Field(
        None, description="The commit that training runs are tagged with; by default that of the checkout."
    )
    lab_archive: str | None = Field(
        None,
        description="An archive of ./run_all.sh backup, a path or a URL, that fills a lab without data.",
    )
    lab_archive_max_bytes: int = Field(
        107_374_182_400, ge=1, description="The largest unpacked size of an archive, in bytes."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least severe level that is logged: DEBUG, INFO, WARNING or ERROR."
    )

    # The API
    api_bind: str = Field(
        "127.0.0.1",
        description="The address that the API is published on; one other than loopback requires API_ADMIN_TOKEN.",
    )
    api_host: str = Field(
        default_factory=lambda data: data["api_bind"],
        description="The address that gunicorn listens on; by default API_BIND. The images set it to all.",
    )
    api_port: int = Field(5002, ge=1, le=65535, description="The port of the API.")
    api_workers: int = Field(2, ge=1, le=64, description="The number of gunicorn worker processes.")
    api_threads: int = Field(4, ge=1, le=256, description="The number of threads of each worker.")
    api_admin_token: SecretStr | None = Field(
        None,
        description="The token that operators send as X-Admin-Token. Without one, the operators' endpoints accept "
        "only direct calls from this machine, and are off in containers.",
    )
    api_url: str = Field(
        default_factory=lambda data: f"http://{reached_at(data['api_bind'])}:{data['api_port']}",
        description="The URL of the API for training and the labstack command; by default this machine, at API_PORT.",
    )
    api_cache_dir: Path = Field(
        ROOT / ".lab" / "models",
        description="The folder of fetched versions and of the workers' control files; by default .lab/models.",
    )
    default_model_name: str = Field("iris", description="The model that answers at /predict.")
    require_production_model: bool = Field(
        False, description="If true, the API refuses to start while the default model has no production version."
    )
    include_model_info: bool = Field(
        True, description="If true, each answer names its model, version, role and runtime."
    )
    startup_timeout_seconds: float = Field(
        120,
        gt=0,
        description="Seconds after the start of an API or a training in which an unreachable registry is starting.",
    )
    follow_interval_seconds: float = Field(
        3, gt=0, description="Seconds between two registry reads of a worker, jittered by a fifth."
    )
    reload_timeout_seconds: float = Field(
        30, gt=0, description="Seconds that POST /admin/reload waits for all workers."
    )
    canary_probability: float = Field(
        0.1, ge=0, le=1, description="The share of requests of a canary whose weight is not given."
    )
    mlflow_webhook_secret: SecretStr | None = Field(
        None, description="The secret of MLflow webhooks to POST /hooks/mlflow; without one the endpoint is off."
    )
    max_request_rows: int = Field(10_000, ge=1, description="The largest number of rows in one prediction request.")
    max_request_bytes: int = Field(4_194_304, ge=1, description="The largest body of a request, in bytes.")
    prediction_seconds: float = Field(
        10, gt=0, description="Seconds after which a prediction by an ONNX model is stopped and counts as failed."
    )
    model_max_bytes: int = Field(536_870_912, ge=1, description="The largest model file that is served, in bytes.")
    model_memory_bytes: int = Field(
        1_073_741_824, ge=1, description="The most memory that loading and trying a version may take, in bytes."
    )
    model_load_seconds: float = Field(
        20, gt=0, description="Timeout in seconds for fetching each file of a version, and for loading and trying it."
    )
    model_cache_bytes: int = Field(
        4_294_967_296,
        ge=1,
        description="The size of the versions that API_CACHE_DIR keeps, in bytes; the least recently used are "
        "removed first.",
    )
    log_inputs: bool = Field(
        True,
        description="If true, log lines and the prediction log contain the inputs of predictions, and log lines "
        "input_stats.",
    )
    log_predictions: float = Field(
        1, ge=0, le=1, description="The share of predictions that get a log line; all are counted."
    )
    prediction_log: Literal["off", "batched", "durable"] = Field(
        "batched",
        description="The prediction log in the database: off, batched, or durable (committed before the answer is "
        "sent).",
    )
    prediction_log_days: float = Field(30, gt=0, description="Days that predictions and their outcomes are kept.")
    prediction_log_rows: int = Field(1_000_000, ge=1, description="The largest number of predictions that are kept.")
    drift_window_seconds: float = Field(3600, ge=1, description="The time window of drift, in seconds.")
    drift_minimum_rows: int = Field(200, ge=1, description="The rows in a window that a drift verdict needs.")
    drift_watch: float = Field(0.1, gt=0, description="The PSI from which a feature is to be watched.")
    drift_drifted: float = Field(0.25, gt=0, description="The PSI from which a feature has drifted.")
    canary_auto: bool = Field(False, description="If true, the API acts on its verdicts on canaries.")
    canary_steps: Annotated[tuple[float, ...], NoDecode] = Field(
        (0.05, 0.1, 0.25, 0.5, 1),
        min_length=1,
        description="The shares that a canary advances through; at 1, the last, it becomes production.",
    )
    canary_interval_seconds: float = Field(
        10,
        gt=0,
        description="Seconds between two rounds of judging canaries, expiring predictions and merging windows.",
    )
    canary_minimum_requests: int = Field(200, ge=1, description="The requests in a step that a verdict needs.")
    canary_failure_budget: int = Field(
        10, ge=0, description="The failed predictions in a step after which a canary is rolled back at once."
    )
    canary_margin: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="How much worse a canary may be than production in error rate, accuracy or mean error.",
    )
    canary_latency_ratio: float = Field(
        1.5, gt=1, description="How many times production's p50 and p99 latency a canary may take."
    )
    canary_agreement: float = Field(
        0.8, ge=0, le=1, description="The share of rows on which a canary must agree with production."
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("canary_steps", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("canary_steps")
    @classmethod
    def _ascending_to_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or value[0] <= 0 or value[-1] != 1:
            raise ValueError("give ascending shares above 0, of which the last is 1, as in 0.05,0.25,1")
        return value


def reached_at(host: str) -> str:
    """Return the host by which this machine reaches a service that listens on an address."""
    if host in (*LOOPBACK, "0.0.0.0", "::"):  # noqa: S104
        return "localhost"
    return f"[{host}]" if ":" in host else host


def without_credentials(url: str) -> str:
    """Return a URL without user name and password, to be shown and logged."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def require_operators_token(settings: Settings) -> None:
    """Exit when the operators' endpoints would be open to other machines."""
    if settings.api_bind not in LOOPBACK and settings.api_admin_token is None:
        sys.exit(
            f"API_BIND={settings.api_bind} opens the API to other machines: set API_ADMIN_TOKEN, which operators then "
            "send as X-Admin-Token, or publish it on 127.0.0.1."
        )


def load() -> Settings:
    """Return the settings of this process; exit with one line per wrong setting, with its name and never its value.

    LAB_ENV_FILE names a file to read instead of `.env`.
    """
    try:
        return Settings(_env_file=os.environ.get("LAB_ENV_FILE", ROOT / ".env"))
    except ValidationError as error:
        problems = [
            f"{str(problem['loc'][0]).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False)
            if problem["type"] != "default_factory_not_called"  # a consequence of another problem
        ]
        sys.exit("\n".join(f"A setting is wrong: {problem}. See .env.example." for problem in problems))

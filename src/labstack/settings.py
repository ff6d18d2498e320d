"""Every environment variable of every service: typed, documented, in one place.

A setting's variable is its field's name in capitals. `.env` at the project's root holds them too; the process
environment wins over it, and an empty variable counts as unset. `.env.example` is the manual for people.
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
        description="The address that the MLflow server is published on; whoever reaches it may change everything.",
    )
    mlflow_host: str = Field(
        default_factory=lambda data: data["mlflow_bind"],
        description="The address that the MLflow server listens on; MLFLOW_BIND by default. An image sets it to all.",
    )
    mlflow_port: int = Field(5001, ge=1, le=65535, description="The port that the MLflow server listens on.")
    mlflow_backend_store_uri: str = Field(
        f"sqlite:///{ROOT}/db/mlruns.db",
        description="MLflow's own database, as an SQLAlchemy URL; db/mlruns.db by default.",
    )
    mlflow_artifacts_destination: str = Field(
        str(ROOT / "db" / "mlartifacts"),
        description="Where the MLflow server keeps artifacts; db/mlartifacts by default. Clients never see it.",
    )
    mlflow_server_allowed_hosts: str = Field(
        "localhost:*,127.0.0.1:*,server_mlflow:*",
        description="Host headers the MLflow server answers to, ports included; add the name that others reach it by.",
    )

    # All services
    mlflow_tracking_uri: str = Field(
        default_factory=lambda data: f"http://localhost:{data['mlflow_port']}",
        description="Where the MLflow server is reached; by default on this machine, at MLFLOW_PORT.",
    )
    mlflow_public_url: str = Field(
        default_factory=lambda data: data["mlflow_tracking_uri"],
        description="Where people reach the MLflow page, for links; MLFLOW_TRACKING_URI by default.",
    )
    lab_database_url: str = Field(
        f"sqlite:///{ROOT}/db/lab.db",
        description="Labstack's own database (datasets, audit), as an SQLAlchemy URL; db/lab.db by default.",
    )
    search_database_url: str = Field(
        f"sqlite:///{ROOT}/db/search.db",
        description="Where trainings keep the trials of their searches, as an SQLAlchemy URL; db/search.db by default.",
    )
    lab_outputs: Path = Field(
        ROOT / "outputs",
        description="Where training writes the manifest, and what it could not log; outputs by default.",
    )
    git_commit: str | None = Field(
        None, description="The commit that a training's runs are tagged with; by default that of the checkout."
    )
    lab_archive: str | None = Field(
        None,
        description="An archive of ./run_all.sh backup, a path or a URL, whose data a lab without data begins with.",
    )
    lab_archive_max_bytes: int = Field(
        107_374_182_400, ge=1, description="Bytes that an archive, unpacked, may hold, in LAB_ARCHIVE and restore."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least severe level that is logged."
    )

    # The API
    api_bind: str = Field(
        "127.0.0.1", description="The address that the API is published on; a wider one demands API_ADMIN_TOKEN."
    )
    api_host: str = Field(
        default_factory=lambda data: data["api_bind"],
        description="The address that gunicorn listens on; API_BIND by default. An image sets it to all.",
    )
    api_port: int = Field(5002, ge=1, le=65535, description="The port that the API listens on.")
    api_workers: int = Field(2, ge=1, le=64, description="gunicorn worker processes.")
    api_threads: int = Field(4, ge=1, le=256, description="Threads of each worker.")
    api_admin_token: SecretStr | None = Field(
        None,
        description="What operators send as X-Admin-Token; without one only calls from this machine itself are theirs, "
        "and none where API_HOST is not loopback, as in containers.",
    )
    api_url: str = Field(
        default_factory=lambda data: f"http://{reached_at(data['api_bind'])}:{data['api_port']}",
        description="Where training and the labstack command reach the API; by default on this machine, at API_PORT.",
    )
    api_cache_dir: Path = Field(
        ROOT / ".lab" / "models",
        description="Where the API keeps the versions it fetched, and what its workers share; .lab/models by default.",
    )
    default_model_name: str = Field("iris", description="The model that answers at /predict.")
    require_production_model: bool = Field(
        False, description="Whether the API refuses to start while its default model has no production version."
    )
    include_model_info: bool = Field(
        True, description="Whether each answer names the model, version, role and runtime that it comes from."
    )
    startup_timeout_seconds: float = Field(
        120,
        gt=0,
        description="How long the API and training, starting, take an unreachable registry for one that is coming up.",
    )
    follow_interval_seconds: float = Field(
        3, gt=0, description="How often each worker asks the registry for its roles, jittered by a fifth."
    )
    reload_timeout_seconds: float = Field(30, gt=0, description="How long POST /admin/reload waits for every worker.")
    canary_probability: float = Field(
        0.1, ge=0, le=1, description="The share of requests that a canary gets when nobody says another."
    )
    mlflow_webhook_secret: SecretStr | None = Field(
        None, description="The secret of an MLflow webhook to /hooks/mlflow; without one the endpoint is off."
    )
    max_request_rows: int = Field(10_000, ge=1, description="Rows that one prediction request may hold.")
    max_request_bytes: int = Field(4_194_304, ge=1, description="Bytes that one request's body may hold.")
    prediction_seconds: float = Field(
        10, gt=0, description="How long an ONNX model may compute one request; then it is ended, and counts as failed."
    )
    model_max_bytes: int = Field(
        536_870_912, ge=1, description="Bytes that a version's model file may hold; a larger one is not served."
    )
    model_memory_bytes: int = Field(
        1_073_741_824, ge=1, description="Bytes of memory that loading and trying a version may take."
    )
    model_load_seconds: float = Field(
        20, gt=0, description="Seconds to fetch each file of a version, and seconds to load and try it."
    )
    model_cache_bytes: int = Field(
        4_294_967_296, ge=1, description="Bytes of versions that API_CACHE_DIR keeps; the longest unused go first."
    )
    log_inputs: bool = Field(
        True, description="Whether log lines and the prediction log hold the inputs of predictions, and input_stats."
    )
    log_predictions: float = Field(1, ge=0, le=1, description="The share of predictions that get a log line.")
    prediction_log: Literal["off", "batched", "durable"] = Field(
        "batched",
        description="Whether predictions are kept in our database: in batches, or each before its answer is sent.",
    )
    prediction_log_days: float = Field(30, gt=0, description="How long predictions and their outcomes are kept.")
    prediction_log_rows: int = Field(1_000_000, ge=1, description="How many predictions are kept at most.")
    drift_window_seconds: float = Field(3600, ge=1, description="How far back drift is looked for.")
    drift_minimum_rows: int = Field(200, ge=1, description="The rows of a window that a verdict on drift needs.")
    drift_watch: float = Field(0.1, gt=0, description="From which PSI on a feature is to be watched.")
    drift_drifted: float = Field(0.25, gt=0, description="From which PSI on a feature has drifted.")
    canary_auto: bool = Field(False, description="Whether the API acts on its verdicts on canaries by itself.")
    canary_steps: Annotated[tuple[float, ...], NoDecode] = Field(
        (0.05, 0.1, 0.25, 0.5, 1),
        min_length=1,
        description="The shares that a canary advances through; at 1, the last, it becomes production.",
    )
    canary_interval_seconds: float = Field(
        10, gt=0, description="How often canaries are judged, old predictions removed, and windows merged."
    )
    canary_minimum_requests: int = Field(200, ge=1, description="The requests in a step that a verdict needs.")
    canary_failure_budget: int = Field(
        10, ge=0, description="The failed predictions of one step after which a canary is rolled back at once."
    )
    canary_margin: float = Field(
        0.02, gt=0, lt=1, description="How much worse a canary may be: in error rate, in accuracy, in mean error."
    )
    canary_latency_ratio: float = Field(
        1.5, gt=1, description="How much longer a canary's median and 99th percentile may take than production's."
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
    """The host that this machine reaches a service by that listens on an address."""
    if host in (*LOOPBACK, "0.0.0.0", "::"):  # noqa: S104
        return "localhost"
    return f"[{host}]" if ":" in host else host


def without_credentials(url: str) -> str:
    """The URL as it may be shown and logged."""
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
    """The settings of this process; exits with one line a fault, naming the variable and never its value.

    LAB_ENV_FILE names another file than `.env`.
    """
    try:
        return Settings(_env_file=os.environ.get("LAB_ENV_FILE", ROOT / ".env"))
    except ValidationError as error:
        faults = [
            f"{str(fault['loc'][0]).upper()}: {fault['msg']}"
            for fault in error.errors(include_input=False)
            if fault["type"] != "default_factory_not_called"  # it only follows from another
        ]
        sys.exit("\n".join(f"A setting is wrong: {fault}. See .env.example." for fault in faults))

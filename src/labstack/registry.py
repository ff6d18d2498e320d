"""Roles: which version of a model is production, canary or previous, and the moves between them.

A role is an alias of MLflow's registry, the only authority. Who writes: training and the operators' commands,
through the functions here and nothing else. Each move holds our database's write lock from its first look at the
aliases to its audit row, so that two moves never interleave and no move goes unrecorded: the row is written
before the alias and taken back when the alias cannot be moved.
"""

import getpass
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy import Engine

from labstack.errors import LabError
from labstack.store.audit import RoleMove
from labstack.store.database import writing

PRODUCTION, CANARY, PREVIOUS = ROLES = ("production", "canary", "previous")


class RegistryError(LabError):
    """A move is refused, or the registry's answer cannot be used; the text is for people."""


class RegistryUnreachableError(RegistryError):
    """The registry does not answer."""


@dataclass(frozen=True)
class Roles:
    """The version of each role of one model; None where no version has it."""

    production: int | None = None
    canary: int | None = None
    previous: int | None = None


def connect(tracking_uri: str, timeout_seconds: int = 10, retries: int = 2) -> MlflowClient:
    """A client of the registry that gives up soon: MLflow's own patience is minutes a call. Calls nothing yet.

    The address becomes the process's: much of MLflow, downloads among it, takes it from there alone.
    """
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(retries)
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    return MlflowClient(tracking_uri, tracking_uri)


@contextmanager
def answering(client: MlflowClient) -> Iterator[None]:
    """Turn MLflow's exceptions into RegistryError, and those of a registry that does not answer into its subclass."""
    try:
        yield
    except RestException as error:
        raise RegistryError(error.message) from error
    except MlflowException as error:
        if "API request to" in error.message:
            raise RegistryUnreachableError(f"The MLflow server at {client.tracking_uri} cannot be reached.") from error
        raise RegistryError(error.message) from error


def roles(client: MlflowClient, model: str) -> Roles:
    """The roles of one model; all None when the registry does not know it."""
    with answering(client):
        try:
            aliases = client.get_registered_model(model).aliases
        except RestException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return Roles()
            raise
    return _roles(aliases)


def all_roles(client: MlflowClient) -> dict[str, Roles]:
    """The roles of every registered model."""
    found: dict[str, Roles] = {}
    token = None
    with answering(client):
        while True:
            page = client.search_registered_models(max_results=1000, page_token=token)
            found |= {model.name: _roles(model.aliases) for model in page}
            token = page.token
            if not token:
                return found


def version(client: MlflowClient, model: str, number: int) -> ModelVersion:
    """One version's record. Raises RegistryError when there is no such version."""
    with answering(client):
        try:
            return client.get_model_version(model, str(number))
        except RestException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise RegistryError(f"The model {model!r} has no version {number}.") from error
            raise


def promote(client: MlflowClient, engine: Engine, model: str, number: int, *, reason: str) -> None:
    """Make a version production; the one it takes the place of becomes `previous`. A canary that is promoted ends."""
    with _move(client, engine, model) as (now, record):
        _require_version(client, model, number)
        if now.production == number:
            raise RegistryError(f"Version {number} of {model!r} is production already.")
        if now.production is not None:  # first, so that a stop between the two loses no version's role
            client.set_registered_model_alias(model, PREVIOUS, str(now.production))
        record(PRODUCTION, now.production, number, reason)
        client.set_registered_model_alias(model, PRODUCTION, str(number))
        if now.canary == number:
            client.delete_registered_model_alias(model, CANARY)


def rollback(client: MlflowClient, engine: Engine, model: str, *, reason: str) -> int:
    """Make `previous` production again, and today's production `previous`. The version now in production."""
    with _move(client, engine, model) as (now, record):
        if now.previous is None or now.previous == now.production:
            raise RegistryError(f"The model {model!r} has no previous version to go back to.")
        _require_version(client, model, now.previous)
        record(PRODUCTION, now.production, now.previous, reason)
        client.set_registered_model_alias(model, PRODUCTION, str(now.previous))
        if now.production is not None:
            client.set_registered_model_alias(model, PREVIOUS, str(now.production))
        return now.previous


def start_canary(client: MlflowClient, engine: Engine, model: str, number: int, *, reason: str) -> None:
    """Make a version the canary beside production."""
    with _move(client, engine, model) as (now, record):
        _require_version(client, model, number)
        if now.production is None:
            raise RegistryError(f"The model {model!r} has no production version for a canary to stand beside.")
        if number == now.production:
            raise RegistryError(f"Version {number} of {model!r} is production; a canary is another version.")
        if now.canary is not None:
            raise RegistryError(f"Version {now.canary} of {model!r} is the canary already; accept or reject it first.")
        record(CANARY, None, number, reason)
        client.set_registered_model_alias(model, CANARY, str(number))


def stop_canary(client: MlflowClient, engine: Engine, model: str, *, reason: str) -> int:
    """Take the canary's role from it. The version that was the canary."""
    with _move(client, engine, model) as (now, record):
        if now.canary is None:
            raise RegistryError(f"The model {model!r} has no canary.")
        record(CANARY, now.canary, None, reason)
        client.delete_registered_model_alias(model, CANARY)
        return now.canary


@contextmanager
def _move(client: MlflowClient, engine: Engine, model: str) -> Iterator[tuple[Roles, Callable[..., None]]]:
    """One move at a time: yields the roles as they are, and the function that writes the move's audit row."""

    def record(role: str, source: int | None, target: int | None, reason: str) -> None:
        session.add(
            RoleMove(model=model, role=role, from_version=source, to_version=target, actor=actor(), reason=reason)
        )
        session.flush()

    with writing(engine) as session, answering(client):
        yield roles(client, model), record


def _roles(aliases: dict[str, str]) -> Roles:
    return Roles(**{role: int(aliases[role]) for role in ROLES if role in aliases})


def _require_version(client: MlflowClient, model: str, number: int) -> None:
    status = version(client, model, number).status
    if status != "READY":
        raise RegistryError(f"Version {number} of {model!r} is not ready: its status is {status}.")


def actor() -> str:
    """Who is acting: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"

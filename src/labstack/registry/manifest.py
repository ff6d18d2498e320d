"""The manifest: the versions in production and how to serve them, for deployments. The same lab gives the same text."""

import json
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from labstack.registry.client import MlflowRest, RegistryFailedError, Version
from labstack.registry.roles import FAILED, GATE_TAG, GATES_TAG, living, read_all_roles
from labstack.settings import Settings, without_credentials

FILE_NAME = "deployment_manifest.json"

ENVIRONMENT = """\
# All that a deployment sets; .env.example explains each, and more.
DEFAULT_MODEL_NAME={model}
MLFLOW_PORT={mlflow_port}
API_PORT={api_port}
API_BIND=127.0.0.1
API_ADMIN_TOKEN=
"""


class ManifestSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Readiness(ManifestSection):
    """The status of the default model; `reason` says what is missing, and what to do."""

    status: Literal["ready", "no_production_model", "promotion_not_approved", "mlflow_unavailable"]
    reason: str


class Coordinates(ManifestSection):
    """A production version: its origin, its metrics on held-out rows, and the verdicts of its gates."""

    name: str
    version: int
    uri: str
    source: str
    run_id: str | None
    metrics: dict[str, float]
    gates: dict[str, str]


class ServiceAddress(ManifestSection):
    """A container: its name on the lab's network, its URL on this machine, and its endpoints."""

    container: str
    url: str
    health: str
    endpoints: dict[str, str]


class Manifest(ManifestSection):
    schema_version: Literal[1] = 1
    readiness: Readiness
    default_model: str
    models: tuple[Coordinates, ...]
    services: dict[str, ServiceAddress]
    training: dict[str, str]
    environment: str


def make(client: MlflowRest, settings: Settings) -> Manifest:
    """Return the manifest of the lab as its registry is now."""
    default = settings.default_model_name
    try:
        roles = read_all_roles(client)
        records = [living(client, name, model_roles.production) for name, model_roles in sorted(roles.items())]
        models = tuple(_coordinates(client, record) for record in records if record is not None)
        readiness = _readiness(client, default, models)
    except RegistryFailedError as error:
        models, readiness = (), Readiness(status="mlflow_unavailable", reason=str(error))
    return Manifest(
        readiness=readiness,
        default_model=default,
        models=models,
        services=_services(settings),
        training={"container": "mlops", "profile": "mlops", "command": "docker compose --profile mlops up"},
        environment=ENVIRONMENT.format(model=default, mlflow_port=settings.mlflow_port, api_port=settings.api_port),
    )


def write(manifest: Manifest, folder: Path) -> Path:
    """Write a manifest into a folder, whole or not at all, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    descriptor, new = tempfile.mkstemp(dir=folder, prefix=".manifest-")  # two trainings may write at once
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text(manifest))
    Path(new).chmod(0o664)
    return Path(new).replace(path)


def text(manifest: Manifest) -> str:
    """Return a manifest as JSON, with sorted keys."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _readiness(client: MlflowRest, model: str, models: tuple[Coordinates, ...]) -> Readiness:
    for coordinates in models:
        if coordinates.name == model:
            return Readiness(status="ready", reason=f"version {coordinates.version} of {model!r} is production")
    versions = client.versions(model)
    if not versions:
        reason = f"no version of {model!r} was ever registered; train one: labstack train"
        return Readiness(status="no_production_model", reason=reason)
    newest = versions[0]
    if newest.tags.get(GATES_TAG) == FAILED:
        reason = f"version {newest.number} of {model!r} did not pass its gates"
    else:
        reason = f"version {newest.number} of {model!r} awaits: labstack promote {model} {newest.number}"
    return Readiness(status="promotion_not_approved", reason=reason)


def _coordinates(client: MlflowRest, record: Version) -> Coordinates:
    return Coordinates(
        name=record.model,
        version=record.number,
        uri=f"models:/{record.model}/{record.number}",
        source=record.source,
        run_id=record.run_id,
        metrics=dict(client.run_of(record).metrics),
        gates={tag.removeprefix(GATE_TAG): verdict for tag, verdict in record.tags.items() if tag.startswith(GATE_TAG)},
    )


def _services(settings: Settings) -> dict[str, ServiceAddress]:
    endpoints = {
        "predict": "POST /predict",
        "invocations": "POST /invocations",
        "infer": "POST /v2/models/{model}/infer",
        "docs": "GET /docs",
        "metrics": "GET /metrics",
        "ready": "GET /ready",
        "reload": "POST /admin/reload",
    }
    return {
        "api": ServiceAddress(
            container="api", url=without_credentials(settings.api_url), health="/health", endpoints=endpoints
        ),
        "mlflow": ServiceAddress(
            container="server_mlflow",
            url=without_credentials(settings.mlflow_public_url),
            health="/health",
            endpoints={"experiments": "GET /#/experiments", "models": "GET /#/models"},
        ),
    }

"""The few calls that the lab makes of MLflow's REST API, without the seconds and the memory of importing mlflow.

https://mlflow.org/docs/latest/api_reference/rest-api.html. Training, which logs runs and models, uses mlflow itself.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from labstack.errors import LabError
from labstack.settings import without_credentials

ARTIFACTS = "mlflow-artifacts:"
CHUNK_BYTES = 1 << 20


class RegistryError(LabError):
    """A call or a move is refused, or the registry's answer cannot be used; the text is for people."""


class RegistryFailedError(RegistryError):
    """The registry failed to answer, whatever it was asked."""


class RegistryUnreachableError(RegistryFailedError):
    """The registry does not answer at a URL, which is shown, so without credentials."""

    def __init__(self, url: str) -> None:
        super().__init__(f"The MLflow server at {url} cannot be reached.")


class NotThereError(RegistryError):
    """The registry has no such thing, or has it no more."""


@dataclass(frozen=True)
class Version:
    """A version's record. `source` says where its files are and, unlike its number, is never used twice.

    `created` is a moment of UTC in the form of ISO 8601.
    """

    model: str
    number: int
    status: str
    source: str
    run_id: str | None
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)
    created: str = field(default="", compare=False)


@dataclass(frozen=True)
class Model:
    """A registered model's aliases, each with its version's number, and its tags."""

    aliases: Mapping[str, int]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """A run's parameters and last metrics, and the experiment that it is in."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    experiment: str = ""


class MlflowRest:
    """A client that gives up soon. Every call raises RegistryError or one of its subclasses; threads may share it."""

    def __init__(self, url: str, timeout_seconds: float = 10, retries: int = 2) -> None:
        self.url = url
        self.shown_url = without_credentials(url)
        self._timeout = timeout_seconds
        self._session = requests.Session()
        retry = Retry(
            total=retries,
            backoff_factor=0.5,
            status_forcelist=(429, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))

    def models(self) -> dict[str, Model]:
        """Every registered model, by name."""
        found: dict[str, Model] = {}
        token = ""
        while True:
            page = self._call("GET", "registered-models/search", max_results=1000, page_token=token)
            found |= {model["name"]: _model(model) for model in page.get("registered_models", ())}
            token = page.get("next_page_token", "")
            if not token:
                return found

    def model(self, name: str) -> Model:
        """One registered model. Raises NotThereError when there is none of that name."""
        return _model(self._call("GET", "registered-models/get", name=name)["registered_model"])

    def set_alias(self, model: str, alias: str, number: int) -> None:
        self._call("POST", "registered-models/alias", name=model, alias=alias, version=str(number))

    def delete_alias(self, model: str, alias: str) -> None:
        self._call("DELETE", "registered-models/alias", name=model, alias=alias)

    def set_tag(self, model: str, tag: str, value: str) -> None:
        self._call("POST", "registered-models/set-tag", name=model, key=tag, value=value)

    def delete_tag(self, model: str, tag: str) -> None:
        self._call("DELETE", "registered-models/delete-tag", name=model, key=tag)

    def version(self, model: str, number: int) -> Version:
        """One version's record. Raises NotThereError when there is none, or none any more."""
        try:
            found = self._call("GET", "model-versions/get", name=model, version=str(number))["model_version"]
        except NotThereError as error:
            raise NotThereError(f"The model {model!r} has no version {number}.") from error
        return _version(found)

    def versions(self, model: str) -> list[Version]:
        """All of a model's versions, newest first; none when there is no such model."""
        found: list[Version] = []
        token = ""
        while True:
            mark = '"' if "'" in model else "'"  # MLflow undoes no doubling
            page = self._call(
                "GET", "model-versions/search", filter=f"name={mark}{model}{mark}", max_results=1000, page_token=token
            )
            found += map(_version, page.get("model_versions", ()))
            token = page.get("next_page_token", "")
            if not token:
                return sorted(found, key=lambda version: -version.number)

    def set_version_tag(self, model: str, number: int, tag: str, value: str) -> None:
        self._call("POST", "model-versions/set-tag", name=model, version=str(number), key=tag, value=value)

    def run(self, run_id: str) -> Run:
        """A run. Raises NotThereError when there is none."""
        run = self._call("GET", "runs/get", run_id=run_id)["run"]
        return Run(
            {param["key"]: param["value"] for param in run["data"].get("params", ())},
            {metric["key"]: float(metric["value"]) for metric in run["data"].get("metrics", ())},
            run["info"]["experiment_id"],
        )

    def run_of(self, version: Version) -> Run:
        """The run that a version is from; an empty one when it is from none, or from one that was deleted."""
        try:
            return self.run(version.run_id) if version.run_id else Run({}, {})
        except NotThereError:
            return Run({}, {})

    def download(self, model: str, number: int, name: str, folder: Path) -> None:
        """Put one of a version's files into a folder. Raises NotThereError when the version has no such file."""
        uri = self._call("GET", "model-versions/get-download-uri", name=model, version=str(number))["artifact_uri"]
        if not uri.startswith(ARTIFACTS):
            raise RegistryError(f"The files of {model!r} version {number} are at {uri}, not behind the MLflow server.")
        path = quote(f"{uri.removeprefix(ARTIFACTS).strip('/')}/{name}")
        with (folder / name).open("wb") as file:
            for chunk in self._stream(f"/api/2.0/mlflow-artifacts/artifacts/{path}"):
                file.write(chunk)

    def _stream(self, path: str) -> Iterator[bytes]:
        try:
            with self._session.get(self.url.rstrip("/") + path, stream=True, timeout=self._timeout) as answer:
                self._require_success(answer)
                yield from answer.iter_content(CHUNK_BYTES)
        except requests.RequestException as error:
            raise RegistryUnreachableError(self.shown_url) from error

    def _call(self, method: str, path: str, **fields: Any) -> dict[str, Any]:
        sent = {"params": fields} if method == "GET" else {"json": fields}
        try:
            url = f"{self.url.rstrip('/')}/api/2.0/mlflow/{path}"
            answer = self._session.request(method, url, timeout=self._timeout, **sent)  # type: ignore[arg-type]
        except requests.RequestException as error:
            raise RegistryUnreachableError(self.shown_url) from error
        self._require_success(answer)
        try:
            value = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RegistryFailedError(f"What answers at {self.shown_url} is not MLflow.")
        return value

    def _require_success(self, answer: requests.Response) -> None:
        if answer.ok:
            return
        try:
            fault = answer.json()
            code, message = fault["error_code"], str(fault["message"])
        except (ValueError, KeyError, TypeError):
            code, message = "", f"The MLflow server at {self.shown_url} refuses, with status {answer.status_code}."
        if code == "RESOURCE_DOES_NOT_EXIST":  # a 404 by itself may come from whatever else answers there
            raise NotThereError(message)
        raise (RegistryFailedError if answer.status_code >= 500 else RegistryError)(message)


def _version(found: Mapping[str, Any]) -> Version:
    return Version(
        found["name"],
        int(found["version"]),
        found["status"],
        found["source"],
        found.get("run_id") or None,
        {tag["key"]: tag.get("value", "") for tag in found.get("tags", ())},
        datetime.fromtimestamp(int(found["creation_timestamp"]) // 1000, UTC).isoformat(),
    )


def _model(found: Mapping[str, Any]) -> Model:
    return Model(
        {alias["alias"]: int(alias["version"]) for alias in found.get("aliases", ())},
        {tag["key"]: tag.get("value", "") for tag in found.get("tags", ())},
    )

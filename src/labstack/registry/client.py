"""The few calls of MLflow's REST API that the lab needs, without the seconds and the memory of importing mlflow.

https://mlflow.org/docs/latest/api_reference/rest-api.html. Training, which logs runs and models, uses mlflow itself.

Every answer has one deadline and a size limit. An answer that is not well-formed is an error.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labstack.deadline import BoundedAdapter, seconds_left, within
from labstack.errors import LabError
from labstack.settings import without_credentials

ARTIFACTS = "mlflow-artifacts:"
CHUNK_BYTES = 1 << 16
ANSWER_BYTES = 16 << 20  # of one answer, a page of a thousand models or versions
PAGES = 1_000  # of one list
REDIRECTS = 5
RETRY_STATUSES = (429, 502, 503, 504)  # of a server that may answer a moment later
PAUSE_SECONDS = 0.5  # before the second retry; the first follows at once, later ones after longer pauses
STRICT = ConfigDict(strict=True)  # an answer with values of other types is not from MLflow


class RegistryError(LabError):
    """A call or a move is rejected, or the registry's answer cannot be used."""


class RegistryFailedError(RegistryError):
    """The registry failed to answer, for a reason that is not in the call."""


class RegistryUnreachableError(RegistryFailedError):
    """The registry does not answer at a URL, which is shown to people, so it must be without credentials."""

    def __init__(self, url: str) -> None:
        super().__init__(f"The MLflow server at {url} cannot be reached.")


class NotThereError(RegistryError):
    """The registry does not have what was asked for, or no longer."""


class TooLargeError(RegistryError):
    """A file of a version is larger than the limit."""


@dataclass(frozen=True, config=STRICT)
class Version:
    """A version's record. `source` says where its files are and, unlike its number, is never used twice.

    `created` is a UTC time in ISO 8601.
    """

    model: str
    number: int
    status: str
    source: str
    run_id: str | None
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)
    created: str = field(default="", compare=False)


@dataclass(frozen=True, config=STRICT)
class Model:
    """A registered model's aliases, each with its version's number, and its tags."""

    aliases: Mapping[str, int]
    tags: Mapping[str, str]


@dataclass(frozen=True, config=STRICT)
class Run:
    """A run's parameters and last metrics, and the id of its experiment."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    experiment: str = ""


class MlflowRest:
    """A client with a short timeout: each attempt of a call may take `timeout_seconds` in all, slow bytes included.

    Every call raises RegistryError or a subclass. Threads may share the client.
    """

    def __init__(self, url: str, timeout_seconds: float = 10, retries: int = 2) -> None:
        self.url = url
        self.shown_url = without_credentials(url)
        self._timeout = timeout_seconds
        self._retries = retries
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"  # no small answer becomes a large one
        self._session.max_redirects = REDIRECTS
        self._session.hooks["response"].append(_drop_body_of_redirect)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, BoundedAdapter())
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))

    def models(self) -> dict[str, Model]:
        """Every registered model, by name."""
        with self._understood():
            pages = self._pages("registered_models", "registered-models/search")
            return {_text(model["name"]): _model(model) for model in pages}

    def model(self, name: str) -> Model:
        """One registered model. Raises NotThereError when there is none of that name."""
        with self._understood():
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
            with self._understood():
                answer = self._call("GET", "model-versions/get", name=model, version=str(number))
                return _version(answer["model_version"])
        except NotThereError as error:
            raise NotThereError(f"The model {model!r} has no version {number}.") from error

    def versions(self, model: str) -> list[Version]:
        """All of a model's versions, newest first; none when there is no such model."""
        mark = '"' if "'" in model else "'"  # MLflow does not unescape doubled quotes
        with self._understood():
            pages = self._pages("model_versions", "model-versions/search", filter=f"name={mark}{model}{mark}")
            return sorted(map(_version, pages), key=lambda version: -version.number)

    def set_version_tag(self, model: str, number: int, tag: str, value: str) -> None:
        self._call("POST", "model-versions/set-tag", name=model, version=str(number), key=tag, value=value)

    def run(self, run_id: str) -> Run:
        """One run. Raises NotThereError when there is none."""
        with self._understood():
            run = self._call("GET", "runs/get", run_id=run_id)["run"]
            return Run(
                {param["key"]: param["value"] for param in run["data"].get("params", ())},
                {metric["key"]: float(metric["value"]) for metric in run["data"].get("metrics", ())},
                run["info"]["experiment_id"],
            )

    def run_of(self, version: Version) -> Run:
        """The run that made a version; an empty one when there is none, or it was deleted."""
        try:
            return self.run(version.run_id) if version.run_id else Run({}, {})
        except NotThereError:
            return Run({}, {})

    def download(self, model: str, number: int, name: str, folder: Path, max_bytes: int, seconds: float) -> int:
        """Put one of a version's files into a folder, within so many seconds; return its size in bytes.

        Raises NotThereError when the version has no such file, and TooLargeError.
        """
        with within(seconds):
            with self._understood():
                answer = self._call("GET", "model-versions/get-download-uri", name=model, version=str(number))
                uri = str(answer["artifact_uri"])
            if not uri.startswith(ARTIFACTS):
                raise RegistryError(
                    f"The files of {model!r} version {number} are at {uri}, not behind the MLflow server."
                )
            path = quote(f"{uri.removeprefix(ARTIFACTS).strip('/')}/{name}")
            size = 0
            with (folder / name).open("wb") as file:
                for chunk in self._stream(f"/api/2.0/mlflow-artifacts/artifacts/{path}"):
                    size += len(chunk)
                    if size > max_bytes:
                        raise TooLargeError(
                            f"{name} of {model!r} version {number} holds more than {max_bytes:,} bytes."
                        )
                    file.write(chunk)
            return size

    def _stream(self, path: str) -> Iterator[bytes]:
        try:
            url = self.url.rstrip("/") + path
            with self._session.get(url, stream=True, timeout=min(self._timeout, seconds_left())) as answer:
                if not answer.ok:
                    self._refuse(answer.status_code, _read(answer, ANSWER_BYTES))
                yield from answer.iter_content(CHUNK_BYTES)
        except (requests.RequestException, TimeoutError) as error:
            raise RegistryUnreachableError(self.shown_url) from error

    def _pages(self, items: str, path: str, **fields: Any) -> Iterator[Any]:
        """Yield the items of a search, page after page."""
        token = ""
        for _ in range(PAGES):
            page = self._call("GET", path, max_results=1000, page_token=token, **fields)
            yield from page.get(items, ())
            token = page.get("next_page_token", "")
            if not token:
                return
        raise self._not_mlflow()

    def _call(self, method: str, path: str, **fields: Any) -> dict[str, Any]:
        sent = {"params": fields} if method == "GET" else {"json": fields}
        url = f"{self.url.rstrip('/')}/api/2.0/mlflow/{path}"
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                status, body = self._attempt(method, url, sent)
            except (requests.RequestException, TimeoutError) as error:
                if last or seconds_left() <= 0:
                    raise RegistryUnreachableError(self.shown_url) from error
            else:
                if 200 <= status < 300:
                    return self._json(body)
                if last or status not in RETRY_STATUSES:
                    self._refuse(status, body)
            time.sleep(max(min(PAUSE_SECONDS * (2**attempt - 1), seconds_left()), 0))
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, method: str, url: str, sent: Mapping[str, Any]) -> tuple[int, bytes]:
        """Make one attempt of a call; return the status and body. Raises RequestException or TimeoutError."""
        if seconds_left() <= 0:
            raise TimeoutError
        with (
            within(self._timeout),
            self._session.request(method, url, stream=True, timeout=seconds_left(), **sent) as answer,
        ):
            body = _read(answer, ANSWER_BYTES)
            if body is None:
                raise self._not_mlflow()
            return answer.status_code, body

    def _json(self, body: bytes) -> dict[str, Any]:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._not_mlflow()
        return value

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Raise RegistryFailedError where a field of an answer is missing, or of another type."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
            raise self._not_mlflow() from error

    def _not_mlflow(self) -> RegistryFailedError:
        return RegistryFailedError(f"What answers at {self.shown_url} is not MLflow.")

    def _refuse(self, status: int, body: bytes | None) -> None:
        """Raise the error that an answer without success means."""
        try:
            fields = json.loads(body or b"")
            code, message = fields["error_code"], str(fields["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            code, message = "", f"The MLflow server at {self.shown_url} refuses, with status {status}."
        if code == "RESOURCE_DOES_NOT_EXIST":  # a 404 alone may come from another server at this URL
            raise NotThereError(message)
        raise (RegistryFailedError if status >= 500 else RegistryError)(message)


def _drop_body_of_redirect(answer: requests.Response, **_: Any) -> None:
    """Leave the body of a redirect unread: requests would read all of it, and keep it."""
    if answer.is_redirect:
        answer._content = b""  # noqa: SLF001  # requests offers no other way
        answer.close()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text is needed")
    return value


def _read(answer: requests.Response, max_bytes: int) -> bytes | None:
    """Return an answer's body; None when it is larger than the limit."""
    body = bytearray()
    for chunk in answer.iter_content(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def _version(fields: Mapping[str, Any]) -> Version:
    return Version(
        fields["name"],
        int(fields["version"]),
        fields["status"],
        fields["source"],
        fields.get("run_id") or None,
        {tag["key"]: tag.get("value", "") for tag in fields.get("tags", ())},
        datetime.fromtimestamp(int(fields["creation_timestamp"]) // 1000, UTC).isoformat(),
    )


def _model(fields: Mapping[str, Any]) -> Model:
    return Model(
        {alias["alias"]: int(alias["version"]) for alias in fields.get("aliases", ())},
        {tag["key"]: tag.get("value", "") for tag in fields.get("tags", ())},
    )

"""A client of the API: it asks for one prediction, or for a reload after a role moved.

`python -m labstack.api_client [--shown-at URL] [MODEL]` asks for one prediction.

It prints a curl command that repeats the request, then the answer. MODEL is by default the default model.
`--shown-at` is the API's address outside its container, for that curl command.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote

import click
import requests

from labstack.errors import LabError
from labstack.settings import Settings, load, reached_at, without_credentials

CONNECT_SECONDS = 3.0
RELOAD_SECONDS = 35.0  # more than the API takes by default, RELOAD_TIMEOUT_SECONDS


class NoPredictionError(LabError):
    """The API gave no prediction; the text says why."""


@click.command()
@click.option("--shown-at")
@click.argument("model", required=False)
def main(shown_at: str | None, model: str | None) -> None:
    """Ask the API for one prediction."""
    try:
        click.echo(ask(load(), model, shown_at))
    except NoPredictionError as error:
        sys.exit(f"No prediction: {error}")


def ask(settings: Settings, model: str | None, shown_at: str | None = None) -> str:
    """Predict the model's sample: a curl command, and the answer on the next line. Raises NoPredictionError."""
    url = f"http://{reached_at(settings.api_host)}:{settings.api_port}"
    deadline = time.monotonic() + 2 * settings.follow_interval_seconds  # it may be loading a version
    while _get(f"{url}/ready")[0] == 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    path = f"/models/{quote(model)}/predict" if model else "/predict"
    status, answer = _get(f"{url}/model-info" + (f"?model={quote(model)}" if model else ""))
    if status == 200:
        body = json.dumps(answer["sample"]["input"])
        status, answer = _get(url + path, body)
    if status != 200:
        raise NoPredictionError(answer["detail"])
    return f"curl {shown_at or url}{path} -H 'Content-Type: application/json' -d '{body}'\n{json.dumps(answer)}"


def notify_api(settings: Settings) -> str:
    """Ask the API to reload its roles; the result in one line. An API that misses this follows on its own later."""
    if os.environ.get("CI"):
        return "the API was not notified, as CI is set; it reads the registry again within seconds"
    url = f"{settings.api_url.rstrip('/')}/admin/reload"
    token = settings.api_admin_token
    headers = {"X-Admin-Token": token.get_secret_value()} if token else {}
    shown = without_credentials(settings.api_url)
    try:
        answer = requests.post(url, headers=headers, timeout=(CONNECT_SECONDS, RELOAD_SECONDS))
    except requests.RequestException:
        return f"the API at {shown} cannot be reached, and reads the registry when it is back"
    if answer.ok:
        return f"the API at {shown} has reloaded"
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {answer.status_code}"
    return f"the API at {shown} has not reloaded yet: {detail}"


def _get(url: str, body: str | None = None) -> tuple[int, Any]:
    """Send a GET, or a POST with a JSON body; return the status and the JSON of the answer."""
    request = urllib.request.Request(  # noqa: S310  # our own address
        url, body.encode() if body else None, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except ValueError as error:
        raise NoPredictionError(f"The server at {url} is not the API.") from error
    except OSError as error:
        raise NoPredictionError(f"{url} does not answer ({error}). Start the lab: ./run_all.sh up") from error


if __name__ == "__main__":
    main()

"""The API, as a client sees it: one prediction, and a reload after a role moved.

`python -m labstack.api_client [--shown-at URL] [MODEL]` asks for one prediction.

It prints the curl line to repeat it, then the answer. By default the default model is asked, at the address of
the settings; `--shown-at` is where the API is reached from outside its container.
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

RELOAD_SECONDS = 35.0


class NoPredictionError(LabError):
    """The API gives no prediction; the text says why."""


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
    """The curl line of a prediction for the model's sample, and the answer below it. Raises NoPredictionError."""
    url = f"http://{reached_at(settings.api_host)}:{settings.api_port}"
    deadline = time.monotonic() + 2 * settings.follow_interval_seconds  # it may just be following
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


def tell_api(settings: Settings) -> str:
    """Have the API look at the registry now; what came of it, in a line. One that is away follows by itself later."""
    if os.environ.get("CI"):
        return "the API is not told, as CI is set; it looks by itself every few seconds"
    url = f"{settings.api_url.rstrip('/')}/admin/reload"
    token = settings.api_admin_token
    headers = {"X-Admin-Token": token.get_secret_value()} if token else {}
    shown = without_credentials(settings.api_url)
    try:
        answer = requests.post(url, headers=headers, timeout=(3, RELOAD_SECONDS))
    except requests.RequestException:
        return f"the API at {shown} cannot be reached, and looks by itself when it is back"
    if answer.ok:
        return f"the API at {shown} follows"
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {answer.status_code}"
    return f"the API at {shown} does not follow yet: {detail}"


def _get(url: str, body: str | None = None) -> tuple[int, Any]:
    """Status and JSON of the answer to a GET, or to a POST of a JSON body."""
    request = urllib.request.Request(  # noqa: S310  # our own address
        url, body.encode() if body else None, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except ValueError as error:
        raise NoPredictionError(f"What answers at {url} is not the API.") from error
    except OSError as error:
        raise NoPredictionError(f"{url} does not answer ({error}). Start the lab: ./run_all.sh up") from error


if __name__ == "__main__":
    main()

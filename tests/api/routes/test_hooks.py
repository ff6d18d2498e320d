"""MLflow's webhook, signed by MLflow's own code."""

import json
import time
from typing import Any

import pytest
from flask.testing import FlaskClient
from mlflow.webhooks.delivery import _generate_hmac_signature

from labstack.api.app import create_app
from labstack.api.serving.control import Control
from tests.conftest import Lab

SECRET = "a-secret-of-the-hook"  # noqa: S105
BODY = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "iris"}})


@pytest.fixture
def control(client: FlaskClient) -> Control:
    control: Control = client.application.extensions["labstack"].control
    return control


@pytest.fixture
def client(lab: Lab) -> FlaskClient:
    app = create_app(lab.settings(mlflow_webhook_secret=SECRET))
    app.extensions["labstack"].control.reset()
    return app.test_client()


def deliver(
    client: FlaskClient, delivery: str = "one", *, age: float = 0, at: str = "", body: str = BODY, **headers: str
) -> Any:
    """Send a delivery of this age in seconds, or with this timestamp; return the answer."""
    timestamp = at or str(int(time.time() - age))
    signed = _generate_hmac_signature(SECRET, delivery, timestamp, BODY)
    sent = {"X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": timestamp, "X-MLflow-Signature": signed}
    return client.post("/hooks/mlflow", data=body, headers=sent | headers, content_type="application/json")


def test_a_delivery_wakes_the_followers(client: FlaskClient, control: Control) -> None:
    answer = deliver(client)
    assert (answer.status_code, answer.json) == (202, {"generation": 1})
    assert control.desired() == 1


def test_a_repeated_delivery_changes_nothing(client: FlaskClient, control: Control) -> None:
    assert [deliver(client, name).status_code for name in ("one", "one", "two", "one")] == [202, 200, 202, 200]
    assert control.desired() == 2


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"body": BODY + " "}, "webhook-signature"),
        ({"X-MLflow-Signature": ""}, "webhook-signature"),
        ({"X-MLflow-Signature": "v1,ÿ"}, "webhook-signature"),
        ({"X-MLflow-Delivery-Id": "other"}, "webhook-signature"),
        ({"X-MLflow-Timestamp": "1"}, "webhook-signature"),
        ({"age": 301}, "webhook-timestamp"),
        ({"age": -301}, "webhook-timestamp"),
    ],
)
def test_a_wrong_signature_or_timestamp_is_refused(
    client: FlaskClient, control: Control, changes: dict[str, Any], kind: str
) -> None:
    answer = deliver(client, **changes)
    assert (answer.status_code, json.loads(answer.data)["type"]) == (403, f"urn:labstack:problem:{kind}")
    assert control.desired() == 0


@pytest.mark.parametrize(
    "at", [pytest.param("9" * 5000, id="long"), "²", "-1", "1e9", "1.5", "nan", " ", "0x10", "1_000"]
)
def test_a_timestamp_that_is_no_number_is_refused(client: FlaskClient, control: Control, at: str) -> None:
    timestamp = at.encode().decode("latin-1")  # as WSGI hands headers over
    assert deliver(client, at=timestamp).status_code == 403
    assert control.desired() == 0


def test_a_delivery_id_may_be_long(client: FlaskClient, control: Control) -> None:
    assert [deliver(client, "x" * 8000).status_code for _ in range(2)] == [202, 200]


def test_without_a_secret_the_hook_is_off(lab: Lab) -> None:
    assert create_app(lab.settings()).test_client().post("/hooks/mlflow", data=BODY).status_code == 404

"""MLflow's registry webhook, which makes the workers read the registry before their next poll.

The signature is that of https://mlflow.org/docs/latest/ml/webhooks/: `v1,` and the base64 of the HMAC-SHA256, under
the webhook's secret, of delivery id, timestamp and body, joined by dots.
"""

import base64
import hashlib
import hmac
import time
from typing import Any

from flask import Blueprint, request

from labstack.api.http.operations import HOOK, Operation
from labstack.api.http.request import body, service, whole_number
from labstack.api.problems import Problem

OLDEST_SECONDS = 300

blueprint = Blueprint("hooks", __name__)


@blueprint.post("/hooks/mlflow")
@Operation(HOOK)
def mlflow_webhook() -> tuple[dict[str, Any], int]:
    """Have the workers read the registry soon, as MLflow reports a change; 202, or 200 for a repeated delivery."""
    secret = service().settings.mlflow_webhook_secret
    if secret is None:
        raise Problem(404, "webhook-off", "The webhook is off: MLFLOW_WEBHOOK_SECRET is not set.")
    delivery = request.headers.get("X-MLflow-Delivery-Id", "")
    timestamp = request.headers.get("X-MLflow-Timestamp", "")
    signed = b".".join((delivery.encode("latin-1"), timestamp.encode("latin-1"), body()))
    digest = hmac.new(secret.get_secret_value().encode(), signed, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    signature = request.headers.get("X-MLflow-Signature", "").encode("latin-1")
    if not hmac.compare_digest(signature, expected):
        raise Problem(403, "webhook-signature", "The signature was not made with MLFLOW_WEBHOOK_SECRET.")
    seconds = whole_number(timestamp)
    if seconds is None or abs(time.time() - seconds) > OLDEST_SECONDS:
        raise Problem(403, "webhook-timestamp", f"The timestamp is more than {OLDEST_SECONDS} seconds from now.")
    if not service().control.first(delivery, OLDEST_SECONDS):
        return {"duplicate": True}, 200
    return {"generation": service().control.raise_desired()}, 202

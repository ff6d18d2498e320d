"""MLflow's registry webhook: an accelerator, that makes the workers look at the registry at once.

Signed as https://mlflow.org/docs/latest/ml/webhooks/ says: `v1,` and the base64 of the HMAC-SHA256, under the hook's
secret, of delivery id, timestamp and body, joined by dots.
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
    """Look at the registry soon, as MLflow says that something was changed there; 202, or 200 for what came before."""
    secret = service().settings.mlflow_webhook_secret
    if secret is None:
        raise Problem(404, "webhook-off", "The webhook is off: MLFLOW_WEBHOOK_SECRET is not set.")
    delivery = request.headers.get("X-MLflow-Delivery-Id", "")
    timestamp = request.headers.get("X-MLflow-Timestamp", "")
    signed = b".".join((delivery.encode("latin-1"), timestamp.encode("latin-1"), body()))
    digest = hmac.new(secret.get_secret_value().encode(), signed, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    sent = request.headers.get("X-MLflow-Signature", "").encode("latin-1")
    if not hmac.compare_digest(sent, expected):
        raise Problem(403, "webhook-signature", "The signature is not that of MLFLOW_WEBHOOK_SECRET.")
    moment = whole_number(timestamp)
    if moment is None or abs(time.time() - moment) > OLDEST_SECONDS:
        raise Problem(403, "webhook-timestamp", f"The delivery is not of the last {OLDEST_SECONDS} seconds.")
    if not service().control.first(delivery, OLDEST_SECONDS):
        return {"duplicate": True}, 200
    return {"generation": service().control.raise_desired()}, 202

"""Authentication of operators, who move roles and use data: by a token or, where none is set, by their machine.

Without a token only requests from this machine are answered.
"""

import hashlib
import hmac
import ipaddress
import math
import time
from urllib.parse import urlsplit

import structlog
from flask import request
from pydantic import SecretStr
from werkzeug.wrappers import Response

from labstack.api.http.request import service
from labstack.api.problems import Problem
from labstack.settings import LOOPBACK

WRONG_TOKENS = 10  # from one network in a period, for all workers together; more are answered with 429
WRONG_TOKENS_SECONDS = 60.0
FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Real-IP")  # from proxies, which send other machines' requests
COOKIE = "labstack_operator"
SIGNED_IN_SECONDS = 8 * 3600

log = structlog.get_logger(__name__)


def require_operator() -> None:
    """Raise Problem, 403 or 429, unless an operator sent the request. Runs before the request."""
    token = service().settings.api_admin_token
    if token is None:
        _require_this_machine()
        _require_own_page()
        return
    sent = request.headers.get("X-Admin-Token", "").encode("latin-1")  # the encoding of headers in WSGI
    _require_token(sent, token, "Send the operators' token as X-Admin-Token; it is API_ADMIN_TOKEN in .env.")


def is_signed_in() -> bool:
    """Return True when a page may show what only operators see: after a sign-in, or without a token on this machine."""
    return not refusal()


def refusal() -> str:
    """Return the reason why a page hides what only operators see; empty when the caller is an operator."""
    try:
        require_signed_in()
    except Problem as problem:
        return problem.detail
    return ""


def require_signed_in() -> None:
    """Raise Problem, 403, unless the browser that sent the request is an operator's."""
    token = service().settings.api_admin_token
    if token is None:
        _require_this_machine()
    if token is None or request.method == "POST":
        _require_own_page()
    if token is None:
        return
    until, _, signature = request.cookies.get(COOKIE, "").partition(".")
    if not (hmac.compare_digest(signature.encode(), _signature(until, token).encode()) and float(until) > time.time()):
        raise Problem(403, "not-an-operator", "Sign in with the operators' token first; it is API_ADMIN_TOKEN in .env.")


def sign_in(answer: Response, sent: str) -> Response:
    """Add a cookie to an answer that signs a browser in for 8 hours. Raises Problem, 403 or 429, for a wrong token."""
    token = service().settings.api_admin_token
    if token is not None:
        _require_own_page()
        _require_token(sent.encode(), token, "This is not the operators' token; it is API_ADMIN_TOKEN in .env.")
        until = str(int(time.time() + SIGNED_IN_SECONDS))
        answer.set_cookie(
            COOKIE,
            f"{until}.{_signature(until, token)}",
            max_age=SIGNED_IN_SECONDS,
            path="/console",
            secure=request.is_secure,
            httponly=True,
            samesite="Strict",
        )
    return answer


def sign_out(answer: Response) -> Response:
    """Add to an answer that the browser deletes the cookie."""
    answer.delete_cookie(COOKIE, path="/console")
    return answer


def _signature(until: str, token: SecretStr) -> str:
    """Return the signature of a time, in seconds since 1970, under the operators' token."""
    return hmac.new(token.get_secret_value().encode(), f"console {until}".encode(), hashlib.sha256).hexdigest()


def _require_token(sent: bytes, token: SecretStr, message: str) -> None:
    """Raise Problem for a wrong token: 403, or 429 when too many wrong ones came from the same network.

    The right one is never counted or rejected, even when wrong ones come from the same network.
    """
    if hmac.compare_digest(sent, token.get_secret_value().encode()):
        return
    if sent:
        _count_wrong_token()
    raise Problem(403, "not-an-operator", message)


def _count_wrong_token() -> None:
    """Raise Problem, 429, when there are too many. An IPv6 /64 counts as one network, as one machine may own it."""
    address = _ip(request.remote_addr)
    network = address.packed[:8] if address else b""
    try:
        count, seconds_left = service().control.count_wrong_token(network, WRONG_TOKENS_SECONDS)
    except OSError as error:  # the token is rejected even so
        log.error("wrong token not counted", error=str(error))
        return
    if count > WRONG_TOKENS:
        text = f"More than {WRONG_TOKENS} wrong tokens came from {request.remote_addr} within a minute."
        raise Problem(429, "too-many-wrong-tokens", text, retry_after=math.ceil(seconds_left))


def _require_this_machine() -> None:
    """Raise Problem, 403, for a request that another machine may have sent. Called where no token is set.

    The address of the connection's peer decides; no header changes it. Host must name this machine too: otherwise a
    foreign page could reach the API through a name that resolves to loopback (DNS rebinding).
    """
    remedy = "Set API_ADMIN_TOKEN in .env, as ./run_all.sh does, and restart the API."
    host = service().settings.api_host
    if host not in LOOPBACK:
        text = f"The operators' endpoints are off: the API listens on {host}, and API_ADMIN_TOKEN is not set."
        raise Problem(403, "operators-off", f"{text} {remedy}")
    address = _ip(request.remote_addr)
    proxy_header = next((name for name in FORWARDED if name in request.headers), None)
    if address is None or not address.is_loopback:
        reason = f"this one comes from {request.remote_addr or 'no address'}"
    elif proxy_header:
        reason = f"this one was forwarded, as its header {proxy_header} says"
    elif urlsplit(f"//{request.host}").hostname not in LOOPBACK:
        reason = f"this one was sent to {request.host!r}"
    else:
        return
    text = f"Without API_ADMIN_TOKEN only requests from this machine are answered; {reason}."
    raise Problem(403, "not-an-operator", f"{text} {remedy}")


def _require_own_page() -> None:
    """Raise Problem, 403, for a request that another site's page made a browser send."""
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        raise Problem(403, "not-an-operator", "The request comes from another page.")


def _ip(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address of a peer, as IPv4 where IPv6 maps it; None where there is none, as for a unix socket."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return (address.ipv4_mapped if address.version == 6 else None) or address

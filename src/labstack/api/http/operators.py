"""Who may move roles and touch data: callers that send the operators' token or, without one, this machine's own."""

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

WRONG_TOKENS = 10  # from one network, that all workers together answer with 403 in a period, and the others with 429
WRONG_TOKENS_SECONDS = 60.0
FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Real-IP")  # what proxies add; the peer is not the caller then
COOKIE = "labstack_operator"
SIGNED_IN_SECONDS = 8 * 3600

log = structlog.get_logger(__name__)


def require_operator() -> None:
    """Before a request that only operators may send. Raises Problem, 403 or 429, for all others."""
    token = service().settings.api_admin_token
    if token is None:
        _require_this_machine()
        _require_own_page()
        return
    sent = request.headers.get("X-Admin-Token", "").encode("latin-1")  # as WSGI hands headers over
    _require_right(sent, token, "Send the operators' token as X-Admin-Token; it is API_ADMIN_TOKEN in .env.")


def is_signed_in() -> bool:
    """Whether a page may show what only operators see: after a sign-in, or without a token on this machine."""
    return not refusal()


def refusal() -> str:
    """Why a page shows nothing of what only operators see; empty where it may."""
    try:
        require_signed_in()
    except Problem as problem:
        return problem.detail
    return ""


def require_signed_in() -> None:
    """Before what only operators may do on a page. Raises Problem, 403, for all others."""
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
    """An answer that makes a browser an operator's for some hours. Raises Problem, 403 or 429, for a wrong token."""
    token = service().settings.api_admin_token
    if token is not None:
        _require_own_page()
        _require_right(sent.encode(), token, "This is not the operators' token; it is API_ADMIN_TOKEN in .env.")
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
    """An answer that ends that."""
    answer.delete_cookie(COOKIE, path="/console")
    return answer


def _signature(until: str, token: SecretStr) -> str:
    """What only who knows the token can say of a moment."""
    return hmac.new(token.get_secret_value().encode(), f"console {until}".encode(), hashlib.sha256).hexdigest()


def _require_right(sent: bytes, token: SecretStr, refused: str) -> None:
    """Raise Problem for a token that is not the operators': 403, or 429 where too many wrong ones came from.

    The right one is never counted or refused, whatever else comes from its address.
    """
    if hmac.compare_digest(sent, token.get_secret_value().encode()):
        return
    if sent:
        _count_wrong_token()
    raise Problem(403, "not-an-operator", refused)


def _count_wrong_token() -> None:
    """Raise Problem, 429, when this one is too many. All of an IPv6 /64, which one machine may have, counts as one."""
    address = _ip(request.remote_addr)
    network = address.packed[:8] if address else b""
    try:
        count, left = service().control.count_wrong_token(network, WRONG_TOKENS_SECONDS)
    except OSError as error:  # a wrong token is refused all the same
        log.error("wrong token not counted", error=str(error))
        return
    if count > WRONG_TOKENS:
        text = f"More than {WRONG_TOKENS} wrong tokens came from {request.remote_addr} within a minute."
        raise Problem(429, "too-many-wrong-tokens", text, retry_after=math.ceil(left))


def _require_this_machine() -> None:
    """Refuse, where there is no token, what other machines may have sent. Raises Problem, 403.

    The address of the connection's peer decides; no header changes it. Host must name this machine too: otherwise a
    foreign page could reach the API through a name that resolves to loopback (DNS rebinding).
    """
    turn_on = "Set API_ADMIN_TOKEN in .env, as ./run_all.sh does, and start the API anew."
    host = service().settings.api_host
    if host not in LOOPBACK:
        text = f"The operators' endpoints are off: the API listens on {host}, and API_ADMIN_TOKEN is not set."
        raise Problem(403, "operators-off", f"{text} {turn_on}")
    address = _ip(request.remote_addr)
    by_proxy = next((name for name in FORWARDED if name in request.headers), None)
    if address is None or not address.is_loopback:
        what = f"this one comes from {request.remote_addr or 'no address'}"
    elif by_proxy:
        what = f"this one was forwarded, as its header {by_proxy} says"
    elif urlsplit(f"//{request.host}").hostname not in LOOPBACK:
        what = f"this one was sent to {request.host!r}"
    else:
        return
    text = f"Without API_ADMIN_TOKEN only this machine's own calls are answered; {what}."
    raise Problem(403, "not-an-operator", f"{text} {turn_on}")


def _require_own_page() -> None:
    """Refuse what a foreign page makes a browser send. Raises Problem, 403."""
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        raise Problem(403, "not-an-operator", "The request comes from another page.")


def _ip(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address of a peer, as IPv4 where IPv6 maps one; None for what is none, such as a unix socket's."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return (address.ipv4_mapped if address.version == 6 else None) or address

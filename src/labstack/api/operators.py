"""Who may move roles and touch data: whoever sends the operators' token or, without one, this machine's own calls."""

import hashlib
import hmac
import time
from urllib.parse import urlsplit

from flask import request
from pydantic import SecretStr
from werkzeug.wrappers import Response

from labstack.api.problems import Problem
from labstack.api.request import service
from labstack.settings import LOOPBACK

WRONG_TOKENS = 10  # from one address, that each worker hears within the time, before it hears no more from there
WRONG_TOKENS_SECONDS = 60.0
COOKIE = "labstack_operator"
SIGNED_IN_SECONDS = 8 * 3600


class WrongTokens:
    """How many wrong tokens came from each address lately: each worker's own count, bounded in size."""

    def __init__(self) -> None:
        self._since = 0.0
        self._heard: dict[str, int] = {}

    def count(self, address: str, wrong: int = 0) -> int:
        """The wrong tokens from an address in this minute, with these."""
        now = time.monotonic()
        if now - self._since > WRONG_TOKENS_SECONDS or len(self._heard) > 10_000:
            self._since, self._heard = now, {}
        self._heard[address] = self._heard.get(address, 0) + wrong
        return self._heard[address]


wrong_tokens = WrongTokens()


def require_operator() -> None:
    """Before a request that only operators may send. Raises Problem for whoever is none."""
    token = service().settings.api_admin_token
    if token is None:
        _require_own_page()
        return
    sent = request.headers.get("X-Admin-Token", "").encode("latin-1")  # as WSGI hands headers over
    if not _is_right(sent, token):
        raise Problem(
            403, "not-an-operator", "Send the operators' token as X-Admin-Token; it is API_ADMIN_TOKEN in .env."
        )


def is_signed_in() -> bool:
    """Whether a page may show what only operators see: after a sign-in, or without a token on this machine."""
    try:
        require_signed_in()
    except Problem:
        return False
    return True


def require_signed_in() -> None:
    """Before what only operators may do on a page. Raises Problem for whoever is none."""
    token = service().settings.api_admin_token
    if token is None or request.method == "POST":
        _require_own_page(anywhere=token is not None)
    if token is None:
        return
    until, _, signature = request.cookies.get(COOKIE, "").partition(".")
    if not (hmac.compare_digest(signature.encode(), _signature(until, token).encode()) and float(until) > time.time()):
        raise Problem(403, "not-an-operator", "Sign in with the operators' token first; it is API_ADMIN_TOKEN in .env.")


def sign_in(answer: Response, sent: str) -> Response:
    """An answer that makes a browser an operator's for some hours. Raises Problem for a wrong token."""
    token = service().settings.api_admin_token
    if token is not None:
        _require_own_page(anywhere=True)
        if not _is_right(sent.encode(), token):
            raise Problem(403, "not-an-operator", "This is not the operators' token; it is API_ADMIN_TOKEN in .env.")
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


def _is_right(sent: bytes, token: SecretStr) -> bool:
    """Whether a token is the operators'. Raises Problem where too many wrong ones came from."""
    address = request.remote_addr or ""
    if wrong_tokens.count(address) >= WRONG_TOKENS:
        wait = f"Wait for {WRONG_TOKENS_SECONDS:g} seconds."
        raise Problem(429, "too-many-wrong-tokens", f"{WRONG_TOKENS} wrong tokens came from {address}. {wait}")
    right = hmac.compare_digest(sent, token.get_secret_value().encode())
    wrong_tokens.count(address, 1 if sent and not right else 0)
    return right


def _require_own_page(anywhere: bool = False) -> None:
    """Refuse what a foreign page makes a browser send; and, without a token, what other machines do."""
    host = urlsplit(f"//{request.host}").hostname
    origin = request.headers.get("Origin")
    if (host not in LOOPBACK and not anywhere) or (origin is not None and origin.partition("://")[2] != request.host):
        here = (
            "The request comes from another page."
            if anywhere
            else "Without API_ADMIN_TOKEN, only this machine's own calls are answered."
        )
        raise Problem(403, "not-an-operator", here)

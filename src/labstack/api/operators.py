"""Who may move roles and touch data: whoever sends the operators' token or, without one, this machine's own calls."""

import hmac
import time
from urllib.parse import urlsplit

from flask import request

from labstack.api.problems import Problem
from labstack.api.request import service
from labstack.settings import LOOPBACK

WRONG_TOKENS = 10  # from one address, that each worker hears within the time, before it hears no more from there
WRONG_TOKENS_SECONDS = 60.0


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
    address = request.remote_addr or ""
    if wrong_tokens.count(address) >= WRONG_TOKENS:
        wait = f"Wait for {WRONG_TOKENS_SECONDS:g} seconds."
        raise Problem(429, "too-many-wrong-tokens", f"{WRONG_TOKENS} wrong tokens came from {address}. {wait}")
    sent = request.headers.get("X-Admin-Token", "").encode("latin-1")  # as WSGI hands headers over
    if not hmac.compare_digest(sent, token.get_secret_value().encode()):
        wrong_tokens.count(address, 1 if sent else 0)
        raise Problem(
            403, "not-an-operator", "Send the operators' token as X-Admin-Token; it is API_ADMIN_TOKEN in .env."
        )


def _require_own_page() -> None:
    """Without a token, refuse what a foreign page makes a browser of this machine send."""
    host = urlsplit(f"//{request.host}").hostname
    origin = request.headers.get("Origin")
    if host not in LOOPBACK or (origin is not None and origin.partition("://")[2] != request.host):
        raise Problem(403, "not-an-operator", "Without API_ADMIN_TOKEN, only this machine's own calls are answered.")

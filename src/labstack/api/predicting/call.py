"""The request that a prediction is for: its id, and the key that chooses between production and canary."""

import random
import re
import time
from typing import NamedTuple

VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Call(NamedTuple):
    """The request that a prediction is for."""

    endpoint: str  # the pattern of its path
    path: str
    request_id: str
    key: bytes  # chooses between production and canary
    started: float  # when the request arrived, by `time.perf_counter`


def request_id(header: str) -> str:
    """Return the caller's request id if it is valid, else a new one.

    New ids begin with the time, as UUID version 7 (RFC 9562) does: random ids would each touch another page of the
    database's index, and inserts would take ten times as long.
    """
    if VALID_REQUEST_ID.fullmatch(header):
        return header
    return f"{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"


def sticky_key(header: str | None, body: bytes) -> bytes:
    """Return the key that chooses between production and canary: the header X-Canary-Key as in WSGI, else the body."""
    return body if header is None else header.encode("latin-1")

"""What pages are made of beside HTML: our style and script, and the chart library, from its package."""

import gzip
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from flask import Blueprint, Response, abort, request

FOLDER = Path(__file__).parents[1] / "web" / "static"
TYPES = {"labstack.css": "text/css", "labstack.js": "text/javascript", "plotly.js": "text/javascript"}

blueprint = Blueprint("assets", __name__)


@blueprint.get("/assets/<name>")
def asset(name: str) -> Response:
    """A file of our pages, which browsers keep for as long as its address names its contents."""
    if name not in TYPES:
        abort(404, f"There is no asset {name!r}.")
    plain, packed, digest = contents(name)
    zipped = request.accept_encodings.find("gzip") >= 0
    answer = Response(packed if zipped else plain, content_type=f"{TYPES[name]}; charset=utf-8")
    if zipped:
        answer.headers["Content-Encoding"] = "gzip"
    kept = "public, max-age=31536000, immutable" if request.args.get("v") == digest else "no-cache"
    answer.headers |= {"Cache-Control": kept, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
    answer.set_etag(digest + ("-gzip" if zipped else ""))
    answer.make_conditional(request)
    return answer


def address(name: str) -> str:
    """Where a page finds an asset."""
    return f"/assets/{name}?v={contents(name)[2]}"


@cache
def contents(name: str) -> tuple[bytes, bytes, str]:
    """An asset's bytes, the same packed, and their digest."""
    plain = (_plotly() if name == "plotly.js" else FOLDER / name).read_bytes()
    return plain, gzip.compress(plain, 6, mtime=0), hashlib.sha256(plain).hexdigest()[:16]


def _plotly() -> Path:
    """The script in the package, which takes a second to import and need not be."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("plotly")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"

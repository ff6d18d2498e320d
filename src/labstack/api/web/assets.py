"""The files that pages load besides HTML: our style and script, and the chart library, from its package."""

import gzip
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
TYPES = {"labstack.css": "text/css", "labstack.js": "text/javascript", "plotly.js": "text/javascript"}


def address(name: str) -> str:
    """Return the path of an asset; it names the contents, so that browsers may keep them."""
    return f"/assets/{name}?v={contents(name)[2]}"


@cache
def contents(name: str) -> tuple[bytes, bytes, str]:
    """Return an asset's bytes, the same bytes compressed by gzip, and their digest."""
    plain = (_plotly() if name == "plotly.js" else FOLDER / name).read_bytes()
    return plain, gzip.compress(plain, 6, mtime=0), hashlib.sha256(plain).hexdigest()[:16]


def _plotly() -> Path:
    """Return the path of the script in its package, without the second that importing the package takes."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("plotly")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"

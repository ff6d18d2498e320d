"""Rendering of pages, and the headers that limit what a browser does on them."""

from typing import Any

from flask import Response, render_template

from labstack.api.web.assets import address

# plotly adds two style elements: an empty one, for rules that it inserts, and one with fixed text
PLOTLY_STYLES = (
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
    "'sha256-V2sIX92Uh6ZaGSFTKMHghsB85b9toJtmazgG09AI2uk='",
)
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; form-action 'self'; "
    f"style-src 'self' {' '.join(PLOTLY_STYLES)}; base-uri 'none'; frame-ancestors 'none'"
)


def render(template: str, **values: Any) -> str:
    """Return a page."""
    return render_template(template, address=address, **values)


def guard(response: Response) -> Response:
    """Allow a browser to run only our own scripts on a page, and forbid it to store the page."""
    response.headers |= {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return response

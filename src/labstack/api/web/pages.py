"""What all our pages share: how they are rendered, and what a browser may do on them."""

from typing import Any

from flask import Response, render_template

from labstack.api.web.assets import address

# plotly adds style elements of its own: an empty one for rules that it inserts, and one of fixed text
PLOTLY_STYLES = (
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
    "'sha256-V2sIX92Uh6ZaGSFTKMHghsB85b9toJtmazgG09AI2uk='",
)
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; form-action 'self'; "
    f"style-src 'self' {' '.join(PLOTLY_STYLES)}; base-uri 'none'; frame-ancestors 'none'"
)


def render(template: str, **values: Any) -> str:
    """A page."""
    return render_template(template, address=address, **values)


def guard(response: Response) -> Response:
    """Have a browser run nothing but our own scripts on a page, and keep none of it."""
    response.headers |= {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return response

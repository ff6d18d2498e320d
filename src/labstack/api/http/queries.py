"""The check of query parameters: one that would be ignored is rejected, as its sender expects an effect.

Only parameters that no endpoint takes may come with a GET, to which probes and proxies add parameters of their own.
"""

from urllib.parse import quote

from flask import Flask, request

from labstack.api.http.operations import described_rules
from labstack.api.problems import Problem


def register(app: Flask) -> None:
    """Check the query of every request by what its route declares. Raises TypeError for a route that does not."""
    known = {rule.endpoint: list(operation.query) for rule, _, operation in described_rules(app)}
    anywhere = {name for names in known.values() for name in names}

    def check() -> None:
        if request.endpoint in known:
            _require_known(known[request.endpoint], anywhere)

    app.before_request(check)


def _require_known(known: list[str], anywhere: set[str]) -> None:
    """Raise Problem, 422, for a parameter of the API that would be ignored, is empty or is repeated."""
    for name, values in request.args.lists():
        if name not in anywhere and request.method in ("GET", "HEAD"):
            continue
        if name not in known:
            message = f"{request.url_rule} takes no query parameter {name[:50]!r}; {_instead(name, values[0], known)}."
        elif len(values) > 1:
            message = f"{name} is given {len(values)} times in the query; give it once."
        elif not values[0]:
            message = f"{name} is empty in the query; give it a value or leave it out."
        else:
            continue
        raise Problem(422, "query", message)


def _instead(name: str, value: str, known: list[str]) -> str:
    if name == "model" and request.path == "/predict":
        return f"POST to /models/{quote(value[:200], safe='')}/predict instead"
    return f"it takes {', '.join(known)}" if known else "it takes none"

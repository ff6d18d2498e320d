"""The operation that each route declares: its group in the OpenAPI document, its query, body and answers.

Routes write it, with a decorator; the OpenAPI document and the check of query parameters read it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flask import Flask
from pydantic import BaseModel
from werkzeug.routing import Rule

Schema = dict[str, Any]
View = TypeVar("View", bound=Callable[..., Any])

JSON, TEXT, CSV, HTML, BINARY = "application/json", "text/plain", "text/csv", "text/html", "application/octet-stream"
OBJECT: Schema = {"type": "object"}
MODEL: Mapping[str, Schema] = {"model": {"type": "string", "minLength": 1}}
PAGES = ("console", "assets")  # blueprints for browsers, which the document leaves out


@dataclass(frozen=True)
class OperationGroup:
    """A group of operations: its tag, and what its operations have in common.

    `statuses` are those of their answers besides 200, 405 and 422.
    """

    tag: str
    statuses: tuple[int, ...] = ()
    takes_canary_key: bool = False
    for_operators: bool = False


PREDICT = OperationGroup("predict", (400, 404, 413, 415, 500, 503), takes_canary_key=True)
MODELS = OperationGroup("model", (404, 503))
READY = OperationGroup("ready", (404, 503))
INFO = OperationGroup("info")
OUTCOMES = OperationGroup("feedback", (400, 404, 409, 413, 415, 503))
DRIFT = OperationGroup("drift", (404, 503))
AUDIT = OperationGroup("audit", (503,))
HOOK = OperationGroup("hook", (202, 403, 404))
DATA = OperationGroup("data", (400, 403, 404, 413, 415, 429, 503), for_operators=True)
OPERATORS = OperationGroup("operators", (400, 403, 404, 409, 413, 415, 429, 503), for_operators=True)


@dataclass(frozen=True)
class Operation:
    """The description of a route in the OpenAPI document; a decorator of the route's view function.

    A schema given as text is the name of one of the schemas that each served model has, in http/model_schemas.py.
    """

    group: OperationGroup
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: type[BaseModel] | Schema | str | None = None
    or_list: bool = False  # of such bodies
    answer: Schema | str = field(default_factory=lambda: OBJECT)
    media_types: tuple[str, ...] = (JSON,)  # of an answer with status 200

    def __call__(self, view: View) -> View:
        vars(view)["operation"] = self
        return view


def described_rules(app: Flask) -> Iterator[tuple[Rule, Callable[..., Any], Operation]]:
    """Yield each route that is not a page's, its view function and its operation.

    Raises TypeError for a route that declares none.
    """
    for rule in app.url_map.iter_rules():
        if rule.endpoint.partition(".")[0] not in PAGES:
            view = app.view_functions[rule.endpoint]
            operation = vars(view).get("operation")
            if not isinstance(operation, Operation):
                raise TypeError(f"The route {rule.rule} has no operation: decorate {view.__name__} with @Operation.")
            yield rule, view, operation

"""Logging: one JSON object a line, or readable lines where a person watches; the same for every library's records."""

import logging
import logging.config
import sys
import warnings
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
import structlog

# what MLflow warns of when it is imported; that it misses pip, which nothing here needs; each retry of a call; how
# alembic goes about a migration
NOISE = (
    "mlflow.types.type_hints",
    "mlflow.utils.environment",
    "urllib3.connectionpool",
    "alembic",
)
FIRST = ("timestamp", "level", "message")

_to: dict[str, TextIO] = {"stream": sys.stdout}


def _to_json(event: dict[str, Any], **_: Any) -> str:
    ordered = {name: event.pop(name) for name in FIRST if name in event} | event
    return orjson.dumps(ordered, default=str, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def configure(level: str, stream: TextIO = sys.stdout) -> None:
    """Send structlog's and the standard library's records, warnings included, to `stream` in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if stream.isatty():
        render: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer()]
    else:
        render = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
    )
    _to["stream"] = stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("mlflow", "alembic"):  # they bring handlers of their own
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in NOISE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*type hint is inferred as AnyType")
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def write(level: str, message: str, fields: dict[str, Any]) -> None:
    """Log one line of our own as `configure` has it, in a tenth of the time that the loggers take for it."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if not logging.getLogger().isEnabledFor(number):
        return
    stream = _to["stream"]
    if stream.isatty():
        structlog.get_logger().log(number, message, **fields)
        return
    line = {"timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"), "level": level, "message": message}
    stream.write(_to_json(line | fields) + "\n")
    stream.flush()

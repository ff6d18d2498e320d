"""Logging: one JSON object a line, or readable lines on a terminal; the same form for the records of every library.

Several workers write to one pipe. Each write holds whole lines of at most PIPE_BUF bytes, which the kernel never
mixes; so longer lines are shortened.
"""

import logging
import logging.config
import select
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
import structlog

from labstack.background import Background

# MLflow's warnings on import, its warning that pip is missing, which the lab does not need, urllib3's retries, and
# Alembic's steps
NOISE = (
    "mlflow.types.type_hints",
    "mlflow.utils.environment",
    "urllib3.connectionpool",
    "alembic",
)
FIRST = ("timestamp", "level", "message")
LINE_BYTES = select.PIPE_BUF - 1
WAITING_LINES = 10_000


class LogOutput:
    """Writes lines to a stream, directly or in a thread, so that no caller waits for the stream's reader."""

    def __init__(self, stream: TextIO) -> None:
        self.use(stream)
        self._background: Background[str] | None = None

    def use(self, stream: TextIO) -> None:
        """Write to another stream from now on."""
        self._stream = stream
        self.is_terminal = stream.isatty()

    def put(self, line: str) -> None:
        if self._background is None:
            self._write([line])
        else:
            self._background.put(line)

    def start(self, dropped: Callable[[], None]) -> None:
        """Write in a thread from now on; `dropped` is called for each line that does not fit its queue."""
        self._background = Background("logs", self._write, dropped, WAITING_LINES)
        self._background.start()

    def stop(self) -> None:
        """Write the lines that wait, and further ones directly."""
        if self._background is not None:
            self._background.stop(seconds=3)
            self._background = None

    def _write(self, lines: list[str]) -> None:
        joined = ""
        for line in lines:
            if joined and len((joined + line).encode()) > LINE_BYTES:
                self._put_out(joined)
                joined = ""
            joined += line + "\n"
        self._put_out(joined)

    def _put_out(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone or the disk is full, which must not stop the service
            pass


class Handler(logging.Handler):
    """Sends the standard library's records to the output."""

    def emit(self, record: logging.LogRecord) -> None:
        output.put(self.format(record))


output = LogOutput(sys.stdout)


def _to_json(event: dict[str, Any], **_: Any) -> str:
    return _line({name: event.pop(name) for name in FIRST if name in event} | event)


def _line(fields: dict[str, Any]) -> str:
    text = _dumps(fields)
    if len(text) > LINE_BYTES:
        sizes = {name: len(_dumps(value)) for name, value in fields.items()}
        fields["shortened"] = True
        for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
            value = fields[name]  # the end of a text, such as a traceback, is the most useful part
            fields[name] = _end(value) if isinstance(value, str) else f"{sizes[name]} bytes, left out"
            text = _dumps(fields)
            if len(text) <= LINE_BYTES:
                break
    return text.decode()


def _end(text: str) -> str:
    """Return the end of a text, at most 1,000 bytes of JSON."""
    end = text[-1000:]
    while len(_dumps(end)) > 1000:
        end = end[len(end) // 2 :]
    return f"… {end}"


def _dumps(value: object) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


def configure(level: str, stream: TextIO = sys.stdout) -> None:
    """Send structlog's and the standard library's records, warnings included, to `stream` in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    output.use(stream)
    if output.is_terminal:
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
    handler = Handler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("mlflow", "alembic"):  # they install handlers
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


def info(message: str, fields: dict[str, Any]) -> None:
    """Log one line in the form that `configure` sets, in a tenth of the time that the loggers take."""
    if not logging.getLogger().isEnabledFor(logging.INFO):
        return
    if output.is_terminal:
        structlog.get_logger().info(message, **fields)
    else:
        output.put(_line({"timestamp": datetime.now(UTC), "level": "info", "message": message} | fields))

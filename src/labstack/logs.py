"""Logging: one JSON object a line, or readable lines where a person watches; the same for every library's records.

Several workers write to one pipe. What is written at once is whole lines of PIPE_BUF bytes at most, which the kernel
never mixes; so a longer line is shortened.
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

# what MLflow warns of when it is imported; that it misses pip, which nothing here needs; each retry of a call; how
# alembic goes about a migration
NOISE = (
    "mlflow.types.type_hints",
    "mlflow.utils.environment",
    "urllib3.connectionpool",
    "alembic",
)
FIRST = ("timestamp", "level", "message")
LINE_BYTES = select.PIPE_BUF - 1
WAITING_LINES = 10_000


class Output:
    """Where lines go: straight to a stream, or by a thread of its own, so that nobody waits for a reader."""

    def __init__(self, stream: TextIO) -> None:
        self.use(stream)
        self._background: Background[str] | None = None

    def use(self, stream: TextIO) -> None:
        """Write to a stream from now on."""
        self._stream = stream
        self.is_terminal = stream.isatty()

    def put(self, line: str) -> None:
        if self._background is None:
            self._write([line])
        else:
            self._background.put(line)

    def start(self, dropped: Callable[[], None]) -> None:
        """Write by a thread from now on; `dropped` is called for each line that is not written, as too many wait."""
        self._background = Background("logs", self._write, dropped, WAITING_LINES)
        self._background.start()

    def stop(self) -> None:
        """Write what waits, and straight to the stream from then on."""
        if self._background is not None:
            self._background.stop(seconds=3)
            self._background = None

    def _write(self, lines: list[str]) -> None:
        together = ""
        for line in lines:
            if together and len((together + line).encode()) > LINE_BYTES:
                self._put_out(together)
                together = ""
            together += line + "\n"
        self._put_out(together)

    def _put_out(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more, or the disk is full: no reason to stop the service
            pass


class Handler(logging.Handler):
    """Sends the standard library's records to the output."""

    def emit(self, record: logging.LogRecord) -> None:
        output.put(self.format(record))


output = Output(sys.stdout)


def _to_json(event: dict[str, Any], **_: Any) -> str:
    return _line({name: event.pop(name) for name in FIRST if name in event} | event)


def _line(fields: dict[str, Any]) -> str:
    text = _dumps(fields)
    if len(text) > LINE_BYTES:
        sizes = {name: len(_dumps(value)) for name, value in fields.items()}
        fields["shortened"] = True
        for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
            value = fields[name]  # of a text, as a traceback, the end says most
            fields[name] = _end(value) if isinstance(value, str) else f"{sizes[name]} bytes, left out"
            text = _dumps(fields)
            if len(text) <= LINE_BYTES:
                break
    return text.decode()


def _end(text: str) -> str:
    """The end of a text, as much as 1,000 bytes of JSON hold."""
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


def info(message: str, fields: dict[str, Any]) -> None:
    """Log one line of our own as `configure` has it, in a tenth of the time that the loggers take for it."""
    if not logging.getLogger().isEnabledFor(logging.INFO):
        return
    if output.is_terminal:
        structlog.get_logger().info(message, **fields)
    else:
        output.put(_line({"timestamp": datetime.now(UTC), "level": "info", "message": message} | fields))

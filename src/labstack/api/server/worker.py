"""gunicorn's threaded worker, which answers what is quick at once, and shares connections with the other workers.

A request that is handed to a thread and back costs more than a prediction of a row: two changes of threads, each of
which waits for Python's lock. So where a connection holds a whole small request, and whoever knows
the application says that it is quick, the loop that found it answers it. All else goes to the threads; and neither
they nor the loop wait for a caller that says nothing.

All workers wait on one listening socket and all are woken by a new connection; whichever is quicker takes it. A burst
of connections that are then kept alive, as load balancers and clients with pools open them, may land on one worker
and stay there, and the others' cores idle. So each worker says in shared memory how many connections it has.
"""

import ctypes
import errno
import fcntl
import mmap
import queue
import re
import selectors
import signal
import socket
import termios
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from gunicorn.http.errors import (
    ConfigurationProblem,
    ExpectationFailed,
    LimitRequestHeaders,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import TConn, ThreadWorker

SLOTS = 128  # more than workers at a time, old and new ones while gunicorn reloads
NOBODY = -1
PATIENCE_SECONDS = 0.05  # whoever does not take a connection within this time is busy or gone
PAUSE_SECONDS = 0.0002
CALLER_SECONDS = 10.0  # in which a caller sends the next bytes of its request, and takes its answer
HEAD_SECONDS = 10.0  # after which no more bytes of a request's head are waited for
BODY_SECONDS = 60.0  # likewise of its body
EXHAUSTED_SECONDS = 0.5  # without new connections, when the system cannot open one
EXHAUSTED_LOG_SECONDS = 60.0  # between two log lines that say so

QUICK_BYTES = 8192  # of a whole request; as many as gunicorn reads at once
QUICK_REQUEST = re.compile(rb"POST ([\x21-\x7e]+) HTTP/1\.1\r\n")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,5})(?:\r\n|$)", re.IGNORECASE)

# Of requests that gunicorn refuses; of all others 400.
STATUSES = {LimitRequestHeaders: 431, UnsupportedTransferCoding: 501, ExpectationFailed: 417, ConfigurationProblem: 500}

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

# Made once, in the arbiter, and shared by all that are forked. Each worker writes its own slot, and the arbiter that of
# a worker that ended.
_open = (ctypes.c_int * SLOTS).from_buffer(mmap.mmap(-1, SLOTS * ctypes.sizeof(ctypes.c_int)))
_open[:] = [NOBODY] * SLOTS


def assign(worker: Worker, others: Iterable[Worker], signals: "queue.SimpleQueue[int]") -> None:
    """In the arbiter, before the fork: give a worker the first slot that none of the others has.

    `signals` is the queue of those that the arbiter received, which the fork copies.
    """
    worker.slot = min(set(range(SLOTS)) - {other.slot for other in others})
    worker.signals = signals


def forget(worker: Worker) -> None:
    """In the arbiter, when a worker ended, however it did."""
    _open[worker.slot] = NOBODY


class Unreader(SocketUnreader):  # type: ignore[misc]
    """What a caller sends; raises ConnectionResetError when it ends, pauses or goes on for too long before it is whole.

    gunicorn's own readers take an empty chunk for the end of a body, whatever its Content-Length.
    """

    _request: Request | None = None
    _deadline = 0.0

    def begin_head(self) -> None:
        """Called when a request is about to be read."""
        self._request, self._deadline = None, time.monotonic() + HEAD_SECONDS

    def begin_body(self, request: Request) -> None:
        """Called when a request's head was read, and its body is about to be."""
        self._request, self._deadline = request, time.monotonic() + BODY_SECONDS

    def chunk(self) -> bytes:
        if time.monotonic() < self._deadline:
            with suppress(TimeoutError):
                if data := super().chunk():
                    return bytes(data)
        self._deadline = 0.0  # nothing waits for the rest
        if self._request is not None:
            self._request.force_close()
        raise ConnectionResetError(errno.ECONNRESET, "the request is not whole")


class Connection(TConn):  # type: ignore[misc]
    """A connection on which no caller holds up a thread for ever."""

    def init(self) -> None:
        """Called when a request is about to be read, after the socket was made to block."""
        if self.parser is None:
            super().init()
            self.parser.unreader = Unreader(self.sock)  # type: ignore[attr-defined]
        self.parser.unreader.begin_head()
        self.sock.settimeout(CALLER_SECONDS)


class FairWorker(ThreadWorker):  # type: ignore[misc]
    """Takes a new connection when no other worker has fewer, or when nobody else took it for a moment."""

    is_quick: Callable[[str], bool] = staticmethod(lambda _path: False)  # set by whoever knows the application
    _refusing_since = _last_refusal = 0.0
    _accepts_from = 0.0  # the time before which no connection is accepted, as the system cannot open one
    _exhaustion_logged = float("-inf")

    def init_process(self) -> None:
        """In the worker, after the fork."""
        _open[self.slot] = 0
        super().init_process()

    def init_signals(self) -> None:
        """In the worker. What was sent to it since the fork was taken for the arbiter's, and would be lost."""
        super().init_signals()
        with suppress(queue.Empty):
            while True:
                if self.signals.get_nowait() in ENDING:
                    self.alive = False

    def accept(self, listener: Any) -> None:
        """Called when a connection waits, again and again until somebody takes it."""
        if self._leave_it_to_another():
            time.sleep(PAUSE_SECONDS)
            return
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker took it, or its caller left
            return
        except OSError as error:  # no descriptors or memory are left
            self._pause_accepting(error)
            return
        connection = Connection(self.cfg, client, address, listener.getsockname())
        connection.data_ready = True  # when a thread gets it, which is not before it holds something to read
        self.nr_conns += 1
        self._keep(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_client_socket_readable, connection))
        _open[self.slot] = self.nr_conns

    def _pause_accepting(self, error: OSError) -> None:
        """Leave new connections to other workers, or waiting, until some of this one's may have ended."""
        now = time.monotonic()
        self._accepts_from = now + EXHAUSTED_SECONDS
        self.set_accept_enabled(False)
        if now - self._exhaustion_logged > EXHAUSTED_LOG_SECONDS:
            self._exhaustion_logged = now
            self.log.error(
                "Worker %d, with %d connections open, cannot accept more: %s. New ones wait; `ulimit -n` limits them.",
                self.pid,
                self.nr_conns,
                error.strerror,
            )

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called whenever the worker looks whether it may accept connections."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accepts_from)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Called when a connection, new or kept alive, holds something to read, or was closed by the caller."""
        if not (self.alive and self._holds_a_quick_request(client)):
            super().on_client_socket_readable(conn, client)
            return
        self.keepalived_conns.remove(conn)
        lives = self.handle(conn) is True
        if lives and conn.parser.unreader.buf.getbuffer().nbytes:  # another came meanwhile, and was read with this one
            self.poller.unregister(client)
            self.enqueue_req(conn)
        elif lives:
            self._keep(conn)  # it stays in the poller
        else:
            self.poller.unregister(client)
            self.nr_conns -= 1
            conn.close()

    def _holds_a_quick_request(self, client: Any) -> bool:
        try:
            data = client.recv(QUICK_BYTES, socket.MSG_PEEK)
            unread = fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return False
        if unread != bytes(4):  # a caller who does not read its answers may block a thread, never the loop
            return False
        head, _, body = data.partition(b"\r\n\r\n")
        asked = QUICK_REQUEST.match(head)
        length = CONTENT_LENGTH.search(head)
        if asked is None or length is None or int(length[1]) != len(body):
            return False
        return self.is_quick(asked[1].decode("ascii"))

    def handle_request(self, req: Request, conn: Any) -> bool:
        """Called when a request's head was read."""
        conn.parser.unreader.begin_body(req)
        return bool(super().handle_request(req, conn))

    def handle_error(self, req: Request | None, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Called for what is no HTTP, and for errors that the application does not answer; the connection then ends.

        gunicorn would answer by a page of HTML.
        """
        from labstack.api.predicting.call import request_id  # only now, as they import numpy
        from labstack.api.problems import problem_details

        name = request_id(dict(req.headers).get("X-REQUEST-ID", "") if req else "")
        if isinstance(exc, ParseException):
            status, kind = STATUSES.get(type(exc), 400), "http"
            detail = f"The request cannot be read: {exc}"
            self.log.warning("A request from %s was refused: %s", addr[0], type(exc).__name__)
        else:
            status, kind = 500, "internal"
            detail = "The API failed to answer; its log says why, under this request id."
            self.log.error("unexpected error", exc_info=exc, extra={"request_id": name})
        body = orjson.dumps(problem_details(status, kind, detail, name))
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\nX-Request-Id: {name}\r\n"
            f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):  # the caller left
            client.sendall(head.encode() + body)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Called when a request is answered, and the caller may have been told that its connection lives.

        It may hold another request that was read with this one, which no poller would tell of; and its caller may be
        about to send one to a worker that was told to stop meanwhile. Such a worker keeps the connection a little
        longer, and says with the next answer that it closes. gunicorn 25 would lose both.
        """
        lives = not fs.cancelled() and fs.exception() is None and fs.result() is True
        if lives and conn.parser.unreader.buf.getbuffer().nbytes:
            self.enqueue_req(conn)
        elif lives and not self.alive:
            self._keep(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_client_socket_readable, conn))
        else:
            super().finish_request(conn, fs)

    def _keep(self, conn: Any) -> None:
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.keepalived_conns.append(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Called in a loop for as long as the worker lives; often enough to end idle connections in time."""
        super().wait_for_and_dispatch_events(min(timeout, 1.0))
        _open[self.slot] = self.nr_conns if self._accepting else NOBODY

    def _leave_it_to_another(self) -> bool:
        _open[self.slot] = self.nr_conns
        if min(filter(NOBODY.__lt__, _open[:])) >= self.nr_conns:
            return False
        now = time.monotonic()
        if now - self._last_refusal > PATIENCE_SECONDS:
            self._refusing_since = now  # another connection than the one refused before
        self._last_refusal = now
        return now - self._refusing_since < PATIENCE_SECONDS

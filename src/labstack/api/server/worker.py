"""gunicorn's threaded worker, which answers quick requests in its loop, and balances connections over the workers.

Handing a request to a thread and back costs more than predicting a row: it takes two switches of threads, each of which
waits for Python's lock. So when a connection holds a whole small request, and the application says that it is quick,
the loop answers it. All other requests go to the threads. Neither they nor the loop wait for a caller that is silent.

All workers wait on one listening socket, a new connection wakes all of them, and the fastest takes it. A burst of
keep-alive connections, as load balancers and clients with pools open them, may be taken by one worker and stay there,
while the others' cores are idle. So each worker writes the number of its connections to shared memory.
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

SLOTS = 128  # more than the workers at any time, which are old and new ones while gunicorn reloads
UNUSED = -1  # in a slot
YIELD_SECONDS = 0.05  # a worker that does not take a connection within this time is busy or gone
PAUSE_SECONDS = 0.0002
CALLER_SECONDS = 10.0  # the timeout for the next bytes of a request, and for sending an answer
HEAD_SECONDS = 10.0  # the timeout for the whole head of a request
BODY_SECONDS = 60.0  # the timeout for its whole body
EXHAUSTED_SECONDS = 0.5  # the pause of accepting, after the system could not open a connection
EXHAUSTED_LOG_SECONDS = 60.0  # between two log lines about it

QUICK_BYTES = 8192  # the limit of a quick request: as many bytes as gunicorn reads at once
QUICK_REQUEST = re.compile(rb"POST ([\x21-\x7e]+) HTTP/1\.1\r\n")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,5})(?:\r\n|$)", re.IGNORECASE)

# The statuses of requests that gunicorn rejects; 400 for all others.
STATUSES = {LimitRequestHeaders: 431, UnsupportedTransferCoding: 501, ExpectationFailed: 417, ConfigurationProblem: 500}

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

# Shared memory, made once, in the arbiter: the number of open connections of each worker. Each worker writes its own
# slot, and the arbiter that of a worker that ended.
_open = (ctypes.c_int * SLOTS).from_buffer(mmap.mmap(-1, SLOTS * ctypes.sizeof(ctypes.c_int)))
_open[:] = [UNUSED] * SLOTS


def assign(worker: Worker, others: Iterable[Worker], signals: "queue.SimpleQueue[int]") -> None:
    """Give a worker the first free slot; called in the arbiter, before the fork.

    `signals` is the queue of the signals that the arbiter received, which the fork copies.
    """
    worker.slot = min(set(range(SLOTS)) - {other.slot for other in others})
    worker.signals = signals


def forget(worker: Worker) -> None:
    """Free the slot of a worker that ended, for any reason; called in the arbiter."""
    _open[worker.slot] = UNUSED


class Unreader(SocketUnreader):  # type: ignore[misc]
    """A reader of requests, which raises ConnectionResetError for one that is not whole when it ends or times out.

    gunicorn's own readers take an empty chunk as the end of a body, even before its Content-Length is reached.
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
        self._deadline = 0.0  # do not wait for the rest
        if self._request is not None:
            self._request.force_close()
        raise ConnectionResetError(errno.ECONNRESET, "the request is not whole")


class Connection(TConn):  # type: ignore[misc]
    """A connection with timeouts, so that no caller blocks a thread for ever."""

    def init(self) -> None:
        """Called when a request is about to be read, after the socket was made to block."""
        if self.parser is None:
            super().init()
            self.parser.unreader = Unreader(self.sock)  # type: ignore[attr-defined]
        self.parser.unreader.begin_head()
        self.sock.settimeout(CALLER_SECONDS)


class FairWorker(ThreadWorker):  # type: ignore[misc]
    """A worker that takes a new connection when no other worker has fewer, or when no other took it for a moment."""

    is_quick: Callable[[str], bool] = staticmethod(lambda _path: False)  # of a path; set by gunicorn's configuration
    _refusing_since = _last_refusal = 0.0
    _accepts_from = 0.0  # the time before which no connection is accepted, as the system cannot open one
    _exhaustion_logged = float("-inf")

    def init_process(self) -> None:
        """Take the slot; called in the worker, after the fork."""
        _open[self.slot] = 0
        super().init_process()

    def init_signals(self) -> None:
        """Handle signals in the worker, also those sent since the fork, which the arbiter's handler queued."""
        super().init_signals()
        with suppress(queue.Empty):
            while True:
                if self.signals.get_nowait() in ENDING:
                    self.alive = False

    def accept(self, listener: Any) -> None:
        """Accept a waiting connection; called repeatedly until a worker takes it."""
        if self._leave_it_to_another():
            time.sleep(PAUSE_SECONDS)
            return
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker took it, or its caller left
            return
        except OSError as error:  # no descriptors or no memory are left
            self._pause_accepting(error)
            return
        connection = Connection(self.cfg, client, address, listener.getsockname())
        connection.data_ready = True  # a thread gets it only when there is something to read
        self.nr_conns += 1
        self._keep(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_client_socket_readable, connection))
        _open[self.slot] = self.nr_conns

    def _pause_accepting(self, error: OSError) -> None:
        """Stop accepting for a moment: other workers take new connections, or these wait until some of ours end."""
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
        """Accept connections or not; called by gunicorn whenever its count of connections changes."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accepts_from)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Read from a connection, new or kept alive, that has bytes to read, or was closed by the caller."""
        if not (self.alive and self._holds_a_quick_request(client)):
            super().on_client_socket_readable(conn, client)
            return
        self.keepalived_conns.remove(conn)
        is_open = self.handle(conn) is True
        if is_open and conn.parser.unreader.buf.getbuffer().nbytes:  # another request was read with this one
            self.poller.unregister(client)
            self.enqueue_req(conn)
        elif is_open:
            self._keep(conn)  # it stays in the poller
        else:
            self.poller.unregister(client)
            self.nr_conns -= 1
            conn.close()

    def _holds_a_quick_request(self, client: Any) -> bool:
        """Return true when a socket holds one whole small request, to a path that is quick."""
        try:
            data = client.recv(QUICK_BYTES, socket.MSG_PEEK)
            unread = fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return False
        if unread != bytes(4):  # a caller that does not read its answers may block a thread, never the loop
            return False
        head, _, body = data.partition(b"\r\n\r\n")
        request = QUICK_REQUEST.match(head)
        length = CONTENT_LENGTH.search(head)
        if request is None or length is None or int(length[1]) != len(body):
            return False
        return self.is_quick(request[1].decode("ascii"))

    def handle_request(self, req: Request, conn: Any) -> bool:
        """Answer a request whose head was read."""
        conn.parser.unreader.begin_body(req)
        return bool(super().handle_request(req, conn))

    def handle_error(self, req: Request | None, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer a request that is not HTTP, or that the application raised an error for; the connection then ends.

        gunicorn would answer with an HTML page.
        """
        from labstack.api.predicting.call import request_id  # only now, as they import numpy
        from labstack.api.problems import problem_details

        identifier = request_id(dict(req.headers).get("X-REQUEST-ID", "") if req else "")
        if isinstance(exc, ParseException):
            status, kind = STATUSES.get(type(exc), 400), "http"
            detail = f"The request cannot be read: {exc}"
            self.log.warning("A request from %s was refused: %s", addr[0], type(exc).__name__)
        else:
            status, kind = 500, "internal"
            detail = "The API failed to answer; its log says why, under this request id."
            self.log.error("unexpected error", exc_info=exc, extra={"request_id": identifier})
        body = orjson.dumps(problem_details(status, kind, detail, identifier))
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\nX-Request-Id: {identifier}\r\n"
            f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):  # the caller closed the connection
            client.sendall(head.encode() + body)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep or close a connection after an answer, which may have promised the caller to keep it.

        The connection may hold another request that was read with this one, of which no poller would notify; and the
        caller may be about to send one to a worker that is stopping. Such a worker keeps the connection a little
        longer, and closes it with the next answer. gunicorn 25 would lose both requests.
        """
        is_open = not fs.cancelled() and fs.exception() is None and fs.result() is True
        if is_open and conn.parser.unreader.buf.getbuffer().nbytes:
            self.enqueue_req(conn)
        elif is_open and not self.alive:
            self._keep(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_client_socket_readable, conn))
        else:
            super().finish_request(conn, fs)

    def _keep(self, conn: Any) -> None:
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.keepalived_conns.append(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, at most a second, so that idle connections end in time; called in the worker's loop."""
        super().wait_for_and_dispatch_events(min(timeout, 1.0))
        _open[self.slot] = self.nr_conns if self._accepting else UNUSED

    def _leave_it_to_another(self) -> bool:
        """Return true while another worker has fewer connections and may still take the one that waits."""
        _open[self.slot] = self.nr_conns
        if min(filter(UNUSED.__lt__, _open[:])) >= self.nr_conns:
            return False
        now = time.monotonic()
        if now - self._last_refusal > YIELD_SECONDS:
            self._refusing_since = now  # it is another connection than the one left before
        self._last_refusal = now
        return now - self._refusing_since < YIELD_SECONDS

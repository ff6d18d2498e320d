"""The lab as processes of this machine, for places without a container engine: start, stop and watch its services.

Each service is the leader of a session of its own. `.lab/run/<service>.json` holds its process id and start time,
so that a file left by a crash is told from a living service, and what a crash left running is found by its session.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import click
import psutil

from labstack.settings import ROOT, Settings, load

STATE = ROOT / ".lab"
START_SECONDS = 120.0
STOP_SECONDS = 40.0  # a little longer than the services' own grace period


@dataclass(frozen=True)
class Service:
    """A process of the lab: how it starts, where it listens, and which path answers 200 when it is up."""

    name: str
    command: tuple[str, ...]
    port: int
    port_setting: str
    health: str

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def log(self) -> Path:
        return STATE / "logs" / f"{self.name}.log"

    @property
    def _record(self) -> Path:
        return STATE / "run" / f"{self.name}.json"

    def _recorded(self) -> tuple[int, float] | None:
        """The process id and start time (Unix seconds) of the service as it was last started."""
        try:
            recorded = json.loads(self._record.read_text())
            return recorded["pid"], recorded["created"]
        except (OSError, ValueError, KeyError):
            return None

    def processes(self) -> list[psutil.Process]:
        """All living processes of the service, its first one at the head; those included that outlived it."""
        if (recorded := self._recorded()) is None:
            return []
        session, created = recorded
        try:
            if abs(psutil.Process(session).create_time() - created) > 1:
                return []  # the number belongs to somebody else now
        except psutil.NoSuchProcess:
            pass
        return [process for process in psutil.process_iter() if _session(process.pid) == session and _lives(process)]

    def leader(self) -> psutil.Process | None:
        """The service's first process while it lives."""
        return next((process for process in self.processes() if process.pid == _session(process.pid)), None)

    def answers(self) -> bool:
        """Whether the service says that it is up."""
        try:
            with urllib.request.urlopen(self.url + self.health, timeout=2):  # noqa: S310  # our own address
                return True
        except OSError:
            return False

    def require_port(self) -> None:
        """Exit when somebody else listens on the service's port, naming them and the setting that moves it."""
        ours = {process.pid for process in self.processes()}
        if (owner := _port_owner(self.port)) and owner[0] not in ours:
            sys.exit(
                f"Port {self.port}, which {self.name} needs, is taken by {owner[1]}. "
                f"Stop it, or choose another port: {self.port_setting}=<port> in .env."
            )

    def start(self) -> str:
        """Start the service unless it runs; returns when it answers, with a word on how. Exits when it cannot."""
        if self.leader() is not None and self.answers():
            return "already running"
        self.stop()
        self.require_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._record.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            start = self.log.stat().st_size
            process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._record.write_text(json.dumps({"pid": process.pid, "created": psutil.Process(process.pid).create_time()}))
        try:
            up = _wait(lambda: self.answers() or process.poll() is not None, START_SECONDS) and process.poll() is None
        except BaseException:  # interrupted: leave nothing half-started
            self.stop()
            raise
        if not up:
            self.stop()
            with self.log.open() as log:
                log.seek(start)
                said = [line.strip() for line in log if line.strip()] or ["it said nothing"]
            sys.exit(f"{self.name} did not start: {said[-1][:500]} (all of it: {self.log.relative_to(ROOT)})")
        return "started"

    def stop(self) -> bool:
        """Stop every process of the service, gracefully first; whether there was any."""
        found = self.processes()
        leader = self.leader()
        if leader is not None:
            leader.send_signal(signal.SIGTERM)
            psutil.wait_procs([leader], STOP_SECONDS)
        for process in (left := self.processes()):
            _signal(process, signal.SIGTERM)
        _, left = psutil.wait_procs(left, 5)
        for process in left:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(left, 5)
        self._record.unlink(missing_ok=True)
        return bool(found)


def services(settings: Settings) -> tuple[Service, ...]:
    """The lab's services, in the order in which they start."""
    return (
        Service("server_mlflow", ("-m", "labstack.tracking_server"), settings.mlflow_port, "MLFLOW_PORT", "/health"),
        Service(
            "api",
            ("-m", "gunicorn", "-c", "python:labstack.api.gunicorn_conf", "labstack.api.wsgi:app"),
            settings.api_port,
            "API_PORT",
            "/health",
        ),
    )


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _port_owner(port: int) -> tuple[int | None, str] | None:
    """Who listens on a port of this machine, by process id, where it shows, and in words; None when nobody does."""
    try:
        listening = [
            connection
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
        ]
    except psutil.AccessDenied:  # macOS shows connections to root alone
        listening = []
    if not listening:
        return None
    for connection in listening:
        if connection.pid is not None:
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline())[:120]
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                command = "a process"
            return connection.pid, f"{command!r} (process {connection.pid})"
    return None, "a process of another user"


@click.group()
def main() -> None:
    """The lab as processes of this machine."""


def _choose(name: str) -> Service:
    found = {service.name: service for service in services(load())}
    if name not in found:
        sys.exit(f"There is no service {name!r}; there are: {', '.join(found)}.")
    return found[name]


@main.command()
@click.argument("name")
def start(name: str) -> None:
    """Start a service and wait until it answers."""
    service = _choose(name)
    click.echo(f"{service.start()}: {service.url}")


@main.command()
def stop() -> None:
    """Stop all services, the last started first."""
    for service in reversed(services(load())):
        click.echo(f"{service.name:<14} {'stopped' if service.stop() else 'was not running'}")


@main.command()
def status() -> None:
    """Say of each service whether it runs, where, and the memory it takes; exits 1 when one does not answer."""
    every = services(load())
    states = []
    for service in every:
        processes = service.processes()
        crashed = bool(processes) and service.leader() is None
        answers = bool(processes) and not crashed and service.answers()
        states.append(answers)
        memory = sum(_memory(process) for process in processes) / 2**20
        state = "up" if answers else "crashed" if crashed else "not answering" if processes else "down"
        shown = f"{service.url}  {len(processes)} processes, {memory:.0f} MB" if processes else ""
        click.echo(f"{service.name:<14} {state:<14} {shown}".rstrip())
    sys.exit(0 if all(states) else 1)


def _memory(process: psutil.Process) -> int:
    """Bytes of memory, what is shared counted in parts where the system tells (Linux), else resident bytes."""
    try:
        full = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(full, "pss", full.rss))


@main.command()
@click.argument("name", required=False)
def logs(name: str | None) -> None:
    """Print the log files of one service, or of all."""
    chosen = [_choose(name)] if name else services(load())
    for service in chosen:
        if service.log.exists():
            click.echo(service.log.read_text(errors="replace"), nl=False)
        else:
            click.echo(f"{service.name} has no log yet.", err=True)


@main.command()
def predict() -> None:
    """Ask the API for one prediction of the default model: print the curl line, then its answer."""
    settings = load()
    _wait(lambda: _get(settings, "/ready")[0] != 503, 2 * settings.follow_interval_seconds)  # it may be following
    status_code, info = _get(settings, "/model-info")
    if status_code == 200:
        body = json.dumps(info["sample"]["input"])
        status_code, info = _get(settings, "/predict", body)
    if status_code != 200:
        sys.exit(f"No prediction by {settings.default_model_name!r}: {info['detail']}")
    line = f"curl {settings.api_url}/predict -H 'Content-Type: application/json' -d '{body}'"
    click.echo(f"{line}\n{json.dumps(info)}")


def _get(settings: Settings, path: str, body: str | None = None) -> tuple[int, Any]:
    """Status and JSON of the API's answer to a GET, or to a POST of a JSON body."""
    request = urllib.request.Request(  # noqa: S310  # our own address
        settings.api_url + path, body.encode() if body else None, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError as error:
        sys.exit(f"The API at {settings.api_url} does not answer ({error}). Start it: ./run_all.sh up")


@main.command()
def addresses() -> None:
    """Print where the services are."""
    settings = load()
    click.echo(
        f"\nMLflow  {settings.mlflow_tracking_uri}\nAPI     {settings.api_url}\n\nStop the lab: ./run_all.sh down"
    )


@main.command()
def prepare() -> None:
    """Make `.env` with a random operators' token, unless there is one, and see that the services' ports are free."""
    path = ROOT / ".env"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"# Settings of this lab; .env.example explains each.\nAPI_ADMIN_TOKEN={token_hex(24)}\n")
    except FileExistsError:
        pass
    for service in services(load()):
        service.require_port()


if __name__ == "__main__":
    main()

"""The lab as processes of this machine, for places without a container engine: start, stop and watch its services.

Each service is the leader of a session of its own. `.lab/run/<service>.json` holds its process id and start time,
so that a file left by a crash is told from a living service, and what a crash left running is found by its session;
and its port and a digest of the settings it started with, so that no command takes another lab for this one.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from labstack import api_client, log_file
from labstack.settings import ROOT, Settings, load, reached_at

STATE = ROOT / ".lab"
START_SECONDS = 120.0
BUSY_SECONDS = 20.0  # a service that lives and is busy is not broken
STOP_SECONDS = 40.0  # a little longer than the services' own grace period


@dataclass(frozen=True)
class Service:
    """A process of the lab: how it starts, and where it listens by the settings as they are now."""

    name: str
    command: tuple[str, ...]
    host: str
    port: int
    port_setting: str
    settings_digest: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        return STATE / "logs" / f"{self.name}.log"

    @property
    def _record(self) -> Path:
        return STATE / "run" / f"{self.name}.json"

    def _recorded(self) -> dict[str, Any] | None:
        """What was written when the service last started: `created` is in Unix seconds."""
        try:
            recorded: dict[str, Any] = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return None
        return recorded if recorded.keys() >= {"pid", "created", "port", "settings"} else None

    @property
    def recorded_port(self) -> int:
        """The port that the service was started with."""
        recorded = self._recorded()
        return recorded["port"] if recorded else self.port

    def processes(self) -> list[psutil.Process]:
        """All living processes of the service, its first one at the head; those included that outlived it."""
        if (recorded := self._recorded()) is None:
            return []
        session = recorded["pid"]
        try:
            if abs(psutil.Process(session).create_time() - recorded["created"]) > 1:
                return []  # the number belongs to somebody else now
        except psutil.NoSuchProcess:
            pass
        return [process for process in psutil.process_iter() if _session(process.pid) == session and _lives(process)]

    def leader(self) -> psutil.Process | None:
        """The service's first process while it lives."""
        return next((process for process in self.processes() if process.pid == _session(process.pid)), None)

    def answers(self) -> bool:
        """Whether the service says that it is up, on the port that it was started with."""
        try:
            url = f"http://{self.host}:{self.recorded_port}/health"
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # our own address
                return True
        except OSError:
            return False

    def require(self) -> None:
        """Exit unless the service of this lab runs where the settings say."""
        if self.leader() is None:
            sys.exit(f"{self.name} of this lab does not run. Start it: ./run_all.sh up")
        if self.recorded_port != self.port:
            sys.exit(
                f"{self.name} of this lab runs on port {self.recorded_port}, and the settings say {self.port}. "
                f"Write {self.port_setting}={self.recorded_port} into .env, or start it anew: ./run_all.sh up"
            )

    def require_port(self) -> None:
        """Exit when somebody else listens on the service's port, naming them and the setting that moves it."""
        ours = {process.pid for process in self.processes()}
        if (owner := _port_owner(self.port)) and owner[0] not in ours:
            sys.exit(
                f"Port {self.port}, which {self.name} needs, is taken by {owner[1]}. "
                f"Stop it, or choose another port: {self.port_setting}=<port> in .env."
            )

    def start(self) -> str:
        """Start the service unless it runs with these settings; returns when it answers, with a word on how.

        Exits when it does not come up.
        """
        recorded = self._recorded()
        how = "started"
        if recorded and self.leader() is not None:
            if recorded["settings"] != self.settings_digest:
                how = "restarted with changed settings"
            elif _wait(self.answers, BUSY_SECONDS):
                return "already running"
            else:
                how = f"restarted, it gave no answer for {BUSY_SECONDS:g} seconds"
        self.stop()
        self.require_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        start = self.log.stat().st_size
        reader, writer = os.pipe()
        log = self._spawn("-m", "labstack.log_file", str(self.log), stdin=reader)
        process = self._spawn(*self.command, output=writer)
        os.close(reader)
        os.close(writer)
        created = psutil.Process(process.pid).create_time()
        record = {"pid": process.pid, "created": created, "port": self.port, "settings": self.settings_digest}
        self._record.write_text(json.dumps(record))
        try:
            in_time = _wait(lambda: self.answers() or process.poll() is not None, START_SECONDS)
        except BaseException:  # interrupted: leave nothing half-started
            self.stop()
            raise
        if in_time and process.poll() is None:
            return how
        self.stop()
        log.wait(STOP_SECONDS)
        said = self.log.read_bytes()
        said = said[start if start <= len(said) else 0 :]  # the file may have been replaced meanwhile
        why = f"no answer from {self.url}/health within {START_SECONDS:g} seconds"
        if in_time:
            why = _cause(said.decode(errors="replace"))[:500]
        sys.exit(f"{self.name} did not start: {why} (its log: {self.log.relative_to(ROOT)})")

    def _spawn(
        self, *command: str, stdin: int = subprocess.DEVNULL, output: int = subprocess.DEVNULL
    ) -> "subprocess.Popen[bytes]":
        """Start Python in a session of its own."""
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=stdin,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

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
    token = settings.api_admin_token.get_secret_value() if settings.api_admin_token else ""
    digest = hashlib.sha256((settings.model_dump_json() + token).encode()).hexdigest()
    mlflow = ("-m", "labstack.mlflow_server.main")
    api = ("-m", "gunicorn", "-c", "python:labstack.api.server.config", "labstack.api.server.wsgi:app")
    return (
        Service("server_mlflow", mlflow, reached_at(settings.mlflow_host), settings.mlflow_port, "MLFLOW_PORT", digest),
        Service("api", api, reached_at(settings.api_host), settings.api_port, "API_PORT", digest),
    )


def _cause(said: str) -> str:
    """The line that tells best why a process ended: the last exception, else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception): ", line)), lines[-1])


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
        port = service.recorded_port
        shown = f"http://{service.host}:{port}  {len(processes)} processes, {memory:.0f} MB" if processes else ""
        if processes and port != service.port:
            shown += f" (the settings now say port {service.port})"
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
        written = [path for path in (log_file.previous(service.log), service.log) if path.exists()]
        for path in written:
            click.echo(path.read_text(errors="replace"), nl=False)
        if not written:
            click.echo(f"{service.name} has no log yet.", err=True)


@main.command()
def require_mlflow() -> None:
    """Exit unless the MLflow server that the settings name is this lab's, or one that they name on purpose."""
    settings = load()
    if settings.mlflow_tracking_uri == services(settings)[0].url:
        _choose("server_mlflow").require()


@main.command()
@click.argument("model", required=False)
def predict(model: str | None) -> None:
    """Ask the API for one prediction of a model, by default the default one: print the curl line, then its answer."""
    _choose("api").require()
    try:
        click.echo(api_client.ask(load(), model))
    except api_client.NoPredictionError as error:
        sys.exit(f"No prediction: {error}")


@main.command()
def addresses() -> None:
    """Print where the services are."""
    settings = load()
    click.echo(f"\nMLflow  {settings.mlflow_public_url}\nAPI     {_choose('api').url}\n")


@main.command()
def require_ports() -> None:
    """Exit when somebody else listens on a port that a service needs."""
    for service in services(load()):
        service.require_port()


if __name__ == "__main__":
    main(prog_name="./run_all.sh")

"""`python -m labstack.lab.processes COMMAND`: start, stop and watch the services as processes of this machine.

It runs in the project's environment, for the place `local`. Each service is the leader of a session of its own, by
which the processes that a crash left running are found. `.lab/run/<service>.json`, written at the start and deleted at
the stop, holds its process id and start time, its port, and a digest of the settings that it started with.
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
from pydantic import SecretStr

from labstack import api_client, log_file
from labstack.lab import ROOT, STATE, ports
from labstack.settings import Settings, load, reached_at

START_SECONDS = 120.0
BUSY_SECONDS = 20.0  # for a service that runs and is busy
STOP_SECONDS = 40.0  # a little longer than the services' own grace period

MLFLOW_SETTINGS = {
    "lab_archive",
    "lab_archive_max_bytes",
    "lab_database_url",
    "mlflow_artifacts_destination",
    "mlflow_backend_store_uri",
    "mlflow_host",
    "mlflow_port",
    "mlflow_server_allowed_hosts",
}
_SHARED_SETTINGS = {"lab_database_url"}
_UNREAD_SETTINGS = {
    "api_url",
    "git_commit",
    "lab_outputs",
    "mlflow_bind",
    "search_database_url",
}  # of no running service
API_SETTINGS = set(Settings.model_fields) - (MLFLOW_SETTINGS - _SHARED_SETTINGS) - _UNREAD_SETTINGS


@dataclass(frozen=True)
class LocalService:
    """A service of the lab: its command, and where it listens by the current settings."""

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
        """The record of the service's last start, whose `created` is in Unix seconds; None when there is none."""
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
        """Return the living processes of the service, also those that outlived its first one."""
        if (recorded := self._recorded()) is None:
            return []
        session = recorded["pid"]
        try:
            if abs(psutil.Process(session).create_time() - recorded["created"]) > 1:
                return []  # another process has the id now
        except psutil.NoSuchProcess:
            pass
        return [process for process in psutil.process_iter() if _session(process.pid) == session and _is_alive(process)]

    def leader(self) -> psutil.Process | None:
        """The service's first process while it lives."""
        return next((process for process in self.processes() if process.pid == _session(process.pid)), None)

    def answers(self) -> bool:
        """Return whether the service answers on the port that it was started with."""
        try:
            url = f"http://{self.host}:{self.recorded_port}/health"
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # our own address
                return True
        except OSError:
            return False

    def require(self) -> None:
        """Exit unless the service of this lab runs where the settings say."""
        if self.leader() is None:
            sys.exit(f"{self.name} of this lab is not running. Start it: ./run_all.sh up")
        if self.recorded_port != self.port:
            sys.exit(
                f"{self.name} of this lab runs on port {self.recorded_port}, and the settings say {self.port}. "
                f"Write {self.port_setting}={self.recorded_port} into .env, or restart it: ./run_all.sh up"
            )

    def require_port(self) -> None:
        """Exit when another process listens on the service's port, naming it and the setting that changes the port."""
        ours = {process.pid for process in self.processes()}
        if (owner := ports.owner(self.port)) and owner.pid not in ours:
            sys.exit(ports.conflict(self.port, self.name, owner, self.port_setting))

    def start(self) -> str:
        """Start the service unless it runs with these settings; return, when it answers, how it came to run.

        Exits when it does not come up.
        """
        result = "started"
        if self.leader() is not None and (recorded := self._recorded()):
            if recorded["settings"] != self.settings_digest:
                result = "restarted with changed settings"
            elif _wait(self.answers, BUSY_SECONDS):
                return "already running"
            else:
                result = f"restarted, it gave no answer for {BUSY_SECONDS:g} seconds"
        self.stop()
        self.require_port()
        self._start_processes()
        return result

    def _start_processes(self) -> None:
        """Start the service's process and that of its log, and wait until the service answers; exit when it ends."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        log_start = self.log.stat().st_size
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
            return
        self.stop()
        log.wait(STOP_SECONDS)
        reason = f"no answer from {self.url}/health within {START_SECONDS:g} seconds"
        if in_time:
            reason = _cause(self._logged_since(log_start))[:500]
        sys.exit(f"{self.name} did not start: {reason} (its log: {self.log.relative_to(ROOT)})")

    def _logged_since(self, start: int) -> str:
        """Return the log from a byte on, or all of it when a new file has replaced that one."""
        content = self.log.read_bytes()
        return content[start if start <= len(content) else 0 :].decode(errors="replace")

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
        """Stop every process of the service, gracefully first; return whether there was any."""
        was_running = bool(self.processes())
        leader = self.leader()
        if leader is not None:
            leader.send_signal(signal.SIGTERM)
            psutil.wait_procs([leader], STOP_SECONDS)
        remaining = self.processes()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in remaining:
                _signal(process, number)
            _, remaining = psutil.wait_procs(remaining, 5)
        self._record.unlink(missing_ok=True)
        return was_running


def services(settings: Settings) -> tuple[LocalService, ...]:
    """Return the lab's services, in the order in which they start."""
    mlflow = ("-m", "labstack.mlflow_server.main")
    api = ("-m", "gunicorn", "-c", "python:labstack.api.server.config", "labstack.api.server.wsgi:app")
    return (
        LocalService(
            "server_mlflow",
            mlflow,
            reached_at(settings.mlflow_host),
            settings.mlflow_port,
            "MLFLOW_PORT",
            _digest(settings, MLFLOW_SETTINGS),
        ),
        LocalService(
            "api", api, reached_at(settings.api_host), settings.api_port, "API_PORT", _digest(settings, API_SETTINGS)
        ),
    )


def _digest(settings: Settings, names: set[str]) -> str:
    """Return the SHA-256 of the named settings' values, secrets included, which the digest does not reveal."""
    values = {name: getattr(settings, name) for name in sorted(names)}
    return hashlib.sha256(json.dumps(values, default=_plain).encode()).hexdigest()


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _cause(logged: str) -> str:
    """Return the line that explains best why a process ended: the last exception, else the last line."""
    lines = [line.strip() for line in logged.splitlines() if line.strip()] or ["it logged nothing"]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception): ", line)), lines[-1])


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_alive(process: psutil.Process) -> bool:
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


@click.group()
def main() -> None:
    """The lab as processes of this machine."""


def _choose(name: str) -> LocalService:
    known = {service.name: service for service in services(load())}
    if name not in known:
        sys.exit(f"There is no service {name!r}; there are: {', '.join(known)}.")
    return known[name]


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
    """Print of each service whether it runs, where, and how much memory it takes; exit with 1 unless all answer."""
    states = []
    for service in services(load()):
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
    """Return the bytes of memory: on Linux with a share of what processes share (PSS), else resident bytes (RSS)."""
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
    """Exit unless this lab's MLflow server runs, or the settings name another one."""
    settings = load()
    if settings.mlflow_tracking_uri == services(settings)[0].url:
        _choose("server_mlflow").require()


@main.command()
@click.argument("model", required=False)
def predict(model: str | None) -> None:
    """Ask the API for one prediction of a model, by default the default one; print the curl line, then its answer."""
    _choose("api").require()
    try:
        click.echo(api_client.ask(load(), model))
    except api_client.NoPredictionError as error:
        sys.exit(f"No prediction: {error}")


@main.command()
def addresses() -> None:
    """Print the addresses of the services."""
    settings = load()
    click.echo(f"\nMLflow  {settings.mlflow_public_url}\nAPI     {_choose('api').url}\n")


@main.command()
def require_ports() -> None:
    """Exit when another process listens on a port that a service needs."""
    for service in services(load()):
        service.require_port()


if __name__ == "__main__":
    main(prog_name="./run_all.sh")

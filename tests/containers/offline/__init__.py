"""The downloads of an image build, made from Debian's packages and the Python package index.

For machines that reach no image registry and no conda channel. The Dockerfile, the compose file and the environment
files stay as they are: the base images carry the public names, and conda-lock locks the environment files again,
against a channel made of wheels, at the versions of the committed locks. A build on a connected machine differs in
two ways: here the channel's packages have no console scripts, and `python` is the base image's own.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import local_environment
import yaml

from labstack.settings import ROOT

HERE = Path(__file__).parent
ENVIRONMENTS = ("server", "api", "mlops", "build")
LOCK_DIR = ".lab/containers/locks"
PORT = 38765  # the same each time: it stands in the locks, which the engine's build cache goes by
PLATFORM = ("--python-version", "3.13", "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:")
UV = str(Path(sys.executable).with_name("uv"))


@contextmanager
def supplies(context: Path) -> Iterator[dict[str, str]]:
    """Make all that a build of the project in the folder `context` needs; the variables that Compose builds with.

    The channel is kept for the next time, and served as long as this lasts.
    """
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]+)\}", (ROOT / "docker/docker-compose.yml").read_text()))
    _base_image(defaults["BASE_IMAGE"])
    _micromamba_image(defaults["MICROMAMBA_IMAGE"], defaults["BASE_IMAGE"])
    pins = _pins()
    channel = ROOT / f".lab/containers/channel-{hashlib.sha256(repr(pins).encode()).hexdigest()[:12]}"
    if not channel.exists():
        _make_channel(pins, channel)
    handler = partial(_QuietHandler, directory=str(channel))
    with ThreadingHTTPServer(("127.0.0.1", PORT), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _lock(channel, f"http://127.0.0.1:{PORT}", context / LOCK_DIR)
        yield {"LOCK_DIR": LOCK_DIR, "BUILD_NETWORK": "host"}
        server.shutdown()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


def _has_image(name: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode == 0


def _base_image(name: str) -> None:
    """`debian:trixie-slim`, or the like, from Debian's packages, with Debian's Python."""
    if _has_image(name):
        return
    release = name.partition(":")[2].removesuffix("-slim")
    if shutil.which("debootstrap") is None:
        _run(str(ROOT / ".ci/apt"), "debootstrap")
    tree = Path(_run("mktemp", "-d").strip())
    _run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", release, str(tree))
    _run("sh", "-c", f'rm -rf "{tree}"/var/cache/apt/archives/*.deb && tar -C "{tree}" -c . | docker import - {name}')
    shutil.rmtree(tree)


def _micromamba_image(name: str, base: str) -> None:
    """An image whose `micromamba` is our stand-in, on the base image's Python."""
    if _has_image(name):
        return
    context = Path(_run("mktemp", "-d").strip())
    requirements = re.findall(r'"([\w-]+==[\d.]+)"', (HERE / "micromamba.py").read_text())
    _run(UV, "pip", "install", "--target", str(context / "site"), *PLATFORM, *requirements)
    shutil.copy(HERE / "micromamba.py", context)
    (context / "micromamba").write_text('#!/bin/sh\nPYTHONPATH=/opt/site exec python3 /opt/micromamba.py "$@"\n')
    (context / "Dockerfile").write_text(
        f"FROM {base}\nCOPY site /opt/site\nCOPY micromamba.py /opt/\nCOPY --chmod=755 micromamba /usr/local/bin/\n"
    )
    _run("docker", "buildx", "build", "--load", "--quiet", "--tag", name, str(context))
    shutil.rmtree(context)


def _pins() -> list[str]:
    """Requirements for the wheels of the packages in the environment files, at the versions of the locks."""
    pins = set()
    for environment in ENVIRONMENTS:
        wanted = yaml.safe_load((ROOT / f"conda-cfg/environment-{environment}.yml").read_text())
        named = {line.partition("=")[0] for line in wanted["dependencies"]} - {"python"}
        for package in yaml.safe_load((ROOT / f"conda-cfg/conda-lock-{environment}.yml").read_text())["package"]:
            if package["name"] in named:
                wheel = local_environment.PACKAGE_INDEX_NAMES.get(package["name"], package["name"])
                pins.add(f"{wheel}=={package['version']}")
    return sorted(pins)


def _make_channel(pins: list[str], channel: Path) -> None:
    channel.parent.mkdir(parents=True, exist_ok=True)
    site, unfinished = channel.with_suffix(".site"), channel.with_suffix(".new")
    for folder in (site, unfinished):
        shutil.rmtree(folder, ignore_errors=True)
    _run(UV, "pip", "install", "--target", str(site), *PLATFORM, *pins)
    lock = yaml.safe_load((ROOT / "conda-cfg/conda-lock-server.yml").read_text())["package"]
    pages = next(package for package in lock if package["name"] == "mlflow-ui")
    kept = {"mlflow-ui": sorted(pages["dependencies"])}
    names = {wheel: conda for conda, wheel in local_environment.PACKAGE_INDEX_NAMES.items()}
    _run(
        UV, "run", "--script", str(HERE / "channel.py"), str(site), str(unfinished), json.dumps(names), json.dumps(kept)
    )
    unfinished.rename(channel)
    shutil.rmtree(site)


def _lock(channel: Path, url: str, folder: Path) -> None:
    """Lock the environment files against the channel; the address in the locks is the one it is served at."""
    folder.mkdir(parents=True, exist_ok=True)
    for environment in ENVIRONMENTS:
        target = folder / f"conda-lock-{environment}.yml"
        target.unlink(missing_ok=True)
        _run(
            *(sys.executable, "-m", "conda_lock", "lock", "--micromamba", "--conda", str(HERE / "micromamba.py")),
            *("--platform", "linux-64", "--channel", url),
            *("--file", str(ROOT / f"conda-cfg/environment-{environment}.yml")),
            *("--lockfile", str(target)),
            CHANNEL_MAP=f"{url}={channel}",
            PATH=f"{Path(UV).parent}:{os.environ['PATH']}",
        )

#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["conda-package-streaming==0.13.0", "packaging==26.3", "py-rattler==0.28.0"]
# ///
"""`channel.py SITE CHANNEL NAMES KEPT`: make a conda channel of the distributions installed in the folder SITE.

Each becomes a linux-64 package with its own version and requirements, and `python` one whose prefix is a virtual
environment on the base image's interpreter. NAMES (JSON) maps names of the Python package index to conda-forge's;
KEPT maps a package to the only requirements it keeps.
"""

import asyncio
import concurrent.futures
import hashlib
import io
import json
import os
import sys
import tarfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import conda_package_streaming.create as streaming
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler.index import index_fs

MINOR, VERSION = "3.13", "3.13.5"
TAG = "cp313"
ENVIRONMENT = {
    "python_version": MINOR, "python_full_version": VERSION, "implementation_name": "cpython", "os_name": "posix",
    "implementation_version": VERSION, "platform_machine": "x86_64", "platform_python_implementation": "CPython",
    "platform_release": "", "platform_system": "Linux", "platform_version": "", "sys_platform": "linux", "extra": "",
}  # fmt: skip

streaming.ZSTD_COMPRESS_LEVEL = 3  # nobody keeps these packages


def conda_spec(specifiers: SpecifierSet) -> str:
    """Version specifiers in conda's spelling, which has no `~=` and no `==1.*`."""
    parts = []
    for specifier in specifiers:
        if specifier.operator == "~=":
            parts += [f">={specifier.version}", ".".join(specifier.version.split(".")[:-1]) + ".*"]
        elif specifier.operator == "==" and specifier.version.endswith(".*"):
            parts.append(specifier.version)
        else:
            parts.append(f"{specifier.operator}{specifier.version}")
    return ",".join(parts)


def requirements(distribution: Distribution, names: dict[str, str]) -> dict[str, str]:
    """The requirements of a distribution on the base image's Python, by conda's names."""
    specs_by_name: dict[str, list[str]] = {}
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(ENVIRONMENT):
            name = canonicalize_name(requirement.name)
            specs_by_name.setdefault(names.get(name, name), []).append(conda_spec(requirement.specifier))
    return {name: ",".join(filter(None, specs)) for name, specs in sorted(specs_by_name.items())}


def write(
    channel: Path,
    name: str,
    version: str,
    depends: list[str],
    files: dict[str, bytes],
    links: dict[str, str],
    build: str,
) -> None:
    """Write one package: files and symbolic links by their path in the prefix."""
    paths = []
    folder = channel / "linux-64"
    with streaming.conda_builder(f"{name}-{version}-{build}", folder) as archive:

        def add(path: str, body: bytes) -> None:
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(body), 0o644
            archive.addfile(entry, io.BytesIO(body))

        for path, body in sorted(files.items()):
            digest = hashlib.sha256(body).hexdigest()
            paths.append({"_path": path, "path_type": "hardlink", "sha256": digest, "size_in_bytes": len(body)})
            add(path, body)
        for path, target in links.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
            paths.append(
                {"_path": path, "path_type": "softlink", "sha256": hashlib.sha256(b"").hexdigest(), "size_in_bytes": 0}
            )
        index = {
            "name": name,
            "version": version,
            "build": build,
            "build_number": 0,
            "depends": depends,
            "subdir": "linux-64",
        }
        add("info/index.json", json.dumps(index | {"arch": "x86_64", "platform": "linux"}).encode())
        add("info/paths.json", json.dumps({"paths": paths, "paths_version": 1}).encode())
        add("info/files", "".join(f"{path['_path']}\n" for path in paths).encode())
        add("info/about.json", b"{}")


def write_distribution(site: Path, name: str, channel: Path, names: dict[str, str], kept: dict[str, list[str]]) -> None:
    [distribution] = distributions(name=name, path=[str(site)])
    name = canonicalize_name(name)
    name = names.get(name, name)
    needs = requirements(distribution, names)
    needs = {other: spec for other, spec in needs.items() if other in kept.get(name, needs)}
    files = {
        f"lib/python{MINOR}/site-packages/{path}": (site / path).read_bytes()
        for path in distribution.files or []
        if path.parts[0] not in ("bin", "etc", "share", "..")
    }
    depends = [f"python {MINOR}.*", *(f"{other} {spec}".strip() for other, spec in needs.items())]
    write(channel, name, distribution.version, depends, files, {}, f"py{TAG[2:]}_0")


def write_python(channel: Path) -> None:
    home = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {VERSION}\n"
    files = {"pyvenv.cfg": home.encode(), f"lib/python{MINOR}/site-packages/README.txt": b"packages go here\n"}
    links = {
        f"bin/python{MINOR}": f"/usr/bin/python{MINOR}",
        "bin/python3": f"python{MINOR}",
        "bin/python": f"python{MINOR}",
    }
    write(channel, "python", VERSION, [f"python_abi {MINOR}.* *_{TAG}"], files, links, f"0_{TAG}")
    write(channel, "python_abi", MINOR, [], {}, {}, f"8_{TAG}")


def main() -> None:
    site, channel = Path(sys.argv[1]), Path(sys.argv[2])
    names, kept = json.loads(sys.argv[3]), json.loads(sys.argv[4])
    for folder in ("linux-64", "noarch"):
        (channel / folder).mkdir(parents=True)
    write_python(channel)
    with concurrent.futures.ProcessPoolExecutor() as pool:
        names_in_site = [distribution.name for distribution in distributions(path=[str(site)])]
        for done in [pool.submit(write_distribution, site, name, channel, names, kept) for name in names_in_site]:
            done.result()
    asyncio.run(index_fs(channel_directory=channel))


if __name__ == "__main__":
    main()
    os._exit(0)  # with its threads alive, rattler now and then crashes the interpreter's own way out

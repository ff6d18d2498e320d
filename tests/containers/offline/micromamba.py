#!/usr/bin/env -S uv run --quiet --script
# /// script
# dependencies = ["py-rattler==0.28.0", "pyyaml==6.0.3"]
# ///
"""The calls of micromamba that conda-lock and an image build make, on rattler, the solver and installer of pixi.

    micromamba create --prefix PREFIX --dry-run --json --channel CHANNEL... SPEC...    (conda-lock's solve)
    micromamba create --yes --prefix PREFIX --file LOCK                               (an image build)

CHANNEL_MAP="CHANNEL=FOLDER,..." has a channel's package records read from a folder, while the lock names the
packages at the channel's own address: its URL, or conda-forge's for the name alone.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from rattler import (
    BuildString,
    Channel,
    GenericVirtualPackage,
    PackageName,
    PackageRecord,
    RepoDataRecord,
    Version,
    install,
    solve,
)

PUBLIC = "https://conda.anaconda.org"


def virtual_packages(folder: Path) -> list[GenericVirtualPackage]:
    """The virtual packages of the platform, such as `__glibc`; conda-lock writes them as a channel."""
    return [
        GenericVirtualPackage(PackageName(record["name"]), Version(record["version"]), BuildString(record["build"]))
        for repodata in folder.glob("*/repodata.json")
        for record in json.loads(repodata.read_text())["packages"].values()
    ]


async def solve_to_json(channels: list[str], specs: list[str]) -> int:
    """Print the packages that these specs lead to, as micromamba does; return 1 when there is no solution."""
    mapped = dict(pair.rsplit("=", 1) for pair in os.environ.get("CHANNEL_MAP", "").split(",") if pair)
    sources, public, virtual = [], {}, []
    for channel in channels:
        if "fake-repodata" in channel:
            virtual += virtual_packages(Path(urlsplit(channel).path))
        elif channel in mapped:
            folder = Path(mapped[channel]).resolve().as_uri()
            sources.append(Channel(folder))
            public[folder] = channel if "://" in channel else f"{PUBLIC}/{channel}"
        else:
            sources.append(Channel(channel))
    try:
        records = await solve(
            sources=sources,
            specs=specs,
            platforms=["linux-64", "noarch"],
            virtual_packages=virtual,
        )
    except Exception as error:
        print(json.dumps({"success": False, "message": str(error)}))
        return 1
    actions = []
    for record in records:
        url = str(record.url)
        for folder, address in public.items():
            url = url.replace(folder, address)
        actions.append(
            {
                "name": record.name.normalized, "version": str(record.version), "build": str(record.build),
                "build_string": str(record.build), "build_number": record.build_number, "url": url,
                "channel": url.rsplit("/", 2)[0], "subdir": str(record.subdir), "fn": record.file_name,
                "md5": record.md5.hex() if record.md5 else "", "sha256": record.sha256.hex() if record.sha256 else "",
                "depends": [str(spec) for spec in record.depends], "size": record.size or 0, "timestamp": 0,
                "constrains": [str(spec) for spec in record.constrains],
            }
        )  # fmt: skip
    print(json.dumps({"success": True, "dry_run": True, "actions": {"FETCH": actions, "LINK": actions}}))
    return 0


async def install_lock(lock: Path, prefix: str) -> int:
    """Install a unified lock file's packages."""
    records = []
    for package in yaml.safe_load(lock.read_text())["package"]:
        channel, subdir, file_name = package["url"].rsplit("/", 2)
        name, version, build = file_name.removesuffix(".conda").removesuffix(".tar.bz2").rsplit("-", 2)
        record = PackageRecord(
            name=name, version=version, build=BuildString(build), build_number=0, subdir=subdir, depends=[],
            sha256=bytes.fromhex(package["hash"]["sha256"]), md5=bytes.fromhex(package["hash"]["md5"]),
        )  # fmt: skip
        records.append(RepoDataRecord(record, file_name, package["url"], channel))
    await install(records, target_prefix=prefix)
    return 0


def main() -> int:
    if sys.argv[1:] == ["--version"]:
        print("2.5.0")
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("-p", "--prefix")
    parser.add_argument("-f", "--file", type=Path)
    parser.add_argument("-c", "--channel", action="append", default=[])
    parser.add_argument("specs", nargs="*")
    arguments, others = parser.parse_known_intermixed_args()
    if arguments.file:
        return asyncio.run(install_lock(arguments.file, arguments.prefix))
    if arguments.command == "create":
        specs = arguments.specs + [word for word in others if not word.startswith("-")]
        return asyncio.run(solve_to_json(arguments.channel, specs))
    if arguments.command == "config":
        print(json.dumps({"pkgs_dirs": ["/nonexistent"]}))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # with its threads alive, rattler now and then crashes the interpreter's own way out

"""The README's reference parts say what the code knows, and nothing else."""

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import BaseModel

from labstack.api.app import create_app
from labstack.cli.main import main
from labstack.settings import ROOT, Settings
from labstack.training import config

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def keys(value: Any, of: str = "") -> set[str]:
    """The keys of a YAML value, each behind those that hold it; parameters of estimators are no keys of the file."""
    if isinstance(value, list):
        return set().union(*(keys(one, of) for one in value)) if value else set()
    if not isinstance(value, dict) or of in ("candidates.params", "gates.thresholds"):
        return set()
    if of == "candidates.search":
        return set().union(*(keys(one, of + ".") for one in value.values()))
    return {f"{of}.{key}".lstrip(".") for key in value} | set().union(
        *(keys(one, f"{of}.{key}".lstrip(".")) for key, one in value.items())
    )


def known(model: type[BaseModel], of: str = "") -> set[str]:
    """The keys that the pipeline file may have."""
    found = set()
    for name, field in model.model_fields.items():
        key = f"{of}.{field.alias or name}".lstrip(".")
        found.add(key)
        inner = re.findall(r"labstack\.training\.config\.(\w+)", str(field.annotation))
        for part in set(inner) - {"Range"}:
            found |= known(getattr(config, part), key)
    return found


def test_the_pipeline_file_is_shown_whole() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", section("The pipeline file"), re.DOTALL)
    shown = yaml.safe_load(text)
    config.Pipeline.model_validate(shown)
    others = {"data.csv", "data.parquet", "data.sql", "data.sql.url", "data.sql.query", "split.column"}
    ranges = {f"candidates.search..{name}" for name in config.Range.model_fields}
    assert keys(shown) | others == known(config.Pipeline) | ranges
    for key in others:
        assert key.rpartition(".")[2] in text
    for metric in {name for metrics in config.METRICS.values() for name in metrics}:
        assert metric in text


def commands(group: click.Group, before: str = "") -> dict[str, set[str]]:
    """Every command, with its options."""
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{before}{name} ")
        else:
            options = [one for one in command.params if isinstance(one, click.Option)]
            found[before + name] = {option.opts[-1] for option in options}
    return found


def test_the_command_is_described_whole() -> None:
    lines = re.findall(r"^\| `([a-z]+(?: [a-z]+)?)([^`]*)` \|", section("The labstack command"), re.MULTILINE)
    shown = {name: set(re.findall(r"--[a-z-]+", rest)) for name, rest in lines}
    assert shown == commands(main)


def test_the_tasks_are_listed_and_by_help_too() -> None:
    script = (ROOT / "run_all.sh").read_text()
    tasks = set(re.findall(r"^([a-z]+)\(\) \{ ## ", script, re.MULTILINE))
    assert tasks >= {
        "up",
        "down",
        "status",
        "logs",
        "train",
        "labstack",
        "predict",
        "test",
        "lint",
        "lock",
        "backup",
        "restore",
        "clean",
        "help",
    }
    helped = subprocess.run([ROOT / "run_all.sh", "help"], capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in helped.stdout.splitlines()[1:]} == tasks
    assert set(re.findall(r"^\| `([a-z]+)", section("Tasks"), re.MULTILINE)) == tasks


def test_every_endpoint_is_in_the_readme(tmp_path: Path) -> None:
    rules = create_app(Settings(api_cache_dir=tmp_path)).url_map.iter_rules()
    served = {
        f"{method} {rule.rule.replace('<int:', '<')}"
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(re.findall(r"^\| `((?:GET|POST) /\S*)`", README, re.MULTILINE)) == served

"""The reference pages of docs/ list exactly what the code knows."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from labstack.api.app import create_app
from labstack.cli.main import main
from labstack.settings import ROOT, Settings
from labstack.training import config
from tests.docs.pages import README, names, page, section
from tests.test_settings import documented


def keys(value: Any, prefix: str = "") -> set[str]:
    """The keys of a YAML value, each after those that contain it; parameters of estimators are no keys of the file."""
    if isinstance(value, list):
        return set().union(*(keys(item, prefix) for item in value)) if value else set()
    if not isinstance(value, dict) or prefix in ("candidates.params", "gates.thresholds"):
        return set()
    if prefix == "candidates.search":
        return set().union(*(keys(item, prefix + ".") for item in value.values()))
    return {f"{prefix}.{key}".lstrip(".") for key in value} | set().union(
        *(keys(item, f"{prefix}.{key}".lstrip(".")) for key, item in value.items())
    )


def known(model: type[BaseModel], prefix: str = "") -> set[str]:
    """The keys that the pipeline file may have."""
    names = set()
    for name, field in model.model_fields.items():
        key = f"{prefix}.{field.alias or name}".lstrip(".")
        names.add(key)
        inner = re.findall(r"labstack\.training\.config\.(\w+)", str(field.annotation))
        for part in set(inner) - {"Range"}:
            names |= known(getattr(config, part), key)
    return names


def test_the_pipeline_file_is_shown_whole() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", page("pipeline-file"), re.DOTALL)
    shown = yaml.safe_load(text)
    config.Pipeline.model_validate(shown)
    others = {"data.csv", "data.parquet", "data.sql", "data.sql.url", "data.sql.query", "split.column"}
    ranges = {f"candidates.search..{name}" for name in config.Range.model_fields}
    assert keys(shown) | others == known(config.Pipeline) | ranges
    for key in others:
        assert key.rpartition(".")[2] in text
    for metric in {name for metrics in config.METRICS.values() for name in metrics}:
        assert metric in text


def commands(group: click.Group, prefix: str = "") -> dict[str, set[str]]:
    """Every command with its options."""
    options: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            options |= commands(command, f"{prefix}{name} ")
        else:
            params = [param for param in command.params if isinstance(param, click.Option)]
            options[prefix + name] = {param.opts[-1] for param in params}
    return options


def test_the_command_is_described_whole() -> None:
    text = section(page("commands"), "The labstack command")
    lines = re.findall(r"^\| `([a-z]+(?: [a-z]+)?)([^`]*)` \|", text, re.MULTILINE)
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
    assert set(re.findall(r"^\| `([a-z]+)", section(page("commands"), "Tasks"), re.MULTILINE)) == tasks


def test_every_endpoint_is_listed(tmp_path: Path) -> None:
    rules = create_app(Settings(api_cache_dir=tmp_path)).url_map.iter_rules()
    served = {
        f"{method} {rule.rule.replace('<int:', '<')}"
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(re.findall(r"^\| `((?:GET|POST) /\S*)`", page("http-api"), re.MULTILINE)) == served


def raised(source: str) -> Iterator[str]:
    """The kind of each Problem that a module makes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
            for argument in node.args[1:2]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value)


def test_every_kind_of_problem_is_listed() -> None:
    sources = [path.read_text() for path in (ROOT / "src/labstack/api").rglob("*.py")]
    kinds = {kind for source in sources for kind in raised(source)}
    listed = set(re.findall(r"^\| `([a-z-]+)` \| (?:\d|any)", section(page("http-api"), "Errors"), re.MULTILINE))
    assert kinds <= listed
    assert {kind for kind in listed if not any(f'"{kind}"' in source for source in sources)} == set()


def test_every_setting_is_listed_with_its_default_and_description() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? *\| (.+) \|$", page("settings"), re.MULTILINE)
    assert {name: default for name, default, _ in rows} == documented()
    described = {name.upper(): field.description for name, field in Settings.model_fields.items()}
    assert {name: text for name, _, text in rows if name in described} == described


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("command", ["./run_all.sh", "./run_all.sh test"])
def test_the_readme_shows_the_main_commands_alone(command: str) -> None:
    assert f"```bash\n{command}\n```" in README


def test_every_page_is_on_the_site_and_in_the_readme() -> None:
    assert set(names()) == {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"^\| \[.*?\]\(docs/([a-z-]+)\.md\)", README, re.MULTILINE)) == set(names()) - {"index"}

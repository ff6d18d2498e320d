"""The services of the local place: each is restarted when a setting that it reads changes, and only then."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from labstack.lab import processes
from labstack.settings import ROOT, Settings

PACKAGE = ROOT / "src" / "labstack"


def digests(**values: Any) -> dict[str, str]:
    return {service.name: service.settings_digest for service in processes.services(Settings(**values))}


@pytest.mark.parametrize(
    ("values", "restarted"),
    [
        ({"mlflow_webhook_secret": "hush"}, {"api"}),
        ({"api_admin_token": "hush"}, {"api"}),
        ({"api_workers": 3}, {"api"}),
        ({"canary_steps": "0.5,1"}, {"api"}),
        ({"mlflow_server_allowed_hosts": "lab.example"}, {"server_mlflow"}),
        ({"mlflow_host": "127.0.0.2"}, {"server_mlflow"}),
        ({"mlflow_port": 6001}, {"server_mlflow", "api"}),  # the API's tracking URI follows the port
        ({"lab_outputs": "/elsewhere"}, set()),
        ({"search_database_url": "sqlite:////elsewhere/search.db"}, set()),
    ],
)
def test_a_changed_setting_restarts_the_services_that_read_it(values: dict[str, Any], restarted: set[str]) -> None:
    before, after = digests(), digests(**values)
    assert {name for name in before if before[name] != after[name]} == restarted


@pytest.mark.parametrize("name", ["mlflow_webhook_secret", "api_admin_token"])
def test_another_secret_is_a_changed_setting(name: str) -> None:
    assert digests(**{name: "first"})["api"] != digests(**{name: "second"})["api"]


def attributes_read(*rooms: str) -> set[str]:
    """The names of settings that the code of some rooms reads as attributes, or names in a string."""
    paths = {path for room in rooms for path in (PACKAGE / room).rglob("*.py")}
    paths -= {PACKAGE / "registry/manifest.py"}  # which training writes
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    strings = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    return (names | strings) & set(Settings.model_fields)


def test_the_mlflow_servers_settings_are_those_that_its_code_reads() -> None:
    assert attributes_read("mlflow_server") == processes.MLFLOW_SETTINGS


def test_no_setting_that_the_api_reads_is_left_out() -> None:
    assert not attributes_read("api", "registry", "store", "model", "monitoring") - processes.API_SETTINGS
    compose = yaml.safe_load(Path(ROOT / "docker/docker-compose.yml").read_text())
    assert {name.lower() for name in compose["services"]["api"]["environment"]} <= processes.API_SETTINGS

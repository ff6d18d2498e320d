"""Imports go one way: from the entries to the ground between rooms, and from top to bottom inside `api`."""

import ast
import sys
from pathlib import Path

import pytest
import yaml

from labstack.settings import ROOT

PACKAGE = ROOT / "src" / "labstack"

# what each room may import of the others, besides errors and settings
ALLOWED = {
    "errors": set(),
    "settings": set(),
    "background": set(),
    "deadline": set(),
    "locks": set(),
    "log_file": set(),
    "sqlite_files": set(),
    "logs": {"background"},
    "api_client": set(),
    "lab": {"api_client", "lab", "log_file"},
    "mlflow_server": {"locks", "mlflow_server", "sqlite_files"},
    "model": {"model"},
    "store": {"locks", "sqlite_files", "store"},
    "monitoring": {"model", "monitoring"},
    "registry": {"deadline", "model", "registry", "store"},
    "api": {"api", "background", "deadline", "logs", "model", "monitoring", "registry", "store"},
    "training": {"api_client", "logs", "model", "registry", "sqlite_files", "store", "training"},
    "cli": {"api_client", "cli", "logs", "registry", "store", "training"},
}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, full names; for `from a import b`, both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("labstack.")}
    assert rooms <= ALLOWED[room] | {"errors", "settings"}


# the rooms of api/ from top to bottom
API_ROOMS = (
    "server",
    "app",
    "routes",
    "web",
    "http",
    "health",
    "predicting",
    "service",
    "rollout",
    "recording",
    "serving",
    "problems",
    "metrics",
)


def api_room(module: str) -> str | None:
    """The room inside api/ of a module by its full name; None for a module elsewhere."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["labstack", "api"] and len(parts) > 2 else None


def test_every_room_of_the_api_has_a_place_in_the_order() -> None:
    names = {path.name.removesuffix(".py") for path in (PACKAGE / "api").iterdir()} - {"__init__", "__pycache__"}
    assert names == set(API_ROOMS)


@pytest.mark.parametrize("room", API_ROOMS)
def test_imports_inside_the_api_go_down(room: str) -> None:
    above = API_ROOMS[: API_ROOMS.index(room)]
    path = PACKAGE / "api" / room
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        upward = {name for name in imported(file) if api_room(name) in above}
        assert not upward, f"{file.relative_to(PACKAGE)} imports {', '.join(sorted(upward))}; move it down, or pass it"


@pytest.mark.parametrize("path", sorted((ROOT / "conda-cfg").glob("environment-*.yml")), ids=lambda path: path.stem)
def test_environment_files_pin_each_package_from_conda_forge_alone(path: Path) -> None:
    environment = yaml.safe_load(path.read_text())
    assert environment["channels"] == ["conda-forge"]
    assert all(isinstance(line, str) and line.count("=") == 1 for line in environment["dependencies"])


def test_no_package_is_pinned_twice_differently() -> None:
    pins: dict[str, set[str]] = {}
    for path in (ROOT / "conda-cfg").glob("environment-*.yml"):
        for line in yaml.safe_load(path.read_text())["dependencies"]:
            name, _, version = line.partition("=")
            pins.setdefault(name, set()).add(version)
    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}


@pytest.mark.parametrize(
    ("room", "foreign"),
    [
        ("api", {"matplotlib", "mlflow", "optuna", "pandas", "sklearn"}),
        ("training", {"flask", "gunicorn", "werkzeug"}),
    ],
)
def test_serving_brings_no_training_library_and_training_no_web_framework(room: str, foreign: set[str]) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] in foreign or name in foreign}, path


# import names of packages whose name on conda-forge differs
IMPORTED_AS = {"matplotlib-base": "matplotlib", "mlflow-skinny": "mlflow", "pyyaml": "yaml", "scikit-learn": "sklearn"}
BROUGHT_BY = {"werkzeug": "flask"}  # by the package that our code uses it with


def module_path(name: str) -> Path | None:
    """The file of a module of ours."""
    path = ROOT / "src" / Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def packages_reached(entries: list[str]) -> set[str]:
    """The packages of others that our modules import, directly or through other modules of ours."""
    seen, ahead, packages = set[str](), set(entries), set[str]()
    while ahead:
        name = ahead.pop()
        seen.add(name)
        package = name.split(".")[0]
        if package == "labstack":
            path = module_path(name)
            ahead |= (imported(path) if path else set()) - seen
        elif package not in sys.stdlib_module_names:
            packages.add(package)
    return packages


@pytest.mark.parametrize("module", ["call", "tables", "tensors"])
def test_parsing_a_request_reaches_no_database(module: str) -> None:
    packages = packages_reached([f"labstack.api.predicting.{module}"])
    assert not packages & {"alembic", "flask", "sqlalchemy"}


@pytest.mark.parametrize(
    ("service", "entries"),
    [
        ("server", ["labstack.mlflow_server.main"]),
        (
            "api",
            [
                "labstack.api.server.wsgi",
                "labstack.api.server.config",
                "labstack.store.__main__",
                "labstack.api_client",
            ],
        ),
        ("mlops", ["labstack.cli.main"]),
    ],
)
def test_an_environment_names_all_that_its_service_imports(service: str, entries: list[str]) -> None:
    foreign = {BROUGHT_BY.get(package, package) for package in packages_reached(entries)}
    environment = yaml.safe_load((ROOT / "conda-cfg" / f"environment-{service}.yml").read_text())
    named = {line.partition("=")[0] for line in environment["dependencies"]}
    assert foreign - {IMPORTED_AS.get(name, name.replace("-", "_")) for name in named} == set()

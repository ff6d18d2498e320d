"""docs/architecture.md names every room, thread, lock and table of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from labstack.settings import ROOT
from labstack.store import audit, datasets, leases, predictions, windows
from labstack.store.database import Base
from tests.docs.pages import page, section

PACKAGE = ROOT / "src/labstack"
PAGE = page("architecture")
LOCK = re.compile(r"flock\(|threading\.R?(?:Lock|Condition)\(|locks\.exclusive\(|pg_(?:try_)?advisory")
STORE = (audit, datasets, leases, predictions, windows)  # imported, so that their tables are known


def sources() -> list[tuple[str, str]]:
    """Each module's path, as the page writes it, and its source."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return [(str(path.relative_to(PACKAGE).with_suffix("")), path.read_text()) for path in paths]


def rooms(folder: Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            yield f"{prefix}{path.name}/"
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield f"{prefix}{path.stem}"


def started(source: str) -> Iterator[str]:
    """The name of each thread that a module makes, "" for one without a name."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func).rpartition(".")[2]
        arguments = {keyword.arg: keyword.value for keyword in node.keywords}
        name = node.args[0] if function == "Background" else arguments.get("name", ast.Constant(""))
        starts = function in ("Background", "ThreadPoolExecutor") or (function == "Thread" and "target" in arguments)
        if starts and isinstance(name, ast.Constant):  # background.py gets the name from its caller
            yield str(name.value)


def test_every_room_is_listed() -> None:
    listed = re.findall(r"^\| `([a-z_/]+)` \|", section(PAGE, "Rooms"), re.MULTILINE)
    assert sorted(listed) == sorted([*rooms(PACKAGE), *rooms(PACKAGE / "api", "api/")])


def test_every_thread_is_listed_with_its_module() -> None:
    rows = re.findall(r"^\| (?:`([a-z ]+)`|unnamed) \| `([a-z_/]+)` \|", section(PAGE, "Threads"), re.MULTILINE)
    assert sorted(rows) == sorted((name, module) for module, source in sources() for name in started(source))


def test_every_module_with_a_lock_is_listed() -> None:
    text = section(PAGE, "Locks")
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*)`", text))
    assert {module for module, source in sources() if LOCK.search(source)} <= named


def test_every_table_is_listed() -> None:
    cells = re.findall(r"^\| (`[a-z_`, ]+) \|", section(PAGE, "Shared tables"), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"[a-z_]+", cell)} == set(Base.metadata.tables)

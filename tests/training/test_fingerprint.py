"""The code of a training is that of the modules that it imports, and of no others."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labstack.settings import ROOT
from labstack.training import fingerprint
from tests.conftest import environment


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the package that a test may edit."""
    shutil.copytree(ROOT / "src" / "labstack", tmp_path / "src" / "labstack")
    return tmp_path / "src"


@pytest.mark.parametrize(
    "module", ["api/app.py", "api/routes/console.py", "cli/main.py", "monitoring/drift.py", "local.py"]
)
def test_an_edit_outside_training_leaves_its_code_the_same(source: Path, module: str) -> None:
    before = fingerprint.hash_code(source)
    with (source / "labstack" / module).open("a") as file:
        file.write("# edited\n")
    assert fingerprint.hash_code(source) == before


@pytest.mark.parametrize(
    "module",
    [
        "training/train.py",
        "training/filters.py",
        "training/search.py",
        "training/plots.py",
        "model/contract.py",
        "model/skops_file.py",
        "registry/moves.py",
        "store/datasets.py",
        "settings.py",
    ],
)
def test_an_edit_of_what_trains_changes_its_code(source: Path, module: str) -> None:
    before = fingerprint.hash_code(source)
    with (source / "labstack" / module).open("a") as file:
        file.write("# edited\n")
    assert fingerprint.hash_code(source) != before


def test_every_module_that_a_training_imports_counts() -> None:
    script = (
        "import sys, labstack.training.train; print(*(name for name in sys.modules if name.startswith('labstack.')))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
    )
    assert set(process.stdout.split()) <= set(fingerprint.modules(ROOT / "src"))

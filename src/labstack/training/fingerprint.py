"""Fingerprints of a training: hashes of everything that decides its result, so that equal trainings are recognized."""

import hashlib
import sys
from functools import lru_cache
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from labstack.settings import ROOT
from labstack.training.config import Pipeline
from labstack.training.table import TrainingTable


def of_training(pipeline: Pipeline, table: TrainingTable) -> str:
    """Return a hash that is equal for trainings of the same rows, pipeline, code and environment."""
    settings = pipeline.model_dump_json(exclude={"approval": True, "after_promotion": True})
    return _hash(table.digest, settings, code(), lock())


def of_search(pipeline: Pipeline, table: TrainingTable) -> str:
    """Return a hash that is equal for searches whose trials can be compared."""
    keys = {"task", "split", "preprocessing", "candidates", "metric"}
    settings = pipeline.model_dump_json(include=keys) + str(pipeline.search.folds)
    return _hash(table.digest, settings, code())[:16]


@lru_cache
def code() -> str:
    """Return a hash of the code that trains; the same for the life of a process, which does not import edits either."""
    return hash_code(ROOT / "src")


def hash_code(source: Path) -> str:
    """Return a hash of the modules that a training imports from a source folder."""
    digest = hashlib.sha256()
    for _, path in sorted(modules(source).items()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def modules(source: Path) -> dict[str, Path]:
    """Return the modules of our package that a training imports, directly or not, with their files.

    The files are read, not imported: `sys.modules` would also hold what the running process has imported for itself.
    """
    finder = ModuleFinder(path=[str(source)])
    finder.import_hook("labstack.training.train")
    modules: dict[str, Any] = finder.modules
    return {name: Path(module.__file__) for name, module in modules.items() if module.__file__}


def lock() -> str:
    """Return a hash of the lock file that the training environment is made from."""
    recorded = Path(sys.prefix) / "conda-lock.sha256"  # as an image has it
    if recorded.exists():
        return recorded.read_text().split()[0]
    return hashlib.sha256((ROOT / "conda-cfg" / "conda-lock-mlops.yml").read_bytes()).hexdigest()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

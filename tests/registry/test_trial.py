"""Trials of versions in a separate process, which harm no other process."""

import io
import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from labstack.model.contract import FILE_NAME, Contract, Feature, Sample
from labstack.registry import trial
from labstack.registry.trial import TrialError
from labstack.settings import Settings
from tests.conftest import environment
from tests.hostile import endless, put

CLASSES = ("high", "low")
NAMES = ("a", "b")


def settings(**changes: Any) -> Settings:
    return Settings(**{"model_load_seconds": 60, "model_memory_bytes": 1 << 30} | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a logistic regression that is served by scikit-learn."""
    rows, labels = np.arange(40.0).reshape(20, 2), np.array(["low"] * 10 + ["high"] * 10)
    whole = make_pipeline(FunctionTransformer(), LogisticRegression()).fit(rows, labels)
    skops.io.dump(whole, tmp_path / "model.skops")
    Contract(
        task="classification",
        target="level",
        features=tuple(Feature(name=name, maximum=40) for name in NAMES),
        classes=CLASSES,
        sample=Sample(input=dict.fromkeys(NAMES, 0.0), output="low"),
    ).write(tmp_path)
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    contract = json.loads((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(json.dumps(contract | changes))


def test_a_sound_version_passes(folder: Path) -> None:
    trial.run(folder, settings())


def test_one_that_never_ends_is_ended(folder: Path) -> None:
    put(folder, endless(2, 2, always=True))
    with pytest.raises(TrialError, match="not loaded and tried within 4 seconds"):
        trial.run(folder, settings(model_load_seconds=4))
    with pytest.raises(TrialError, match="longer than 1 seconds"):  # by its own deadline for predictions
        trial.run(folder, settings(prediction_seconds=1))


def test_it_ends_by_itself_when_the_process_that_began_it_is_gone(folder: Path) -> None:
    put(folder, endless(2, 2, always=True))
    command = [sys.executable, "-m", "labstack.model.predictor", str(folder), str(1 << 30), "1", "600"]
    ended = subprocess.run(command, env=environment(), timeout=60, check=False)
    assert ended.returncode == -signal.SIGALRM


def test_one_that_takes_more_memory_than_it_may_is_refused(folder: Path) -> None:
    with pytest.raises(TrialError, match=r"MODEL_MEMORY_BYTES|bytes of memory|MemoryError"):
        trial.run(folder, settings(model_memory_bytes=60_000_000))


def test_a_file_that_unpacks_to_much_is_refused_before(folder: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * (1 << 28))
    (folder / "model.skops").write_bytes(bomb.getvalue())
    with pytest.raises(TrialError, match="unpacks to 268,435,456 bytes"):
        trial.run(folder, settings(model_memory_bytes=250_000_000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regression", "classes": [], "sample": {"input": {"a": 0, "b": 0}, "output": 1}}, "classes are high"),
        ({"classes": ["high", "low", "middle"]}, "classes are high, low, and those of its contract high, low, middle"),
        ({"classes": ["low", "high"]}, "those of its contract low, high"),
        ({"sample": {"input": {"a": 0.0, "b": 0.0}, "output": "high"}}, "predicts 'low' for its own sample"),
        ({"sample": {"input": {"a": 0.0}, "output": "low"}}, "b is missing"),
    ],
)
def test_a_contract_that_its_estimator_does_not_keep_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change(folder, **changes)
    with pytest.raises(TrialError, match=message):
        trial.run(folder, settings())


@pytest.mark.parametrize(
    ("outputs", "changes", "message"),
    [
        (2, {"classes": ["high", "low", "middle"]}, r"shape \(1, 2\), and \(1, 3\) is needed"),
        (2, {"task": "regression", "classes": [], "sample": {"input": {"a": 0, "b": 0}, "output": 0.5}}, "is needed"),
        (1, {}, r"shape \(1, 1\), and \(1, 2\) is needed"),
    ],
)
def test_a_contract_that_its_onnx_model_does_not_keep_is_refused(
    folder: Path, outputs: int, changes: dict[str, Any], message: str
) -> None:
    put(folder, endless(2, outputs, always=False), **changes)
    with pytest.raises(TrialError, match=message):
        trial.run(folder, settings())

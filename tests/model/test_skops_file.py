"""Files of estimators: trusted ones are loaded, others are rejected."""

import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import all_estimators

from labstack.model import skops_file

FEATURES = np.arange(40.0).reshape(20, 2)
LABELS = np.array(["low"] * 10 + ["high"] * 10)


class Surprise(LogisticRegression):  # type: ignore[misc]
    """An estimator from outside scikit-learn."""


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(), RandomForestClassifier(5), HistGradientBoostingRegressor()]
)
def test_scikit_learns_estimators_come_back_as_they_were(tmp_path: Path, estimator: Any) -> None:
    target = LABELS if hasattr(estimator, "predict_proba") else FEATURES.sum(axis=1)
    fitted = make_pipeline(estimator).fit(FEATURES, target)
    skops.io.dump(fitted, tmp_path / skops_file.FILE_NAME)
    loaded = skops_file.load(tmp_path, 1 << 30)
    assert loaded.predict(FEATURES).tolist() == fitted.predict(FEATURES).tolist()


def test_foreign_types_are_named_and_not_loaded(tmp_path: Path) -> None:
    skops.io.dump(Surprise().fit(FEATURES, LABELS), tmp_path / skops_file.FILE_NAME)
    with pytest.raises(skops_file.ModelFileError, match=r"tests\.model\.test_skops_file\.Surprise"):
        skops_file.load(tmp_path, 1 << 30)


def test_a_function_of_scikit_learn_that_runs_programs_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sklearn.utils._testing` holds subprocess.check_output under a name of scikit-learn's."""
    monkeypatch.setattr(subprocess.check_output, "__module__", "sklearn.utils._testing")
    command = f"touch '{tmp_path}/ran'"
    speaker = DummyClassifier(strategy="constant", constant=command).fit([[0.0]], [command])
    runner = FunctionTransformer(subprocess.check_output, kw_args={"shell": True})
    skops.io.dump(make_pipeline(FunctionTransformer(speaker.predict), runner, speaker), tmp_path / "model.skops")
    assert "sklearn.utils._testing.check_output" in skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    with pytest.raises(skops_file.ModelFileError, match="check_output"):
        skops_file.load(tmp_path, 1 << 30)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_every_estimator_that_fits_here_is_trusted(tmp_path: Path, kind: str) -> None:
    refused = []
    for name, make in all_estimators(kind):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = make().fit(FEATURES + 1, LABELS if kind == "classifier" else FEATURES.sum(axis=1) + 1)
        except (TypeError, ValueError, AttributeError):
            continue  # it needs parameters, or several targets
        skops.io.dump(fitted, tmp_path / skops_file.FILE_NAME)
        try:
            skops_file.trusted_types(tmp_path / skops_file.FILE_NAME)
        except skops_file.ModelFileError as error:
            refused.append(f"{name}: {error}")
    assert refused == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no model at all" * 100])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / skops_file.FILE_NAME).write_bytes(content)
    with pytest.raises(skops_file.ModelFileError, match=r"model\.skops cannot be loaded"):
        skops_file.load(tmp_path, 1 << 30)

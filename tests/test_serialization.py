"""What may be loaded, and what may not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from labstack import serialization

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
    skops.io.dump(fitted, tmp_path / serialization.FILE_NAME)
    loaded = serialization.load(tmp_path)
    assert loaded.predict(FEATURES).tolist() == fitted.predict(FEATURES).tolist()


def test_types_from_elsewhere_are_named_and_not_loaded(tmp_path: Path) -> None:
    skops.io.dump(Surprise().fit(FEATURES, LABELS), tmp_path / serialization.FILE_NAME)
    with pytest.raises(serialization.ModelFileError, match=r"tests\.test_serialization\.Surprise"):
        serialization.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no model at all" * 100])
def test_a_damaged_file_is_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / serialization.FILE_NAME).write_bytes(content)
    with pytest.raises(serialization.ModelFileError, match=r"model\.skops cannot be loaded"):
        serialization.load(tmp_path)

"""The scikit-learn pipeline of a version: what encodes rows, what prepares features, and the estimator.

Its first step, `encode`, takes a frame as people know it and makes the contract's matrix. The rest, the core, is what
is searched and fitted, converted to ONNX, and served: rows reach it as a matrix.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline as SklearnPipeline
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from labstack.training.config import Candidate, Pipeline
from labstack.training.data import Column, Table

SCALERS = {"standard": StandardScaler, "minmax": MinMaxScaler, "robust": RobustScaler}
MISSING = -1.0  # the code of a missing category, where one may be missing


def make_core(
    pipeline: Pipeline, columns: Sequence[Column], candidate: Candidate, chosen: dict[str, Any]
) -> SklearnPipeline:
    """A new core, not fitted. Raises ValueError for parameters that the estimator does not take."""
    return SklearnPipeline([("prepare", _preparation(pipeline, columns)), ("estimator", candidate.make(chosen))])


def whole(table: Table, core: SklearnPipeline) -> SklearnPipeline:
    """A fitted core behind the step that encodes a frame's rows."""
    numbers = [column.name for column in table.columns if not column.categories]
    categories = [column for column in table.columns if column.categories]
    encoder = OrdinalEncoder(
        categories=[np.array(column.categories, object) for column in categories],
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,  # of a missing one too
    )
    parts = [("numbers", "passthrough", numbers)] if numbers else []
    parts += [("categories", encoder, [column.name for column in categories])] if categories else []
    encode = ColumnTransformer(parts).fit(table.frame.head(1000))
    return SklearnPipeline([("encode", encode), *core.steps])


def _preparation(pipeline: Pipeline, columns: Sequence[Column]) -> Any:
    """What imputes, scales and encodes the matrix's columns, as far as any needs it."""
    said = pipeline.preprocessing
    numbers = [place for place, column in enumerate(columns) if not column.categories]
    categories = [place for place, column in enumerate(columns) if column.categories]
    steps: list[Any] = []
    if said.impute != "none" and any(columns[place].missing for place in numbers):
        steps.append(SimpleImputer(strategy=said.impute, keep_empty_features=True))
    if said.scale != "none":
        steps.append(SCALERS[said.scale]())
    # a function that changes nothing converts to ONNX; "passthrough" by itself does not
    of_numbers = steps[0] if len(steps) == 1 else make_pipeline(*steps) if steps else FunctionTransformer()
    if not categories:
        return of_numbers
    parts: list[Any] = [("numbers", of_numbers, numbers)] if numbers else []
    for missing in (False, True):
        places = [place for place in categories if columns[place].missing == missing]
        if not places:
            continue
        steps = [SimpleImputer(strategy="constant", fill_value=MISSING)] if missing else []
        if said.encode == "one_hot":
            codes = [np.arange(-1.0 if missing else 0.0, len(columns[place].categories)) for place in places]
            steps.append(OneHotEncoder(categories=codes, handle_unknown="ignore", sparse_output=False))
        step = steps[0] if len(steps) == 1 else make_pipeline(*steps) if steps else "passthrough"
        parts.append(("categories that may be missing" if missing else "categories", step, places))
    return ColumnTransformer(parts)

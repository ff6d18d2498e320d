"""The scikit-learn pipeline of a version: encoding of rows, preparation of features, and the estimator.

Its first step, `encode`, turns a frame of numbers and text into the contract's matrix. The other steps, the core, take
this matrix; they are searched and fitted, converted to ONNX, and served.
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
from labstack.training.table import FeatureColumn, TrainingTable

SCALERS = {"standard": StandardScaler, "minmax": MinMaxScaler, "robust": RobustScaler}
MISSING = -1.0  # the code of a missing category


def make_core(
    pipeline: Pipeline, columns: Sequence[FeatureColumn], candidate: Candidate, chosen: dict[str, Any]
) -> SklearnPipeline:
    """Return a new core, not fitted. Raises ValueError for parameters that the estimator does not take."""
    return SklearnPipeline([("prepare", _preparation(pipeline, columns)), ("estimator", candidate.make(chosen))])


def whole(table: TrainingTable, core: SklearnPipeline) -> SklearnPipeline:
    """Put the step that encodes a frame's rows before a fitted core."""
    numbers = [column.name for column in table.columns if not column.categories]
    categories = [column for column in table.columns if column.categories]
    encoder = OrdinalEncoder(
        categories=[np.array(column.categories, object) for column in categories],
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,  # for a missing category too
    )
    parts = [("numbers", "passthrough", numbers)] if numbers else []
    parts += [("categories", encoder, [column.name for column in categories])] if categories else []
    encode = ColumnTransformer(parts).fit(table.frame.head(1000))
    return SklearnPipeline([("encode", encode), *core.steps])


def _preparation(pipeline: Pipeline, columns: Sequence[FeatureColumn]) -> Any:
    """Return the steps that impute, scale and encode the matrix's columns, each only where a column needs it."""
    options = pipeline.preprocessing
    numbers = [index for index, column in enumerate(columns) if not column.categories]
    categories = [index for index, column in enumerate(columns) if column.categories]
    steps: list[Any] = []
    if options.impute != "none" and any(columns[index].missing for index in numbers):
        steps.append(SimpleImputer(strategy=options.impute, keep_empty_features=True))
    if options.scale != "none":
        steps.append(SCALERS[options.scale]())
    # an identity function converts to ONNX; "passthrough" as the only step does not
    number_step = steps[0] if len(steps) == 1 else make_pipeline(*steps) if steps else FunctionTransformer()
    if not categories:
        return number_step
    parts: list[Any] = [("numbers", number_step, numbers)] if numbers else []
    for missing in (False, True):
        indices = [index for index in categories if columns[index].missing == missing]
        if not indices:
            continue
        steps = [SimpleImputer(strategy="constant", fill_value=MISSING)] if missing else []
        if options.encode == "one_hot":
            codes = [np.arange(-1.0 if missing else 0.0, len(columns[index].categories)) for index in indices]
            steps.append(OneHotEncoder(categories=codes, handle_unknown="ignore", sparse_output=False))
        step = steps[0] if len(steps) == 1 else make_pipeline(*steps) if steps else "passthrough"
        parts.append(("categories that may be missing" if missing else "categories", step, indices))
    return ColumnTransformer(parts)

"""ONNX models predict as the pipelines that they were made from, or are not kept."""

import warnings

import numpy as np
import onnxruntime
import pytest
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from labstack.model.contract import Matrix
from labstack.training.onnx_export import TOLERANCE, export, measure_parity

LOADERS = {"iris": load_iris, "cancer": load_breast_cancer, "diabetes": load_diabetes}


def fitted(estimator: BaseEstimator, dataset: str) -> tuple[Pipeline, Matrix]:
    """A core fitted on every other row, with text for classes, and all rows."""
    features, target = LOADERS[dataset](return_X_y=True)
    if dataset != "diabetes":
        target = np.array([f"class {number}" for number in target])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged
        return make_pipeline(StandardScaler(), estimator).fit(features[::2], target[::2]), features


@pytest.mark.parametrize(
    ("dataset", "estimator", "form"),
    [
        ("iris", LogisticRegression(), "double"),
        ("cancer", LogisticRegression(), "double"),
        ("iris", RandomForestClassifier(20, random_state=0), "single trees"),
        ("cancer", RandomForestClassifier(20, random_state=0), "single trees"),
        ("cancer", DecisionTreeClassifier(random_state=0), "single trees"),
        ("cancer", ExtraTreesClassifier(20, random_state=0), "single trees"),
        ("cancer", GradientBoostingClassifier(n_estimators=10, random_state=0), "single trees"),
        ("iris", HistGradientBoostingClassifier(max_iter=10), "single trees"),
        ("iris", GaussianNB(), "double"),
        ("iris", MLPClassifier(max_iter=20, random_state=0), "double"),
        ("iris", KNeighborsClassifier(), "double"),
        ("diabetes", Ridge(), "double"),
        ("diabetes", RandomForestRegressor(20, random_state=0), "single trees"),
        ("diabetes", GradientBoostingRegressor(n_estimators=10, random_state=0), "single trees"),
    ],
    ids=str,
)
def test_what_is_kept_predicts_the_same(dataset: str, estimator: BaseEstimator, form: str) -> None:
    pipeline, features = fitted(estimator, dataset)
    exported = export(pipeline, features)
    assert exported is not None
    assert exported.form == form
    assert exported.parity <= TOLERANCE
    session = onnxruntime.InferenceSession(exported.model)
    dtype = np.float64 if session.get_inputs()[0].type == "tensor(double)" else np.float32
    output = session.run(None, {session.get_inputs()[0].name: features.astype(dtype)})[-1]
    if dataset == "diabetes":
        np.testing.assert_allclose(output.ravel(), pipeline.predict(features), rtol=1e-5)
    else:
        np.testing.assert_array_equal(pipeline.classes_[output.argmax(axis=1)], pipeline.predict(features))
        np.testing.assert_allclose(output, pipeline.predict_proba(features), atol=TOLERANCE)


def test_converting_leaves_the_estimator_as_it_was() -> None:
    pipeline, features = fitted(RandomForestClassifier(5, random_state=0), "cancer")
    before = [tree.tree_.threshold.copy() for tree in pipeline[-1].estimators_]
    export(pipeline, features)
    for tree, threshold in zip(pipeline[-1].estimators_, before, strict=True):
        np.testing.assert_array_equal(tree.tree_.threshold, threshold)


def test_labels_that_are_not_those_of_probabilities_stay_with_scikit_learn() -> None:
    pipeline, features = fitted(SVC(), "iris")
    assert export(pipeline, features) is None


def test_another_models_file_has_no_parity() -> None:
    pipeline, features = fitted(LogisticRegression(), "iris")
    other, _ = fitted(LogisticRegression(C=1e-4), "iris")
    exported = export(pipeline, features)
    assert exported is not None
    assert measure_parity(other, exported.model, features) > TOLERANCE


def test_gaps_are_filled_in_double_precision() -> None:
    features, target = load_diabetes(return_X_y=True)
    features = np.where(np.random.default_rng(0).random(features.shape) < 0.1, np.nan, features)
    core = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), Ridge()).fit(features, target)
    exported = export(core, features)
    assert exported is not None
    assert (exported.form, exported.parity < 1e-12) == ("double", True)


@pytest.mark.parametrize("estimator", [LogisticRegression(max_iter=1000), RandomForestClassifier(20, random_state=0)])
def test_categories_and_gaps_among_them_are_encoded(estimator: BaseEstimator) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 3, 300).astype(float)
    codes[:30] = np.nan
    features = np.column_stack([random.normal(size=300), codes])
    one_hot = OneHotEncoder(categories=[np.arange(-1.0, 3)], handle_unknown="ignore", sparse_output=False)
    gaps = make_pipeline(SimpleImputer(strategy="constant", fill_value=-1.0), one_hot)
    core = make_pipeline(ColumnTransformer([("n", StandardScaler(), [0]), ("c", gaps, [1])]), estimator)
    core.fit(features, np.where(features[:, 0] + np.nan_to_num(codes, nan=3) > 1, "b", "a"))
    exported = export(core, features)
    assert exported is not None
    assert exported.parity < 1e-6

"""Metrics are equal to scikit-learn's, and intervals cover at their level."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from labstack.training import evaluate
from labstack.training.evaluate import HeldOutPredictions, Scorer


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
def test_the_metrics_of_classes_are_those_of_scikit_learn(load: object) -> None:
    features, numbers = load(return_X_y=True)  # type: ignore[operator]
    target = np.array([f"class {number}" for number in numbers])
    model = LogisticRegression(C=0.001, max_iter=5000).fit(features, target)
    outputs, probabilities = model.predict(features), model.predict_proba(features)
    binary = len(model.classes_) == 2
    scores = probabilities[:, 1] if binary else probabilities
    expected = {
        "accuracy": metrics.accuracy_score(target, outputs),
        "balanced_accuracy": metrics.balanced_accuracy_score(target, outputs),
        "f1_macro": metrics.f1_score(target, outputs, average="macro"),
        "roc_auc": metrics.roc_auc_score(target, scores, multi_class="ovr"),
        "log_loss": metrics.log_loss(target, probabilities),
    }
    scorer = Scorer("classification", target, evaluate.predict(model, features))
    assert scorer.all() == pytest.approx(expected)
    some = np.random.default_rng(0).integers(0, len(target), 80)
    assert scorer("f1_macro", some) == pytest.approx(metrics.f1_score(target[some], outputs[some], average="macro"))


def test_the_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    features, target = load_diabetes(return_X_y=True)
    outputs = Ridge().fit(features, target).predict(features)
    expected = {
        "rmse": metrics.root_mean_squared_error(target, outputs),
        "mae": metrics.mean_absolute_error(target, outputs),
        "r2": metrics.r2_score(target, outputs),
    }
    assert Scorer("regression", target, HeldOutPredictions(outputs)).all() == pytest.approx(expected)


def test_without_probabilities_there_are_no_metrics_of_them() -> None:
    features, target = load_iris(return_X_y=True)
    model = LinearSVC().fit(features, target.astype(str))
    scorer = Scorer("classification", target.astype(str), evaluate.predict(model, features))
    assert set(scorer.all()) == {"accuracy", "balanced_accuracy", "f1_macro"}


def test_a_class_without_training_rows_counts_as_wrong() -> None:
    predictions = HeldOutPredictions(
        np.array(["a", "b", "a"]), ("a", "b"), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    )
    scorer = Scorer("classification", np.array(["a", "b", "c"]), predictions)
    assert scorer("accuracy") == pytest.approx(2 / 3)
    assert scorer("log_loss") > 10


def test_an_interval_covers_at_its_level() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        correct = random.random(200) < 0.8
        predictions = HeldOutPredictions(np.where(correct, "a", "b"), ("a", "b"))
        low, high = evaluate.intervals(Scorer("classification", np.full(200, "a"), predictions), seed)["accuracy"]
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 100


def test_an_undefined_metric_is_omitted() -> None:
    scorer = Scorer("regression", np.full(10, 3.0), HeldOutPredictions(np.full(10, 2.0)))
    assert scorer.all() == {"rmse": 1.0, "mae": 1.0}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (HeldOutPredictions(np.array([1.0, 2.0])), HeldOutPredictions(np.array([1.0, 2.0 + 1e-12])), True),
        (HeldOutPredictions(np.array([1.0, 2.0])), HeldOutPredictions(np.array([1.0, 2.1])), False),
        (HeldOutPredictions(np.array(["a"]), ("a", "b")), HeldOutPredictions(np.array(["a"]), ("a", "b")), True),
        (HeldOutPredictions(np.array(["a"]), ("a", "b")), HeldOutPredictions(np.array(["a"]), ("a", "c")), False),
        (
            HeldOutPredictions(np.array(["a"]), ("a", "b")),
            HeldOutPredictions(np.array(["a"]), ("a", "b"), np.array([[1.0, 0]])),
            False,
        ),
        (HeldOutPredictions(np.array([1.0])), None, False),
    ],
)
def test_two_versions_may_predict_the_same(
    first: HeldOutPredictions, second: HeldOutPredictions | None, same: bool
) -> None:
    assert evaluate.agree(first, second) is same


def test_the_area_is_of_all_rows() -> None:
    random = np.random.default_rng(0)
    target = np.where(random.random(30_000) < 0.5, "a", "b")
    noise = np.concatenate([np.zeros(20_000), random.normal(size=10_000) * 9])  # the first rows are easy
    scores = 1 / (1 + np.exp(-((target == "b") - 0.5 + noise)))
    predictions = HeldOutPredictions(
        np.where(scores > 0.5, "b", "a"), ("a", "b"), np.column_stack([1 - scores, scores])
    )
    area = Scorer("classification", target, predictions)("roc_auc")
    assert area == pytest.approx(metrics.roc_auc_score(target == "b", scores))
    assert area < 0.99


def test_rows_of_one_group_are_drawn_together() -> None:
    groups = np.arange(60) % 6
    for rows in evaluate.resamples(60, 0, groups):
        counts = np.bincount(rows, minlength=60).reshape(10, 6)
        assert (counts == counts[0]).all()

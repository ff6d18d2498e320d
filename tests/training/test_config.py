"""Pipeline files: the bundled ones, and all that can be wrong with one."""

from pathlib import Path

import pytest

from labstack.training import config
from labstack.training.config import PipelineError

GOOD = """
model: mine
task: classification
data: {dataset: iris, target: species}
estimator: sklearn.tree.DecisionTreeClassifier
metric: accuracy
"""


def read(tmp_path: Path, text: str) -> config.Pipeline:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    return config.read(str(path))


def test_the_bundled_pipelines_are_valid() -> None:
    assert config.names() == ["iris", "student_exam"]
    assert [config.read(name).model for name in config.names()] == config.names()


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    pipeline = read(tmp_path, GOOD)
    assert (pipeline.split.test_fraction, pipeline.split.seed, pipeline.params) == (0.25, 42, {})


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    params = read(tmp_path, GOOD + "params: {min_impurity_decrease: 1e-3, max_depth: 3}").params
    assert params == {"min_impurity_decrease": 0.001, "max_depth": 3}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("model: mine", "model: ../mine", "model: "),
        ("task: classification", "task: guessing", "task: .*'classification' or 'regression'"),
        ("target: species", "goal: species", "data.target: .*required.*data.goal: .*not permitted"),
        ("metric: accuracy", "metric: beauty", "accuracy, f1_macro, log_loss; not by beauty"),
        ("metric: accuracy", "metric: accuracy\nsplit: {test_fraction: 1.5}", "split.test_fraction: .*less than 1"),
        ("metric: accuracy", "metric: accuracy\nparams: {depth: 3}", "params: .*depth"),
        ("sklearn.tree.DecisionTreeClassifier", "os.system", "import path in scikit-learn"),
        ("sklearn.tree.DecisionTreeClassifier", "sklearn.tree.OakTree", "has no sklearn.tree.OakTree"),
        ("sklearn.tree.DecisionTreeClassifier", "sklearn.linear_model.Ridge", "does not do classification"),
        ("sklearn.tree.DecisionTreeClassifier", "sklearn.metrics.accuracy_score", "is no estimator"),
        ("sklearn.tree.DecisionTreeClassifier\nmetric: accuracy", "sklearn.svm.SVC\nmetric: log_loss", "probabilities"),
        ("model: mine", "model: [", "not YAML"),
        (GOOD, "- a list", "dictionary"),
        (GOOD, "", "dictionary"),
    ],
)
def test_a_fault_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in GOOD
    with pytest.raises(PipelineError, match=rf"pipeline\.yaml.*{fault}"):
        read(tmp_path, GOOD.replace(old, new))


def test_an_unknown_pipeline_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(PipelineError, match="there are: iris, student_exam"):
        config.read("irish")

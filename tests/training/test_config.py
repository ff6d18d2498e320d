"""Pipeline files: the bundled ones, and the errors that a file can have."""

from pathlib import Path

import pytest

from labstack.training import config
from labstack.training.config import PipelineError

GOOD = """
model: mine
task: classification
data: {dataset: iris, target: species}
candidates:
  - estimator: sklearn.tree.DecisionTreeClassifier
metric: accuracy
"""
TREE = "sklearn.tree.DecisionTreeClassifier"

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def read(tmp_path: Path, text: str) -> config.Pipeline:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    return config.read(str(path))


def test_the_bundled_pipelines_are_valid() -> None:
    assert config.names() == ["iris", "student_exam"]
    assert [config.read(name).model for name in config.names()] == config.names()


def test_keys_that_are_not_given_have_defaults(tmp_path: Path) -> None:
    pipeline = read(tmp_path, GOOD)
    assert (pipeline.split.test_fraction, pipeline.split.seed, pipeline.split_by) == (0.25, 42, "stratified")
    assert (pipeline.search.trials, pipeline.approval, pipeline.gates.margin) == (20, "auto", 0.0)


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    params = read(tmp_path, GOOD.replace(TREE, f"{TREE}\n    params: {{min_impurity_decrease: 1e-3, max_depth: 3}}"))
    assert params.candidates[0].params == {"min_impurity_decrease": 0.001, "max_depth": 3}


def test_the_path_of_a_table_is_relative_to_the_file(tmp_path: Path) -> None:
    pipeline = read(tmp_path, GOOD.replace("dataset: iris", "csv: tables/mine.csv"))
    assert pipeline.data.csv == tmp_path / "tables/mine.csv"


def with_candidate(more: str) -> tuple[str, str]:
    return TREE, f"{TREE}\n    {more}"


def with_more(more: str) -> tuple[str, str]:
    return "metric: accuracy", f"metric: accuracy\n{more}"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("model: mine", "model: ../mine", "model: "),
        ("task: classification", "task: guessing", "task: .*'classification' or 'regression'"),
        ("target: species", "target: species, filter: x >", "data.filter: character 1, 'x >': invalid syntax"),
        ("target: species", "target: species, filter: x", "data.filter: character 1, 'x': this is no condition"),
        ("target: species", "target: species, filter: '@os.x == 0'", "data.filter: character 1, .*@ is not allowed"),
        ("target: species", "goal: species", "data.target: .*required.*data.goal: .*not permitted"),
        ("dataset: iris", "dataset: iris, csv: x.csv", "data: exactly one of dataset, csv, parquet and sql"),
        ("dataset: iris, ", "", "data: exactly one of dataset, csv, parquet and sql"),
        ("target: species", "target: species, features: [species]", "'species' cannot be a feature"),
        ("metric: accuracy", "metric: beauty", "metric: .*accuracy, .*; not by beauty"),
        (*with_more("split: {test_fraction: 1.5}"), "split.test_fraction: .*less than 1"),
        (*with_more("split: {by: time}"), "split: column: time and group need one"),
        (*with_more("preprocessing: {scale: big}"), "preprocessing.scale: .*'standard'"),
        (*with_more("search: {trials: 0}"), "search.trials: .*greater than or equal to 1"),
        (*with_more("gates: {thresholds: {rmse: 1}}"), "gates.thresholds: a classification is measured by"),
        (*with_more("gates: {slices: [{column: x, limit: 1, metric: r2}]}"), "gates.slices.metric: .*not by r2"),
        (*with_more("gates: {expectations: [{raise: x, must: fly}]}"), "gates.expectations.0.must: .*'not fall'"),
        (
            *with_more("gates: {expectations: [{raise: x, swap: y, must: not change}]}"),
            "one of raise and swap is needed",
        ),
        (*with_more("gates: {expectations: [{swap: y, must: not fall}]}"), "categories have no order"),
        (*with_more("gates: {expectations: [{raise: x, must: not fall}]}"), "which class's probability must not fall"),
        (*with_more("approval: maybe"), "approval: .*'auto', 'ask' or 'manual'"),
        (*with_candidate("params: {depth: 3}"), "candidates.0: params: .*depth"),
        (
            *with_candidate("search: {depth: [3]}"),
            "candidates.0: search: .* has no parameter 'depth'; it has: .*max_depth",
        ),
        (*with_candidate("search: {max_depth: {low: 1}}"), "candidates.0.search.max_depth.high: .*required"),
        (*with_candidate("search: {max_depth: {low: 2, high: 1}}"), "search.max_depth: low must be less than high"),
        (*with_candidate("search: {max_depth: {low: 0, high: 1, log: true}}"), "log: low must be more than 0"),
        (*with_candidate("search: {max_depth: 3}"), "candidates.0.search.max_depth: .*tuple"),
        (*with_candidate("search: {max_depth: []}"), "'max_depth' needs a list of values, or low and high"),
        (*with_candidate("search: {max_depth: [[1]]}"), "'max_depth' needs a list of values, or low and high"),
        (*with_candidate("{params: {max_depth: 1}, search: {max_depth: [1]}}"), "not YAML"),
        (
            TREE,
            f"{TREE}\n    params: {{max_depth: 1}}\n    search: {{max_depth: [1]}}",
            "'max_depth' is fixed in params",
        ),
        (f"\n  - estimator: {TREE}", " []", "candidates: at least one is needed"),
        (TREE, "os.system", "import path in scikit-learn"),
        (TREE, "sklearn.externals._arff.ArffDecoder", "import path in scikit-learn"),
        (TREE, "sklearn.tests.test_base.MyEstimator", "import path in scikit-learn"),
        (TREE, "sklearn.tree._classes.DecisionTreeClassifier", "import path in scikit-learn"),
        (TREE, "sklearn.tree.OakTree", "has no sklearn.tree.OakTree"),
        (TREE, "sklearn.linear_model.Ridge", "candidates.0.estimator: .* does not do classification"),
        (TREE, "sklearn.metrics.accuracy_score", "is no estimator"),
        (f"{TREE}\nmetric: accuracy", "sklearn.svm.SVC\nmetric: log_loss", "probabilities, which log_loss needs"),
        ("model: mine", "model: [", "not YAML"),
        ("model: mine", "model: mine\nmodel: yours", "line 3 is not YAML: 'model' is given twice"),
        ("model: mine", "model: 2024-13-45", "is not YAML: month must be in 1..12"),
        ("model: mine", "model: " + "[" * 3000, "not YAML"),
        (*with_candidate("search: {min_impurity_decrease: {low: 0, high: .inf}}"), "high: .*finite"),
        ("target: species", "target: species, features: [a, a]", "features: a name is given twice"),
        ("model: mine", BOMB, r"is not YAML: it has more than 100,000 parts"),
        ("model: mine", "model: &a [*a]", r"is not YAML: it has more than 100,000 parts"),
        (GOOD, "- a list", "dictionary"),
        (GOOD, "", "dictionary"),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in GOOD
    with pytest.raises(PipelineError, match=rf"pipeline\.yaml.*{reason}"):
        read(tmp_path, GOOD.replace(old, new))


def test_all_errors_are_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"metric: .*; approval: "):
        read(tmp_path, GOOD.replace("metric: accuracy", "approval: maybe"))


def test_a_regression_has_neither_classes_nor_strata(tmp_path: Path) -> None:
    text = GOOD.replace("classification", "regression").replace(TREE, "sklearn.linear_model.Ridge")
    text = text.replace("accuracy", "rmse")
    assert read(tmp_path, text).more_is_better is False
    with pytest.raises(PipelineError, match="no classes to be stratified by"):
        read(tmp_path, text + "split: {by: stratified}")
    with pytest.raises(PipelineError, match="a regression has no classes"):
        read(tmp_path, text + "gates: {expectations: [{raise: x, must: not fall, class: a}]}")


def test_an_unknown_pipeline_is_rejected_with_the_known_names() -> None:
    with pytest.raises(PipelineError, match="there are: iris, student_exam"):
        config.read("irish")


def test_an_alias_repeats_a_part(tmp_path: Path) -> None:
    candidates = f"params: &same {{random_state: 0}}\n  - {{estimator: {TREE}, params: *same}}"
    text = GOOD.replace(TREE, f"{TREE}\n    {candidates}")
    assert read(tmp_path, text).candidates[1].params == {"random_state": 0}


def test_a_file_too_large_is_rejected_before_it_is_read_whole(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"pipeline\.yaml is no pipeline: it is larger than 1,048,576 bytes"):
        read(tmp_path, GOOD + "#" * (1 << 20))
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with pytest.raises(PipelineError, match="larger than 1,048,576 bytes"):
        config.read(str(tmp_path / "endless.yaml"))


def test_an_error_does_not_quote_the_file(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as raised:
        read(tmp_path, "data: {sql: {url: postgresql://u:TOPSECRET@h [")
    assert "TOPSECRET" not in str(raised.value)

"""Parts of estimators that scikit-learn's compiled code trusts: sound ones pass, damaged ones are refused."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, SVR, OneClassSVM
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import all_estimators

from labstack.model.compiled_parts import UnsoundError, require_sound

GENERATOR = np.random.default_rng(7)
ROWS = GENERATOR.random((90, 3))
LABELS = np.repeat(["a", "b", "c"], 30)
VALUES = ROWS.sum(axis=1)


def reloaded(estimator: Any, path: Path) -> Any:
    """An estimator as it comes back from its file, without any check."""
    skops.io.dump(estimator, path)
    return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_every_estimator_that_fits_is_sound(tmp_path: Path, kind: str) -> None:
    checked = 0
    for name, make in all_estimators(kind):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = make().fit(ROWS + 1, LABELS if kind == "classifier" else VALUES)
                loaded = reloaded(fitted, tmp_path / f"{name}.skops")
        except (TypeError, ValueError, AttributeError):
            continue  # it needs parameters or several targets, or cannot be written
        require_sound(make_pipeline(loaded))
        checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    "estimator",
    [
        KNeighborsClassifier(algorithm="ball_tree"),
        RandomForestClassifier(5, max_features=1),
        SVC(kernel="linear", probability=True),
        OneClassSVM(),
        IsolationForest(n_estimators=5, max_features=2),
        DecisionTreeRegressor(ccp_alpha=0.001),
        HistGradientBoostingRegressor(max_iter=3, categorical_features=[0]),
    ],
)
def test_others_are_sound_too(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = np.column_stack([np.arange(90) % 5, ROWS[:, 1:]])
        target = LABELS if hasattr(estimator, "predict_proba") else VALUES
        require_sound(estimator.fit(rows, target))


def _set(field: str, node: int, value: float) -> Callable[[Any], None]:
    def damage(estimator: Any) -> None:
        getattr(estimator.tree_, field)[node] = value

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _set("children_left", 0, 0),  # back into itself
        _set("children_right", 0, 10_000),
        _set("children_left", 2, -7),
        _set("feature", 0, 3),
        _set("feature", 0, -5),
        _set("threshold", 0, np.nan),
    ],
)
def test_a_forged_tree_is_refused(damage: Callable[[Any], None]) -> None:
    tree = DecisionTreeClassifier(random_state=0).fit(ROWS, LABELS)
    require_sound(tree)
    damage(tree)
    with pytest.raises(UnsoundError, match="damaged or forged"):
        require_sound({"deep": [(tree,)]})


def test_a_tree_that_says_it_has_more_nodes_is_refused() -> None:
    tree = DecisionTreeClassifier().fit(ROWS, LABELS)
    state = tree.tree_.__getstate__()
    tree.tree_.__setstate__(state | {"node_count": state["node_count"] + 1000})
    with pytest.raises(UnsoundError, match="another number of nodes"):
        require_sound(tree)


def test_trees_of_fewer_features_than_their_forest_takes_are_refused() -> None:
    forest = RandomForestClassifier(3).fit(ROWS, LABELS)
    forest.n_features_in_ = 2
    with pytest.raises(UnsoundError, match="number of features"):
        require_sound(forest)


def test_a_stage_of_more_trees_than_it_says_is_refused() -> None:
    boosted = GradientBoostingClassifier(n_estimators=2).fit(ROWS, LABELS)
    require_sound(boosted)
    boosted.n_trees_per_iteration_ = 1
    with pytest.raises(UnsoundError, match="number of trees"):
        require_sound(boosted)


@pytest.mark.parametrize(("field", "value"), [("left", 0), ("right", 1 << 20), ("feature_idx", 3)])
def test_a_forged_tree_of_bins_is_refused(field: str, value: int) -> None:
    boosted = HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=2).fit(ROWS, LABELS)
    require_sound(boosted)
    boosted._predictors[0][0].nodes[field][0] = value
    with pytest.raises(UnsoundError, match="damaged or forged"):
        require_sound(boosted)


@pytest.mark.parametrize(("part", "name"), [(1, None), (2, "idx_end"), (2, "idx_start")])
def test_a_forged_tree_of_neighbours_is_refused(part: int, name: str | None) -> None:
    nearest = KNeighborsClassifier(algorithm="kd_tree", leaf_size=5).fit(ROWS, LABELS)
    require_sound(nearest)
    state = list(nearest._tree.__getstate__())
    state[part] = state[part].copy()
    (state[part] if name is None else state[part][name])[0] = 10_000
    nearest._tree.__setstate__(tuple(state))
    with pytest.raises(UnsoundError, match="damaged or forged"):
        require_sound(nearest)


@pytest.mark.parametrize("field", ["_n_support", "_dual_coef_", "_intercept_", "support_vectors_"])
@pytest.mark.parametrize("estimator", [SVC(), SVR()])
def test_forged_support_vectors_are_refused(estimator: Any, field: str) -> None:
    fitted = estimator.fit(ROWS, LABELS if isinstance(estimator, SVC) else VALUES)
    require_sound(fitted)
    array = getattr(fitted, field)
    setattr(fitted, field, array + 1000 if field == "_n_support" else array[..., :-1])
    with pytest.raises(UnsoundError, match="damaged or forged"):
        require_sound(fitted)

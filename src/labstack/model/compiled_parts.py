"""Checks of the arrays that scikit-learn's compiled code reads unchecked: trees, neighbours, support vectors.

A skops file builds trusted types only, but their contents come from the file: an index out of range, or a cycle in a
tree, would crash the process that predicts, or never end. For this reason skops no longer trusts tree nodes
(https://github.com/skops-dev/skops/issues/535).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# ensembles that pass rows to their trees, which do not check the width of the rows again
UNCHECKED = ("sklearn.ensemble._forest", "sklearn.ensemble._gb", "sklearn.ensemble._iforest")
LEAF = -1  # in a tree's children, as sklearn.tree._tree.TREE_LEAF


class UnsoundError(Exception):
    """A part of an estimator would make compiled code read out of bounds, or never end."""


def require_sound(estimator: Any) -> None:
    """Raise UnsoundError unless compiled code can predict safely with all parts of a loaded estimator."""
    for part in _parts(estimator):
        kind = type(part).__name__
        if kind == "Tree":
            _require_tree(part)
        elif kind == "TreePredictor":
            _require_binned_tree(part)
        elif kind in ("KDTree", "BallTree", "KDTree64", "KDTree32", "BallTree64", "BallTree32"):
            _require_neighbours(part)
        elif hasattr(part, "__dict__"):
            _require_owner(part)


def _parts(estimator: Any) -> Iterator[Any]:
    """Yield all objects that an estimator holds, each once."""
    seen: dict[int, Any] = {}  # it holds the objects, so that no id is used again
    ahead = [estimator]
    while ahead:
        part = ahead.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | type(None)):
            continue
        seen[id(part)] = part
        yield part
        if isinstance(part, Mapping):
            ahead += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            ahead += part
        elif isinstance(part, np.ndarray):
            ahead += part.ravel().tolist() if part.dtype == object else []
        elif not isinstance(part, type) and hasattr(part, "__dict__"):
            ahead += vars(part).values()


def _require(condition: object, message: str) -> None:
    if not condition:
        raise UnsoundError(f"The model file is damaged or forged: {message}.")


def _require_tree(tree: Any) -> None:
    """Check a tree of sklearn.tree: each child comes after its parent, and each split is on an existing feature."""
    count = tree.node_count
    _require(0 < count <= tree.capacity, "a tree has another number of nodes than it says")
    _require(tree.n_outputs >= 1 and min(tree.value.shape) >= 1, "a tree has no outputs")
    left, right, index = tree.children_left, tree.children_right, np.arange(count)
    inner = left != LEAF
    _require((right[~inner] == LEAF).all(), "a tree's leaf has a child")
    for child in (left[inner], right[inner]):
        _require(((child > index[inner]) & (child < count)).all(), "a tree's child is outside the tree")
    feature = tree.feature[inner]
    _require(((feature >= 0) & (feature < tree.n_features)).all(), "a tree splits on a feature that does not exist")
    _require(not np.isnan(tree.threshold[inner]).any(), "a tree has a threshold that is not a number")


def _require_binned_tree(tree: Any) -> None:
    """Check a tree of histogram-based gradient boosting, except its features, whose number only its owner knows."""
    nodes = tree.nodes
    count, index = len(nodes), np.arange(len(nodes))
    inner = nodes["is_leaf"] == 0
    _require(nodes.ndim == 1 and count > 0, "a tree has no nodes")
    for child in (nodes["left"][inner], nodes["right"][inner]):
        _require(((child > index[inner]) & (child < count)).all(), "a tree's child is outside the tree")
    sets = nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)]
    for bitsets in (tree.raw_left_cat_bitsets, tree.binned_left_cat_bitsets):
        _require(bitsets.ndim == 2 and bitsets.shape[1] == 8, "a tree's categories have another form")
        _require((sets < len(bitsets)).all(), "a tree splits by categories that do not exist")


def _require_neighbours(tree: Any) -> None:
    """Check a k-d or ball tree: its nodes and their bounds, each of a range of existing rows."""
    data, rows, nodes, bounds, _, levels, count, *_ = tree.__getstate__()
    _require(data.ndim == 2 and rows.shape == data.shape[:1], "a tree of neighbours has another number of rows")
    _require(((rows >= 0) & (rows < len(data))).all(), "a tree of neighbours names a row that does not exist")
    _require(0 < count == len(nodes) == 2**levels - 1, "a tree of neighbours has another number of nodes")
    _require(bounds.ndim == 3 and bounds.shape[1:] == (count, data.shape[1]), "a tree of neighbours has other bounds")
    start, end = nodes["idx_start"], nodes["idx_end"]
    _require(
        ((start >= 0) & (start <= end) & (end <= len(data))).all(),
        "a tree of neighbours has a range that does not exist",
    )
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    _require((2 * inner + 2 < count).all(), "a tree of neighbours has a child that does not exist")


def _require_owner(estimator: Any) -> None:
    """Check that an estimator's fields fit the parts that compiled code reads for it."""
    fields = vars(estimator)
    features = fields.get("n_features_in_")
    if type(fields.get("tree_")).__name__ == "Tree":
        _require(fields["tree_"].n_features == features, "a tree is of another number of features")
    if type(estimator).__module__ in UNCHECKED and "estimators_" in fields:
        members = np.ravel(np.array(fields["estimators_"], object)).tolist()
        subsets = fields.get("estimators_features_") or [range(features)] * len(members)
        _require(len(subsets) == len(members), "an ensemble has another number of members")
        for member, subset in zip(members, subsets, strict=True):
            _require(member.tree_.n_features == len(subset), "an ensemble's tree is of another number of features")
        if "n_trees_per_iteration_" in fields:
            shape = len(fields["estimators_"]), fields["n_trees_per_iteration_"]
            _require(np.shape(fields["estimators_"]) == shape, "a stage has another number of trees")
            _require(
                all(member.tree_.value.shape[1:] == (1, 1) for member in members),
                "a stage's tree gives several numbers",
            )
    for stage in fields.get("_predictors", ()):
        for tree in stage:
            splits = tree.nodes["feature_idx"][tree.nodes["is_leaf"] == 0]
            _require(((splits >= 0) & (splits < features)).all(), "a tree splits on a feature that does not exist")
    if "support_vectors_" in fields and "_n_support" in fields:
        _require_support(fields)


def _require_support(fields: Mapping[str, Any]) -> None:
    """Check support vectors as libsvm reads them: each has coefficients and intercepts, and a class."""
    support, vectors, coefficients = fields["support_"], fields["support_vectors_"], fields["_dual_coef_"]
    numbers, intercepts = fields["_n_support"], fields["_intercept_"]
    _require(all(isinstance(array, np.ndarray) for array in (support, vectors, coefficients, intercepts)), "no arrays")
    count, classes = len(support), len(fields.get("classes_", ())) if "classes_" in fields else 0
    pairs = classes * (classes - 1) // 2 or 1
    _require(vectors.shape in ((count, fields["n_features_in_"]), (0, 0)), "support vectors have another shape")
    _require(coefficients.shape == (max(classes - 1, 1), count), "support vectors have other coefficients")
    _require(intercepts.shape == (pairs,), "support vectors have other intercepts")
    _require((numbers >= 0).all() and (numbers <= count).all(), "support vectors are of another number")
    if classes:
        _require(len(numbers) == classes and numbers.sum() == count, "support vectors are of other classes")
    for name in ("_probA", "_probB"):
        _require(fields[name].shape in ((0,), (pairs,)), "support vectors have other probabilities")

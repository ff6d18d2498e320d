"""Checks of what scikit-learn's compiled code reads without checks of its own: trees, neighbours, support vectors.

A file that skops loads builds named types alone, but what these hold is the file's: an index that points outside, or a
tree that leads back into itself, would crash the process that predicts, or never end. skops trusts tree nodes no more
for this reason (https://github.com/skops-dev/skops/issues/535).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# ensembles that hand their trees what they were handed, whose width these do not check again
UNCHECKED = ("sklearn.ensemble._forest", "sklearn.ensemble._gb", "sklearn.ensemble._iforest")
LEAF = -1  # in a tree's children, as sklearn.tree._tree.TREE_LEAF


class UnsoundError(Exception):
    """A part of an estimator would make compiled code read outside its memory, or never end."""


def require_sound(estimator: Any) -> None:
    """Raise UnsoundError unless compiled code can predict with all parts of a loaded estimator."""
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
    """Everything that an estimator holds, each once."""
    seen: dict[int, Any] = {}  # holds what it names, so that no other object gets the number
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


def _require(sound: object, what: str) -> None:
    if not sound:
        raise UnsoundError(f"The model file is damaged or forged: {what}.")


def _require_tree(tree: Any) -> None:
    """A tree of sklearn.tree: each child comes after its parent, each split is by a feature that there is."""
    count = tree.node_count
    _require(0 < count <= tree.capacity, "a tree has another number of nodes than it says")
    _require(tree.n_outputs >= 1 and min(tree.value.shape) >= 1, "a tree has no outputs")
    left, right, place = tree.children_left, tree.children_right, np.arange(count)
    inner = left != LEAF
    _require((right[~inner] == LEAF).all(), "a tree's leaf has a child")
    for child in (left[inner], right[inner]):
        _require(((child > place[inner]) & (child < count)).all(), "a tree's child is outside the tree")
    feature = tree.feature[inner]
    _require(((feature >= 0) & (feature < tree.n_features)).all(), "a tree splits on a feature that does not exist")
    _require(not np.isnan(tree.threshold[inner]).any(), "a tree has a threshold that is not a number")


def _require_binned_tree(tree: Any) -> None:
    """A tree of histogram-based gradient boosting, but for its features, whose number its owner knows."""
    nodes = tree.nodes
    count, place = len(nodes), np.arange(len(nodes))
    inner = nodes["is_leaf"] == 0
    _require(nodes.ndim == 1 and count > 0, "a tree has no nodes")
    for child in (nodes["left"][inner], nodes["right"][inner]):
        _require(((child > place[inner]) & (child < count)).all(), "a tree's child is outside the tree")
    sets = nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)]
    for bitsets in (tree.raw_left_cat_bitsets, tree.binned_left_cat_bitsets):
        _require(bitsets.ndim == 2 and bitsets.shape[1] == 8, "a tree's categories have another form")
        _require((sets < len(bitsets)).all(), "a tree splits by categories that there are not")


def _require_neighbours(tree: Any) -> None:
    """A k-d or ball tree: nodes and their bounds, each of a range of rows that there are."""
    data, rows, nodes, bounds, _, levels, count, *_ = tree.__getstate__()
    _require(data.ndim == 2 and rows.shape == data.shape[:1], "a tree of neighbours has another number of rows")
    _require(((rows >= 0) & (rows < len(data))).all(), "a tree of neighbours names a row that there is not")
    _require(0 < count == len(nodes) == 2**levels - 1, "a tree of neighbours has another number of nodes")
    _require(bounds.ndim == 3 and bounds.shape[1:] == (count, data.shape[1]), "a tree of neighbours has other bounds")
    start, end = nodes["idx_start"], nodes["idx_end"]
    _require(
        ((start >= 0) & (start <= end) & (end <= len(data))).all(), "a tree of neighbours has a range that there is not"
    )
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    _require((2 * inner + 2 < count).all(), "a tree of neighbours has a child that there is not")


def _require_owner(estimator: Any) -> None:
    """What an estimator says of the parts that compiled code reads for it."""
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
            _require(all(m.tree_.value.shape[1:] == (1, 1) for m in members), "a stage's tree gives several numbers")
    for stage in fields.get("_predictors", ()):
        for tree in stage:
            splits = tree.nodes["feature_idx"][tree.nodes["is_leaf"] == 0]
            _require(((splits >= 0) & (splits < features)).all(), "a tree splits on a feature that does not exist")
    if "support_vectors_" in fields and "_n_support" in fields:
        _require_support(fields)


def _require_support(fields: Mapping[str, Any]) -> None:
    """Support vectors as libsvm reads them: coefficients and intercepts for each, and each in a class."""
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

"""Conversion of a fitted scikit-learn pipeline to ONNX, kept only when both predict the same: parity is measured.

scikit-learn computes in double precision, but its trees compare single-precision features with double-precision
thresholds. So trees are exported in double precision up to the estimator and single in it, each threshold rounded
down to single precision, which changes no comparison with a single-precision feature. Other
estimators are tried in double precision, then in this mixed form, then in single precision.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import structlog
from onnx import TensorProto, compose, helper
from skl2onnx import to_onnx, update_registered_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline as SklearnPipeline

from labstack.model.contract import Matrix

OPSETS = {"": 18, "ai.onnx.ml": 3}
TOLERANCE = 1e-5  # absolute for probabilities, relative to their range for predicted numbers

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Export:
    """An ONNX model whose labels all agree with scikit-learn's; `parity` is the largest difference of an output."""

    model: bytes
    form: str
    parity: float


def export(estimator: SklearnPipeline, matrix: Matrix) -> Export | None:
    """Convert a fitted pipeline; None when it cannot be converted, or the model predicts these rows differently.

    Such a version is served by scikit-learn.
    """
    forms: list[tuple[str, Callable[[SklearnPipeline], onnx.ModelProto]]] = [
        ("double", _double),
        ("single trees", _single_estimator),
        ("single", _single),
    ]
    if _trees(estimator[-1]):  # double precision may agree on these rows and not on others
        forms = forms[1:2]
    for form, convert in forms:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the measurement below shows what converters warn of
                model = convert(estimator).SerializeToString()
                parity = measure_parity(estimator, model, matrix)
        except Exception as error:  # converters and the runtime raise many types; each means that this form fails
            log.debug("no ONNX", form=form, error=f"{type(error).__name__}: {error}"[:300])
            continue
        if parity <= TOLERANCE:
            return Export(model, form, parity)
        log.debug("no ONNX", form=form, parity=parity)
    return None


def runner(model: bytes) -> Callable[[Matrix], npt.NDArray[Any]]:
    """Return a function that runs an ONNX model on a matrix, on one thread as in serving, for its last output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    [features] = session.get_inputs()
    dtype = np.float64 if features.type == "tensor(double)" else np.float32
    outputs = [session.get_outputs()[-1].name]
    return lambda matrix: session.run(outputs, {features.name: matrix.astype(dtype, copy=False)})[0]


def measure_parity(estimator: SklearnPipeline, model: bytes, matrix: Matrix) -> float:
    """Return the largest difference between the outputs of an ONNX model and of its pipeline.

    Infinite when a label differs, or is not that of the largest probability, from which serving takes the label.
    """
    output = runner(model)(matrix)
    predicted = estimator.predict(matrix)
    if hasattr(estimator, "predict_proba"):
        if not np.array_equal(estimator.classes_[output.argmax(axis=1)], predicted):
            return float("inf")
        return float(np.abs(output - estimator.predict_proba(matrix)).max())
    if hasattr(estimator, "classes_"):
        return float("inf")  # labels without probabilities
    value_range = float(np.ptp(predicted)) or 1.0
    return float(np.abs(output.ravel() - predicted).max() / value_range)


def _double(estimator: SklearnPipeline) -> onnx.ModelProto:
    return _convert(estimator, DoubleTensorType)


def _single(estimator: SklearnPipeline) -> onnx.ModelProto:
    return _convert(estimator, FloatTensorType)


def _single_estimator(estimator: SklearnPipeline) -> onnx.ModelProto:
    """Convert the steps before the estimator in double precision, then cast, and the estimator in single precision."""
    before = _convert(estimator[:-1], DoubleTensorType)
    last = copy.deepcopy(estimator[-1])
    for tree in _trees(last):
        tree.threshold[:] = _round_down(tree.threshold)
    after = _convert(last, FloatTensorType)
    if isinstance(last, ExtraTreesClassifier | RandomForestClassifier):
        _average_last(after.graph, len(last.estimators_))
    [output], [features] = before.graph.output, after.graph.input
    cast = helper.make_node("Cast", [output.name], ["single"], to=TensorProto.FLOAT)
    before.graph.node.append(cast)
    before.graph.output.remove(output)
    before.graph.output.append(helper.make_tensor_value_info("single", TensorProto.FLOAT, [None, None]))
    before = compose.add_prefix(before, "before_")
    after.ir_version = before.ir_version
    return compose.merge_models(before, after, io_map=[("before_single", features.name)])


def _average_last(graph: onnx.GraphProto, trees: int) -> None:
    """Sum a forest's probabilities before dividing them, as scikit-learn does, so that ties stay ties."""
    [node] = [node for node in graph.node if node.op_type == "TreeEnsembleClassifier"]
    weights = _attribute(node, "class_weights")
    sums = np.array(weights.floats, np.float64) * trees
    whole = np.isclose(sums, sums.round(), rtol=0, atol=1e-6)
    weights.floats[:] = np.where(whole, sums.round(), sums)
    probabilities, node.output[1] = node.output[1], "sums"
    graph.initializer.append(helper.make_tensor("trees", TensorProto.FLOAT, [], [trees]))
    after = [helper.make_node("Div", ["sums", "trees"], [probabilities])]
    if len(set(_attribute(node, "class_ids").ints)) == 1:  # for two classes the runtime sums only the second
        graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [], [1]))
        graph.initializer.append(helper.make_tensor("second", TensorProto.INT64, [1], [1]))
        after = [
            helper.make_node("Gather", ["sums", "second"], ["sum"], axis=1),
            helper.make_node("Div", ["sum", "trees"], ["share"]),
            helper.make_node("Sub", ["one", "share"], ["rest"]),
            helper.make_node("Concat", ["rest", "share"], [probabilities], axis=1),
        ]
    position = list(graph.node).index(node) + 1
    for added in reversed(after):
        graph.node.insert(position, added)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    match: onnx.AttributeProto = next(attribute for attribute in node.attribute if attribute.name == name)
    return match


def _imputed_shape(operator: Any) -> None:
    [features], [output] = operator.inputs, operator.outputs
    output.type = type(features.type)([None, len(operator.raw_operator.statistics_)])


def _convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """Convert an imputer in either precision; the runtime has ONNX's own Imputer in single precision only."""
    [features], [output] = operator.inputs, operator.outputs
    statistics = np.asarray(operator.raw_operator.statistics_, np.float64)
    kind = TensorProto.DOUBLE if isinstance(features.type, DoubleTensorType) else TensorProto.FLOAT
    values, missing = scope.get_unique_variable_name("values"), scope.get_unique_variable_name("missing")
    container.add_initializer(values, kind, [1, len(statistics)], statistics.tolist())
    container.add_node("IsNaN", [features.full_name], [missing], name=scope.get_unique_operator_name("IsNaN"))
    names = [missing, values, features.full_name]
    container.add_node("Where", names, [output.full_name], name=scope.get_unique_operator_name("Where"))


update_registered_converter(SimpleImputer, "LabstackSimpleImputer", _imputed_shape, _convert_imputer)


def _convert(estimator: Any, input_type: type) -> onnx.ModelProto:
    last = estimator[-1] if isinstance(estimator, SklearnPipeline) else estimator
    options = {id(last): {"zipmap": False}} if hasattr(last, "classes_") else None
    shape = [("features", input_type([None, estimator.n_features_in_]))]
    model: onnx.ModelProto = to_onnx(estimator, initial_types=shape, options=options, target_opset=OPSETS)
    del model.opset_import[:]  # the converter lowers the requested opsets, but models to be merged must name the same
    model.opset_import.extend(helper.make_opsetid(domain, number) for domain, number in OPSETS.items())
    return model


def _trees(estimator: Any) -> list[Any]:
    """Return the trees of a decision tree, a forest or gradient boosting; none for other estimators."""
    members = np.ravel(getattr(estimator, "estimators_", [estimator]))
    return [member.tree_ for member in members if hasattr(member, "tree_")]


def _round_down(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to single precision, downwards."""
    single = values.astype(np.float32)
    above = single.astype(np.float64) > values
    single[above] = np.nextafter(single[above], np.float32(-np.inf))
    return single.astype(np.float64)

"""Hostile versions: models that never end, take all memory, or break their contracts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from labstack.model.contract import FILE_NAME, ONNX_FILE_NAME

ENDLESS_ABOVE = 1_000.0  # a model of `endless` loops for ever for rows with a larger number


def endless(features: int, outputs: int, always: bool) -> ModelProto:
    """A model whose loop never ends, always or for large numbers; its outputs are 1/outputs each."""
    nothing = numpy_helper.from_array(np.zeros(1), "nothing")
    limit = numpy_helper.from_array(np.array([-np.inf if always else ENDLESS_ABOVE]), "limit")
    shares = numpy_helper.from_array(np.full((1, outputs), 1 / outputs), "shares")
    zero = numpy_helper.from_array(np.zeros((features, outputs)), "zero")
    body = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "limit"], ["is_larger"]),
            helper.make_node("Squeeze", ["is_larger"], ["more"]),
            helper.make_node("Identity", ["carried"], ["carries"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.DOUBLE, [1]),
        ],
        [
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carries", TensorProto.DOUBLE, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["", "yes", "nothing"], ["ended"], body=body),
            helper.make_node("MatMul", ["x", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "shares"], ["even"]),
            helper.make_node("Add", ["even", "ended"], ["probabilities"]),
        ],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, features])],
        [helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, [None, outputs])],
        [nothing, limit, shares, zero, numpy_helper.from_array(np.array(True), "yes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def put(folder: Path, model: ModelProto, **changes: Any) -> None:
    """Put a model into the folder of a version, with its digest and other changes in the contract."""
    data = model.SerializeToString()
    (folder / ONNX_FILE_NAME).write_bytes(data)
    contract = json.loads((folder / FILE_NAME).read_text())
    contract["onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "form": "double", "parity": 0.0}
    (folder / FILE_NAME).write_text(json.dumps(contract | changes))

"""The Open Inference Protocol, version 2: tensors in JSON, or in the binary form of Triton's extension.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md. Rows come as one tensor a
feature, of shape [rows] or [rows, 1], or as a single one of shape [rows, features] in the contract's order.
"""

import math
import re
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labstack.api.problems import Problem, field_errors
from labstack.model.contract import Contract, ContractError
from labstack.model.predictor import Predictions

NUMPY = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


class Input(BaseModel):
    """A tensor of a request; its values are in `data`, or in the bytes after the JSON."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Datatype
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class Output(BaseModel):
    """A tensor that a request wants in the answer."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """A request for inference."""

    model_config = ConfigDict(strict=True)

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[Input] = Field(min_length=1)
    outputs: list[Output] = []


def read(body: Any, contract: Contract) -> InferRequest:
    """Return the request in a JSON value. Raises ContractError that lists every error."""
    try:
        infer = InferRequest.model_validate(body)
    except ValidationError as error:
        raise ContractError(field_errors(error)) from None
    names = [output["name"] for output in outputs_of(contract)]
    if unknown := [output.name for output in infer.outputs if output.name not in names]:
        raise ContractError([("outputs", f"knows no {name!r}; there are {', '.join(names)}") for name in unknown])
    return infer


def rows_of(infer: InferRequest, binary: bytes, contract: Contract) -> list[dict[str, Any]]:
    """Return the rows that a request's tensors hold. Raises ContractError."""
    columns = _columns(infer, binary, [feature.name for feature in contract.features])
    if len({len(column) for column in columns.values()}) > 1:
        raise ContractError([("inputs", "must have as many rows in each tensor")])
    for feature in contract.features:
        if feature.missing and not feature.categories and feature.name in columns:
            values = columns[feature.name]
            columns[feature.name] = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _columns(infer: InferRequest, binary: bytes, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each column; of a single tensor of shape [rows, features], in the order of the features."""
    columns: dict[str, list[Any]] = {}
    for number, tensor in enumerate(infer.inputs):
        field = f"inputs.{number}"
        values, binary = _values(field, tensor, binary)
        width = tensor.shape[1] if len(tensor.shape) == 2 else 1
        if len(infer.inputs) == 1 and tensor.name not in names and width == len(names):
            columns = {name: values[column::width] for column, name in enumerate(names)}
        elif width != 1 or tensor.name in columns:
            alternative = f"or a single tensor of shape [rows, {len(names)}]"
            raise ContractError([(field, f"must be a feature's column, of shape [rows] and named once, {alternative}")])
        else:
            columns[tensor.name] = values
    return columns


def _values(field: str, tensor: Input, binary: bytes) -> tuple[list[Any], bytes]:
    """Return a tensor's values, row by row, and the rest of the bytes after the JSON. Raises ContractError."""
    size = tensor.parameters.get("binary_data_size")
    if isinstance(size, int) and 0 <= size <= len(binary):
        values, binary = _from_binary(field, tensor.datatype, binary[:size]), binary[size:]
    elif tensor.data is not None and size is None:
        values = _flat(tensor.data)
    else:
        raise ContractError([(field, "holds no data, or not as many bytes as it says")])
    if len(values) != math.prod(tensor.shape):
        raise ContractError([(field, f"holds {len(values)} values, which are not of shape {tensor.shape}")])
    return values, binary


def inputs_of(contract: Contract) -> list[dict[str, Any]]:
    """Return the input tensors of a model, for its metadata."""
    return [
        {"name": feature.name, "datatype": "BYTES" if feature.categories else "FP64", "shape": [-1]}
        for feature in contract.features
    ]


def outputs_of(contract: Contract) -> list[dict[str, Any]]:
    """Return the output tensors of a model, for its metadata."""
    if contract.task == "regression":
        return [{"name": "value", "datatype": "FP64", "shape": [-1]}]
    probabilities = {"name": "probabilities", "datatype": "FP64", "shape": [-1, len(contract.classes)]}
    return [{"name": "class", "datatype": "BYTES", "shape": [-1]}, probabilities]


def answer(
    head: dict[str, Any], infer: InferRequest, predictions: Predictions, contract: Contract
) -> tuple[bytes, int]:
    """Return the answer's bytes, and how many of them are its JSON; with probabilities if the version gives any."""
    tensors = _tensors(predictions, contract)
    wanted = [output for output in infer.outputs if output.name in tensors]
    described, binary = [], b""
    for output in wanted or [Output(name=name) for name in tensors]:
        datatype, shape, values = tensors[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.parameters.get("binary_data", infer.parameters.get("binary_data_output", False)):
            encoded = _to_binary(datatype, values)
            tensor["parameters"] = {"binary_data_size": len(encoded)}
            binary += encoded
        else:
            tensor["data"] = np.asarray(values).ravel().tolist()
        described.append(tensor)
    text = orjson.dumps(head | ({"id": infer.id} if infer.id else {}) | {"outputs": described})
    return text + binary, len(text)


def _tensors(predictions: Predictions, contract: Contract) -> dict[str, tuple[str, list[int], Any]]:
    """Return datatype, shape and values of each output tensor by its name."""
    given: dict[str, tuple[str, list[int], Any]] = {}
    rows = len(predictions.outputs)
    if contract.task == "regression":
        given["value"] = "FP64", [rows], predictions.outputs
    else:
        given["class"] = "BYTES", [rows], predictions.outputs
        if predictions.probabilities is not None:
            given["probabilities"] = "FP64", [rows, len(contract.classes)], predictions.probabilities
    return given


def split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    """Return a body's JSON and the bytes after it; `header` is Inference-Header-Content-Length. Raises Problem."""
    if header is None:
        return body, b""
    if not re.fullmatch(r"[0-9]{1,12}", header) or int(header) > len(body):
        raise Problem(400, "binary", "Inference-Header-Content-Length is no length within the body.")
    return body[: int(header)], body[int(header) :]


def _flat(data: list[Any]) -> list[Any]:
    return [value for row in data for value in row] if data and all(isinstance(row, list) for row in data) else data


def _from_binary(field: str, datatype: str, data: bytes) -> list[Any]:
    try:
        if datatype != "BYTES":
            values: list[Any] = np.frombuffer(data, NUMPY[datatype]).tolist()
            return values
        texts, start = [], 0
        while start < len(data):
            (length,) = struct.unpack_from("<I", data, start)
            end = start + 4 + length
            if end > len(data):
                raise ValueError
            texts.append(data[start + 4 : end].decode())
            start = end
        return texts
    except (ValueError, struct.error):
        raise ContractError([(field, f"holds bytes that are no {datatype} values")]) from None


def _to_binary(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return np.asarray(values, NUMPY[datatype]).tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)

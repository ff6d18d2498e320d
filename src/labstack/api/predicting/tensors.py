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

from labstack.api.problems import Problem, faults_of
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
    """A tensor of a request; its values are its `data`, or in the bytes behind the JSON."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Datatype
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class Output(BaseModel):
    """A tensor that a request asks for."""

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


def read(sent: Any, contract: Contract) -> InferRequest:
    """The request that a JSON value is. Raises ContractError that names every fault."""
    try:
        asked = InferRequest.model_validate(sent)
    except ValidationError as error:
        raise ContractError(faults_of(error)) from None
    names = [output["name"] for output in outputs_of(contract)]
    if unknown := [output.name for output in asked.outputs if output.name not in names]:
        raise ContractError([("outputs", f"knows no {name!r}; there are {', '.join(names)}") for name in unknown])
    return asked


def rows_of(asked: InferRequest, binary: bytes, contract: Contract) -> list[dict[str, Any]]:
    """The rows that a request's tensors hold. Raises ContractError."""
    columns: dict[str, list[Any]] = {}
    names = [feature.name for feature in contract.features]
    for number, tensor in enumerate(asked.inputs):
        place = f"inputs.{number}"
        size = tensor.parameters.get("binary_data_size")
        if isinstance(size, int) and 0 <= size <= len(binary):
            values, binary = _from_binary(place, tensor.datatype, binary[:size]), binary[size:]
        elif tensor.data is not None and size is None:
            values = _flat(tensor.data)
        else:
            raise ContractError([(place, "holds no data, or not as many bytes as it says")])
        if len(values) != math.prod(tensor.shape):
            raise ContractError([(place, f"holds {len(values)} values, which are not of shape {tensor.shape}")])
        width = tensor.shape[1] if len(tensor.shape) == 2 else 1
        if len(asked.inputs) == 1 and tensor.name not in names and width == len(names):
            columns = {name: values[column::width] for column, name in enumerate(names)}
        elif width != 1 or tensor.name in columns:
            whole = f"or a single tensor of shape [rows, {len(names)}]"
            raise ContractError([(place, f"must be a feature's column, of shape [rows] and named once, {whole}")])
        else:
            columns[tensor.name] = values
    if len({len(column) for column in columns.values()}) > 1:
        raise ContractError([("inputs", "must have as many rows in each tensor")])
    for feature in contract.features:
        if feature.missing and not feature.categories and feature.name in columns:
            values = columns[feature.name]
            columns[feature.name] = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def inputs_of(contract: Contract) -> list[dict[str, Any]]:
    """The tensors that a model takes, as its metadata tells."""
    return [
        {"name": feature.name, "datatype": "BYTES" if feature.categories else "FP64", "shape": [-1]}
        for feature in contract.features
    ]


def outputs_of(contract: Contract) -> list[dict[str, Any]]:
    """The tensors that a model gives, as its metadata tells."""
    if contract.task == "regression":
        return [{"name": "value", "datatype": "FP64", "shape": [-1]}]
    probabilities = {"name": "probabilities", "datatype": "FP64", "shape": [-1, len(contract.classes)]}
    return [{"name": "class", "datatype": "BYTES", "shape": [-1]}, probabilities]


def answer(
    head: dict[str, Any], asked: InferRequest, predictions: Predictions, contract: Contract
) -> tuple[bytes, int]:
    """The answer's bytes, and how many of them are its JSON; probabilities only where the version gives some."""
    given: dict[str, tuple[str, list[int], Any]] = {}
    rows = len(predictions.outputs)
    if contract.task == "regression":
        given["value"] = "FP64", [rows], predictions.outputs
    else:
        given["class"] = "BYTES", [rows], predictions.outputs
        if predictions.probabilities is not None:
            given["probabilities"] = "FP64", [rows, len(contract.classes)], predictions.probabilities
    wanted = [output for output in asked.outputs if output.name in given] or [Output(name=name) for name in given]
    tensors, binary = [], b""
    for output in wanted:
        datatype, shape, values = given[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.parameters.get("binary_data", asked.parameters.get("binary_data_output", False)):
            encoded = _to_binary(datatype, values)
            tensor["parameters"] = {"binary_data_size": len(encoded)}
            binary += encoded
        else:
            tensor["data"] = np.asarray(values).ravel().tolist()
        tensors.append(tensor)
    text = orjson.dumps(head | ({"id": asked.id} if asked.id else {}) | {"outputs": tensors})
    return text + binary, len(text)


def split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    """A body's JSON and the bytes behind it; `header` is Inference-Header-Content-Length. Raises Problem."""
    if header is None:
        return body, b""
    if not re.fullmatch(r"[0-9]{1,12}", header) or int(header) > len(body):
        raise Problem(400, "binary", "Inference-Header-Content-Length is no length within the body.")
    return body[: int(header)], body[int(header) :]


def _flat(data: list[Any]) -> list[Any]:
    return [value for row in data for value in row] if data and all(isinstance(row, list) for row in data) else data


def _from_binary(place: str, datatype: str, data: bytes) -> list[Any]:
    try:
        if datatype != "BYTES":
            found: list[Any] = np.frombuffer(data, NUMPY[datatype]).tolist()
            return found
        texts, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            if at + 4 + length > len(data):
                raise ValueError
            texts.append(data[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return texts
    except (ValueError, struct.error):
        raise ContractError([(place, f"holds bytes that are no {datatype} values")]) from None


def _to_binary(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return np.asarray(values, NUMPY[datatype]).tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)

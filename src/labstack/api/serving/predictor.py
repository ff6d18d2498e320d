"""A loaded version that turns a matrix into predictions."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from labstack import serialization
from labstack.contract import ONNX_FILE_NAME, Contract, Matrix, Plan


class PredictorError(Exception):
    """A version cannot be loaded, or does not predict what it did in training."""


@dataclass(frozen=True)
class Predictions:
    """One output a row: a label for classification, else a number.

    `probabilities`, of shape (rows, classes) in the order of the contract's classes, where the estimator gives them.
    """

    outputs: list[str] | list[float]
    probabilities: Matrix | None


class SklearnPredictor:
    """A scikit-learn pipeline without its first step, which makes of a frame the matrix that the contract makes."""

    runtime = "sklearn"

    def __init__(self, estimator: Any, contract: Contract) -> None:
        self._estimator = estimator[1:]
        self._classifies = contract.task == "classification"
        self._gives_probabilities = self._classifies and hasattr(self._estimator, "predict_proba")

    def predict(self, matrix: Matrix) -> Predictions:
        """Predictions for a matrix of shape (rows, features)."""
        outputs = self._estimator.predict(matrix)
        return Predictions(
            outputs.astype(str).tolist() if self._classifies else outputs.astype(np.float64).tolist(),
            self._estimator.predict_proba(matrix) if self._gives_probabilities else None,
        )


class OnnxPredictor:
    """An ONNX model, whose last output is the probabilities, of shape (rows, classes), or the values, (rows, 1)."""

    runtime = "onnx"

    def __init__(self, model: bytes, contract: Contract) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the workers are what runs side by side
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        [given] = session.get_inputs()
        self._run = session.run
        self._input = given.name
        self._outputs = [session.get_outputs()[-1].name]
        self._dtype = np.float64 if given.type == "tensor(double)" else np.float32
        self._classes = contract.classes

    def predict(self, matrix: Matrix) -> Predictions:
        """Predictions for a matrix of shape (rows, features)."""
        output = self._run(self._outputs, {self._input: matrix.astype(self._dtype, copy=False)})[0]
        if not self._classes:
            return Predictions(output.ravel().tolist(), None)
        return Predictions([self._classes[index] for index in output.argmax(axis=1).tolist()], output)


Predictor = OnnxPredictor | SklearnPredictor


def load(folder: Path, contract: Contract) -> Predictor:
    """The predictor of the version in `folder`, tried on the contract's sample. Raises PredictorError."""
    try:
        predictor = _load(folder, contract)
        expected = contract.sample.output
        matrix, _ = Plan(contract).parse([contract.sample.input])
        [output] = predictor.predict(matrix).outputs
    except Exception as error:  # a damaged version may fail in any way, and must never stop its loader
        raise PredictorError(f"{type(error).__name__}: {error}") from error
    same = output == expected if isinstance(expected, str) else bool(np.isclose(float(output), expected, rtol=1e-4))
    if not same:
        raise PredictorError(f"It predicts {output!r} for its own sample, and predicted {expected!r} in training.")
    return predictor


def _load(folder: Path, contract: Contract) -> Predictor:
    if contract.onnx is None:
        return SklearnPredictor(serialization.load(folder), contract)
    model = (folder / ONNX_FILE_NAME).read_bytes()
    if hashlib.sha256(model).hexdigest() != contract.onnx.sha256:
        raise PredictorError(f"{ONNX_FILE_NAME} is not the file that training logged.")
    return OnnxPredictor(model, contract)

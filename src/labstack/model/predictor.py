"""Predictors: a loaded version turns a matrix into predictions, and predictions into the JSON results of an answer.

`python -m labstack.model.predictor FOLDER MEMORY_BYTES SECONDS PREDICTION_SECONDS` loads a version within limits, tries
it, and ends; `registry/trial.py` runs it.
"""

import hashlib
import math
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import onnxruntime
import orjson

from labstack.model import skops_file
from labstack.model.contract import ONNX_FILE_NAME, Contract, Matrix, Plan

if TYPE_CHECKING:  # a trial starts sooner without pydantic-settings
    from labstack.settings import Settings

WATCH_SECONDS = 0.1  # how often the watch looks for predictions that take too long
FAILED = 3  # the exit code of a trial that printed what is wrong
QUICK_SECONDS = 0.1  # of one prediction; after a slower one, a version is not quick for SLOW_SECONDS
SLOW_SECONDS = 60.0
TRIED_ROWS = (1, 2, 7)  # in one call each: a model may accept only one number of rows


class PredictorError(Exception):
    """A version cannot be loaded, predicts otherwise than in training, or breaks its contract."""


class Limits(NamedTuple):
    """The limits of a predictor: seconds for each prediction by ONNX, and bytes of its unpacked file."""

    seconds: float
    memory_bytes: int

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """Return the limits in the settings."""
        return cls(settings.prediction_seconds, settings.model_memory_bytes)


@dataclass(frozen=True)
class Predictions:
    """One output for each row: a label for classification, else a number.

    `probabilities` has shape (rows, classes), in the order of the contract's classes; None without them.
    """

    outputs: list[str] | list[float]
    probabilities: Matrix | None


class Results:
    """The writer of predictions as JSON: for each row a class with its confidence and all probabilities, or a value."""

    def __init__(self, contract: Contract) -> None:
        self._classes = len(contract.classes)
        if contract.task == "regression":
            self._texts: tuple[bytes, ...] = (b'{"value":',)
            return
        first, *others = (orjson.dumps(name) + b":" for name in contract.classes)
        probabilities = (b',"probabilities":{' + first, *(b"," + other for other in others))
        self._texts = (b'{"class":', b',"confidence":', *probabilities)

    def __call__(self, predictions: Predictions) -> list[bytes]:
        """Return the JSON of each row. Built by columns: dictionaries for rows would take longer than predicting."""
        probabilities = predictions.probabilities
        texts = self._texts
        if not self._classes:
            columns = [_cells(predictions.outputs)]
        else:
            columns = [list(map(orjson.dumps, predictions.outputs))]
            if probabilities is None:
                texts = texts[:1]
            else:
                cells = _cells(probabilities.ravel())
                columns += [_cells(probabilities.max(axis=1))]
                columns += [cells[number :: self._classes] for number in range(self._classes)]
        end = b"}" if len(columns) == 1 else b"}}"
        pieces = chain.from_iterable((repeat(text), column) for text, column in zip(texts, columns, strict=True))
        return list(map(b"".join, zip(*pieces, repeat(end), strict=False)))


def _cells(numbers: Any) -> list[bytes]:
    """Return each number as JSON; null when it is not finite."""
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


class Watch:
    """The thread of a process that ends predictions after their timeout.

    The threads that predict write `running`, each its own entry, and the watch reads it. Single operations of a
    dictionary need no lock.
    """

    def __init__(self) -> None:
        self.running: dict[onnxruntime.RunOptions, float] = {}  # the end of each prediction's time, by time.monotonic
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread unless it runs; called in each process that predicts, after the fork."""
        with self._start:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            now = time.monotonic()
            for options, end in self.running.copy().items():
                if end < now:
                    options.terminate = True


watch = Watch()


class SklearnPredictor:
    """A scikit-learn pipeline without its first step, which turns a frame into the matrix that the contract makes."""

    runtime = "sklearn"
    is_quick = False

    def __init__(self, estimator: Any, contract: Contract) -> None:
        self._estimator = estimator[1:]
        self._classes = contract.classes
        self._gives_probabilities = bool(self._classes) and hasattr(self._estimator, "predict_proba")
        known = tuple(map(str, getattr(self._estimator, "classes_", ())))
        if known != self._classes:
            raise PredictorError(
                f"The estimator's classes are {_names(known)}, and those of its contract {_names(self._classes)}."
            )

    def predict(self, matrix: Matrix) -> Predictions:
        """Predict a matrix of shape (rows, features). Raises PredictorError for outputs of another shape."""
        outputs = self._estimator.predict(matrix)
        probabilities = self._estimator.predict_proba(matrix) if self._gives_probabilities else None
        _require_shape(outputs, (len(matrix),))
        if probabilities is not None:
            _require_shape(probabilities, (len(matrix), len(self._classes)))
        return Predictions(
            outputs.astype(str).tolist() if self._classes else outputs.astype(np.float64).tolist(), probabilities
        )


class OnnxPredictor:
    """An ONNX model, whose last output is the probabilities, of shape (rows, classes), or the values, (rows, 1).

    Each prediction has a timeout of so many `seconds`.
    """

    runtime = "onnx"

    def __init__(self, model: bytes, contract: Contract, seconds: float) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # parallelism comes from the workers
        options.log_severity_level = 4  # errors are raised
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        [entry] = session.get_inputs()
        self._run = session.run
        self._input = entry.name
        self._outputs = [session.get_outputs()[-1].name]
        self._dtype = np.float64 if entry.type == "tensor(double)" else np.float32
        self._classes = contract.classes
        self._width = len(contract.classes) or 1
        self._seconds = seconds
        self._slow_until = 0.0
        watch.start()

    @property
    def is_quick(self) -> bool:
        """True when no recent prediction was slow."""
        return time.monotonic() >= self._slow_until

    def predict(self, matrix: Matrix) -> Predictions:
        """Predict a matrix of shape (rows, features).

        Raises PredictorError after the timeout, or for outputs of another shape than the contract's.
        """
        options = onnxruntime.RunOptions()  # one for each run: a reused one could be ended late, in its next run
        began = time.monotonic()
        watch.running[options] = began + self._seconds
        try:
            output = self._run(self._outputs, {self._input: matrix.astype(self._dtype, copy=False)}, options)[0]
        except Exception as error:
            if not options.terminate:
                raise
            raise PredictorError(f"It took longer than {self._seconds:g} seconds (PREDICTION_SECONDS).") from error
        finally:
            del watch.running[options]
            now = time.monotonic()
            if now - began > QUICK_SECONDS:
                self._slow_until = now + SLOW_SECONDS
        if output.shape != (len(matrix), self._width):
            _require_shape(output, (len(matrix),) if self._width == 1 else (len(matrix), self._width))
        if not self._classes:
            return Predictions(output.ravel().tolist(), None)
        return Predictions([self._classes[index] for index in output.argmax(axis=1).tolist()], output)


Predictor = OnnxPredictor | SklearnPredictor


def load(folder: Path, contract: Contract, limits: Limits) -> Predictor:
    """Load the version in `folder`, and try it as requests will use it, on the contract's sample.

    Raises PredictorError.
    """
    try:
        predictor = _load(folder, contract, limits)
        expected = contract.sample.output
        for rows in TRIED_ROWS:
            matrix, _ = Plan(contract).parse([contract.sample.input] * rows)
            predictions = predictor.predict(matrix)
            result = orjson.loads(Results(contract)(predictions)[-1])
            _require_result(result, contract)
            output = result["class" if contract.classes else "value"]
            is_same = output == expected if contract.classes else bool(np.isclose(output, expected, rtol=1e-4))
            if not is_same:
                raise PredictorError(
                    f"It predicts {output!r} for its own sample, and predicted {expected!r} in training."
                )
    except (PredictorError, MemoryError):
        raise
    except Exception as error:  # a damaged version may fail in any way, and must not stop its loader
        raise PredictorError(f"{type(error).__name__}: {error}") from error
    return predictor


def _load(folder: Path, contract: Contract, limits: Limits) -> Predictor:
    if contract.onnx is None:
        return SklearnPredictor(skops_file.load(folder, limits.memory_bytes), contract)
    model = (folder / ONNX_FILE_NAME).read_bytes()
    if hashlib.sha256(model).hexdigest() != contract.onnx.sha256:
        raise PredictorError(f"{ONNX_FILE_NAME} is not the file that training logged.")
    return OnnxPredictor(model, contract, limits.seconds)


def _require_shape(output: Any, expected: tuple[int, ...]) -> None:
    if output.shape != expected:
        raise PredictorError(f"Its output has shape {output.shape}, and {expected} is needed.")


def _require_result(result: dict[str, Any], contract: Contract) -> None:
    """Raise PredictorError when the result of a row breaks the contract."""
    numbers = np.array(list(result.get("probabilities", {}).values()) if contract.classes else [result["value"]], float)
    if not np.isfinite(numbers).all():
        raise PredictorError("It predicts numbers that are not finite for its own sample.")
    if contract.classes and len(numbers) and not (numbers.min() >= -1e-6 and abs(numbers.sum() - 1) < 1e-3):
        raise PredictorError(f"Its outputs for its own sample are not probabilities: {numbers[:10].tolist()}.")


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) or "none"


def main() -> None:
    folder, memory = Path(sys.argv[1]), int(sys.argv[2])
    load_seconds, seconds = map(float, sys.argv[3:])
    signal.alarm(math.ceil(load_seconds) + 1)  # in case the process that started this one is gone by then
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        load(folder, Contract.read(folder), Limits(seconds, memory))
    except MemoryError:
        text = f"It takes more than {memory:,} bytes of memory (MODEL_MEMORY_BYTES)."
    except (PredictorError, OSError, ValueError) as error:
        text = str(error)
    else:
        return
    print(text[:2_000], flush=True)  # noqa: T201
    os._exit(FAILED)  # at once, without finalizers of the objects that a forged file made


if __name__ == "__main__":
    main()

"""The package of a version, all that serving needs, in one folder: estimator, ONNX model if any, and contract."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skops.io
from sklearn.pipeline import Pipeline as SklearnPipeline

from labstack.model import skops_file
from labstack.model.contract import ONNX_FILE_NAME, Contract, Feature, Matrix, Onnx, Reference, Sample
from labstack.training import estimator, onnx_export
from labstack.training.config import Pipeline
from labstack.training.evaluate import HeldOutPredictions
from labstack.training.onnx_export import Export
from labstack.training.table import FeatureColumn, TrainingTable

BINS = 20


@dataclass(frozen=True)
class Package:
    """A fitted version: `whole` takes frames, `core` the contract's matrix; `folder` holds its files."""

    whole: SklearnPipeline
    core: SklearnPipeline
    onnx: Export | None
    contract: Contract
    folder: Path
    trusted: list[str]  # types in the estimator's file that skops trusts only when they are named

    @property
    def runtime(self) -> str:
        """The runtime that serves the version."""
        return "sklearn" if self.onnx is None else "onnx"


def pack(
    pipeline: Pipeline, table: TrainingTable, core: SklearnPipeline, predictions: HeldOutPredictions, folder: Path
) -> Package:
    """Write the package of a fitted core and its predictions of the held-out rows to a folder.

    Raises ModelFileError for types that are not trusted.
    """
    whole = estimator.whole(table, core)
    path = folder / skops_file.FILE_NAME
    skops.io.dump(whole, path)
    trusted = skops_file.trusted_types(path)
    onnx = None if pipeline.gates.onnx == "off" else onnx_export.export(core, table.matrix[table.test])
    if onnx is not None:
        (folder / ONNX_FILE_NAME).write_bytes(onnx.model)
    contract = _contract(pipeline, table, core, predictions, onnx)
    contract.write(folder)
    return Package(whole, core, onnx, contract, folder, trusted)


def reference_of_numbers(values: npt.NDArray[np.float64]) -> Reference:
    """Count numbers in bins between their quantiles, at most twenty; fewer when quantiles are equal."""
    present = values[~np.isnan(values)]
    edges = np.unique(np.quantile(present, np.linspace(0, 1, BINS + 1)[1:-1])) if len(present) else np.empty(0)
    counts = np.bincount(np.searchsorted(edges, present, side="left"), minlength=len(edges) + 1)
    return Reference(
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        missing=len(values) - len(present),
        mean=float(present.mean()) if len(present) else 0.0,
        std=float(present.std()) if len(present) else 0.0,
    )


def reference_of_names(values: Sequence[Any] | npt.NDArray[Any], names: Sequence[Any]) -> Reference:
    """Count the values of each name; all others count as missing."""
    array = np.asarray(values)
    counts = [int((array == name).sum()) for name in names]
    return Reference(counts=tuple(counts), missing=len(array) - sum(counts))


def _contract(
    pipeline: Pipeline,
    table: TrainingTable,
    core: SklearnPipeline,
    predictions: HeldOutPredictions,
    onnx: Export | None,
) -> Contract:
    train = table.matrix[table.train]
    first_output = core.predict(train[:1])[0]
    outputs = predictions.outputs  # of held-out rows, which are new to the model like those of requests
    classes = tuple(map(str, core.classes_)) if pipeline.task == "classification" else ()
    first = table.frame.iloc[table.train[0]]
    return Contract(
        task=pipeline.task,
        target=pipeline.data.target,
        features=tuple(_feature(column, train[:, index]) for index, column in enumerate(table.columns)),
        classes=classes,
        sample=Sample(
            input={name: None if first[name] != first[name] else first[name] for name in table.frame},
            output=str(first_output) if classes else float(first_output),
        ),
        onnx=onnx and Onnx(sha256=hashlib.sha256(onnx.model).hexdigest(), form=onnx.form, parity=onnx.parity),
        reference=reference_of_names(outputs.astype(str), classes) if classes else reference_of_numbers(outputs),
    )


def _feature(column: FeatureColumn, values: Matrix) -> Feature:
    """Describe a feature by its values in the training rows, one column of the matrix."""
    if column.categories:
        reference = reference_of_names(values, range(len(column.categories)))
        return Feature(name=column.name, categories=column.categories, missing=column.missing, reference=reference)
    reference = reference_of_numbers(values)
    low, high = (0.0, 0.0) if np.isnan(values).all() else (float(np.nanmin(values)), float(np.nanmax(values)))
    return Feature(name=column.name, minimum=low, maximum=high, missing=column.missing, reference=reference)

"""What serving needs of a version, in one folder: the estimator, its ONNX model where it has one, and the contract."""

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
from labstack.training.data import Table
from labstack.training.evaluate import Predicted
from labstack.training.onnx_export import Export

BINS = 20


@dataclass(frozen=True)
class Package:
    """A fitted version: `whole` takes frames, `core` the contract's matrix; `folder` holds its files."""

    whole: SklearnPipeline
    core: SklearnPipeline
    onnx: Export | None
    contract: Contract
    folder: Path
    trusted: list[str]  # the types in the estimator's file that skops does not know by itself

    @property
    def runtime(self) -> str:
        """What serves the version."""
        return "sklearn" if self.onnx is None else "onnx"


def pack(pipeline: Pipeline, table: Table, core: SklearnPipeline, predicted: Predicted, folder: Path) -> Package:
    """Write the package of a fitted core, which predicted the held-out rows so, into a folder.

    Raises ModelFileError for types that are not trusted.
    """
    whole = estimator.whole(table, core)
    path = folder / skops_file.FILE_NAME
    skops.io.dump(whole, path)
    trusted = skops_file.trusted_types(path)
    onnx = None if pipeline.gates.onnx == "off" else onnx_export.export(core, table.matrix[table.test])
    if onnx is not None:
        (folder / ONNX_FILE_NAME).write_bytes(onnx.model)
    contract = _contract(pipeline, table, core, predicted, onnx)
    contract.write(folder)
    return Package(whole, core, onnx, contract, folder, trusted)


def reference_of_numbers(values: npt.NDArray[np.float64]) -> Reference:
    """The bins between the quantiles of numbers, twenty where they differ enough, and how many fell into each."""
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.empty(0)
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    return Reference(
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        missing=len(values) - len(known),
        mean=float(known.mean()) if len(known) else 0.0,
        std=float(known.std()) if len(known) else 0.0,
    )


def reference_of_names(values: Sequence[Any] | npt.NDArray[Any], names: Sequence[Any]) -> Reference:
    """How many values are of each name; all others count as missing."""
    array = np.asarray(values)
    counts = [int((array == name).sum()) for name in names]
    return Reference(counts=tuple(counts), missing=len(array) - sum(counts))


def _contract(
    pipeline: Pipeline, table: Table, core: SklearnPipeline, predicted: Predicted, onnx: Export | None
) -> Contract:
    learnt = table.matrix[table.train]
    first_output = core.predict(learnt[:1])[0]
    outputs = predicted.outputs  # of rows it did not learn from, as those that will come
    classes = tuple(map(str, core.classes_)) if pipeline.task == "classification" else ()
    first = table.frame.iloc[table.train[0]]
    return Contract(
        task=pipeline.task,
        target=pipeline.data.target,
        features=tuple(_feature(table, place, learnt[:, place]) for place in range(len(table.columns))),
        classes=classes,
        sample=Sample(
            input={name: None if first[name] != first[name] else first[name] for name in table.frame},
            output=str(first_output) if classes else float(first_output),
        ),
        onnx=onnx and Onnx(sha256=hashlib.sha256(onnx.model).hexdigest(), form=onnx.form, parity=onnx.parity),
        reference=reference_of_names(outputs.astype(str), classes) if classes else reference_of_numbers(outputs),
    )


def _feature(table: Table, place: int, learnt: Matrix) -> Feature:
    """A feature as its column in the matrix of the rows learnt from shows it."""
    column = table.columns[place]
    if column.categories:
        spread = reference_of_names(learnt, range(len(column.categories)))
        return Feature(name=column.name, categories=column.categories, missing=column.missing, reference=spread)
    spread = reference_of_numbers(learnt)
    ends = (float(np.nanmin(learnt)), float(np.nanmax(learnt))) if not np.isnan(learnt).all() else (0.0, 0.0)
    return Feature(name=column.name, minimum=ends[0], maximum=ends[1], missing=column.missing, reference=spread)

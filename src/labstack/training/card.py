"""The model card: a version's purpose, training data, metrics and limits, in Markdown.

After Mitchell et al., Model Cards for Model Reporting (2019).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from labstack.training.config import Pipeline
from labstack.training.gates import Gate
from labstack.training.package import Package
from labstack.training.search import SearchResult
from labstack.training.table import TrainingTable

SHOWN = 20


def write(
    pipeline: Pipeline,
    table: TrainingTable,
    result: SearchResult,
    package: Package,
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    importance: dict[str, tuple[float, float]],
    gates: Sequence[Gate],
) -> str:
    """Return the text of the card."""
    parts = [
        f"# {pipeline.model}\n",
        f"Predicts **{pipeline.data.target}** ({pipeline.task}) with {result.candidate.name}, "
        f"served by {package.runtime}.\n",
        "## Data\n",
        f"{len(table.train):,} rows for training and {len(table.test):,} held out ({pipeline.split_by}, seed "
        f"{pipeline.split.seed}), of {pipeline.data}. Digest `{table.digest[:16]}`.\n",
        _rows(("feature", "kind", "range or categories", "may be missing"), _features(package)),
        "## Search\n",
        _search(pipeline, result),
        _rows(("parameter", "value"), sorted((package.core[-1].get_params()).items())),
        "## Held-out rows\n",
        _rows(("metric", "value", "95 % interval"), _metrics(metrics, intervals)),
        f"Feature importance: how much worse {pipeline.metric} gets when the feature is shuffled.\n",
        _rows(("feature", "importance"), _importances(importance)),
        "## Gates\n",
        _rows(
            ("gate", "passed", "why"), [(gate.name, "yes" if gate.passed else "**no**", gate.said) for gate in gates]
        ),
        "## Limits\n",
        "\n".join(f"- {limit}." for limit in _limits(pipeline, table, package)) + "\n",
    ]
    return "\n".join(parts)


def _rows(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of at most twenty rows."""
    lines = [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    shown = [" | ".join(header), " | ".join("---" for _ in header), *lines[:SHOWN], *more]
    return "\n".join(f"| {line} |" for line in shown) + "\n"


def _importances(importance: dict[str, tuple[float, float]]) -> Iterable[tuple[str, str]]:
    for name, (mean, deviation) in importance.items():
        yield name, f"{mean:.4g} ± {deviation:.2g}"


def _features(package: Package) -> Iterable[tuple[str, ...]]:
    for feature in package.contract.features:
        seen = (
            ", ".join(feature.categories[:10]) if feature.categories else f"{feature.minimum:g} to {feature.maximum:g}"
        )
        yield feature.name, "category" if feature.categories else "number", seen, "yes" if feature.missing else "no"


def _search(pipeline: Pipeline, result: SearchResult) -> str:
    if result.score is None:
        return "There was one candidate without parameters to search.\n"
    names = ", ".join(candidate.name for candidate in pipeline.candidates)
    return (
        f"The best of {result.trials} trials of {names}, by {pipeline.metric} over {pipeline.search.folds} folds of "
        f"the training rows: {result.score:.4f}.\n"
    )


def _metrics(metrics: dict[str, float], intervals: dict[str, tuple[float, float]]) -> Iterable[tuple[str, str, str]]:
    for name, value in metrics.items():
        low, high = intervals[name]
        yield name, f"{value:.4f}", f"{low:.4f} to {high:.4f}"


def _limits(pipeline: Pipeline, table: TrainingTable, package: Package) -> Iterable[str]:
    yield from table.warnings
    yield "Values out of the ranges above are predicted with a warning; no training row had such values"
    if any(column.categories for column in table.columns):
        yield "Categories other than those above are rejected"
    if pipeline.split_by in ("random", "stratified"):
        yield "Rows were held out at random: if data change over time, or rows come in groups, expect worse results"
    if package.onnx is None:
        yield "scikit-learn serves this version, more slowly than an ONNX model"

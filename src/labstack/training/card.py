"""The model card: what a version is, what it learnt from, how good it is and what its limits are, in Markdown.

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
    found: SearchResult,
    package: Package,
    measured: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    importance: dict[str, tuple[float, float]],
    gates: Sequence[Gate],
) -> str:
    """The card's text."""
    parts = [
        f"# {pipeline.model}\n",
        f"Predicts **{pipeline.data.target}** ({pipeline.task}) with {found.candidate.name}, "
        f"served by {package.runtime}.\n",
        "## Data\n",
        f"{len(table.train):,} rows to learn from and {len(table.test):,} held out ({pipeline.split_by}, seed "
        f"{pipeline.split.seed}), of {pipeline.data}. Digest `{table.digest[:16]}`.\n",
        _rows(("feature", "kind", "range or categories", "may be missing"), _features(package)),
        "## Search\n",
        _search(pipeline, found),
        _rows(("parameter", "value"), sorted((package.core[-1].get_params()).items())),
        "## Held-out rows\n",
        _rows(("metric", "value", "95 % interval"), _metrics(measured, intervals)),
        f"What a feature is worth: how much worse {pipeline.metric} gets when its values are shuffled.\n",
        _rows(("feature", "worth"), [(name, f"{mean:.4g} ± {std:.2g}") for name, (mean, std) in importance.items()]),
        "## Gates\n",
        _rows(
            ("gate", "passed", "why"), [(gate.name, "yes" if gate.passed else "**no**", gate.said) for gate in gates]
        ),
        "## Limits\n",
        "\n".join(f"- {limit}." for limit in _limits(pipeline, table, package)) + "\n",
    ]
    return "\n".join(parts)


def _rows(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of at most twenty rows."""
    every = [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    more = [f"… and {len(every) - SHOWN} more"] if len(every) > SHOWN else []
    shown = [" | ".join(header), " | ".join("---" for _ in header), *every[:SHOWN], *more]
    return "\n".join(f"| {line} |" for line in shown) + "\n"


def _features(package: Package) -> Iterable[tuple[str, ...]]:
    for feature in package.contract.features:
        seen = (
            ", ".join(feature.categories[:10]) if feature.categories else f"{feature.minimum:g} to {feature.maximum:g}"
        )
        yield feature.name, "category" if feature.categories else "number", seen, "yes" if feature.missing else "no"


def _search(pipeline: Pipeline, found: SearchResult) -> str:
    if found.score is None:
        return "There was one candidate, and nothing to search.\n"
    names = ", ".join(candidate.name for candidate in pipeline.candidates)
    return (
        f"The best of {found.trials} trials of {names}, by {pipeline.metric} over {pipeline.search.folds} folds of the "
        f"training rows: {found.score:.4f}.\n"
    )


def _metrics(measured: dict[str, float], intervals: dict[str, tuple[float, float]]) -> Iterable[tuple[str, str, str]]:
    for name, value in measured.items():
        low, high = intervals[name]
        yield name, f"{value:.4f}", f"{low:.4f} to {high:.4f}"


def _limits(pipeline: Pipeline, table: TrainingTable, package: Package) -> Iterable[str]:
    yield from table.warnings
    yield "Values beyond the ranges above are predicted with a warning, and were never learnt from"
    if any(column.categories for column in table.columns):
        yield "Other categories than those above are refused"
    if pipeline.split_by in ("random", "stratified"):
        yield "Rows were held out at random: if the world changes with time, or rows come in groups, expect worse"
    if package.onnx is None:
        yield "scikit-learn serves this version, which takes longer than an ONNX model would"

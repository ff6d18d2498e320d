"""Contracts: rows become a matrix, or every error in them is named."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labstack.model.contract import MAX_REPORTED_ERRORS, Contract, ContractError, Feature, Plan, Sample

CONTRACT = Contract(
    task="regression",
    target="y",
    features=(Feature(name="a", minimum=0, maximum=1), Feature(name="b", minimum=0, maximum=1)),
    classes=(),
    sample=Sample(input={"a": 0.5, "b": 0.5}, output=1.0),
)

MIXED = Contract(
    task="regression",
    target="y",
    features=(
        Feature(name="a", categories=("low", "high")),
        Feature(name="b", minimum=0, maximum=10, missing=True),
        Feature(name="c", categories=("x",), missing=True),
    ),
    classes=(),
    sample=Sample(input={"a": "low", "b": 5, "c": None}, output=1.0),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]) | st.text(), inner, max_size=4)
    ),
    max_leaves=10,
)


def errors(rows: list[Any], prefix: str = "") -> list[tuple[str, str]]:
    with pytest.raises(ContractError) as raised:
        Plan(CONTRACT).parse(rows, prefix)
    return raised.value.errors


def test_columns_are_in_the_order_of_the_contract() -> None:
    matrix, _ = Plan(CONTRACT).parse([{"b": 2, "a": 1.5}, {"a": -3, "b": 0}])
    np.testing.assert_array_equal(matrix, [[1.5, 2], [-3, 0]])


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "is null; a number is needed"),
        (True, "is the boolean true; a number is needed"),
        ("1", "is text; a number is needed"),
        ([1], "is a list; a number is needed"),
        ({}, "is an object; a number is needed"),
        (math.nan, "is nan; a finite number is needed"),
        (-math.inf, "is -inf; a finite number is needed"),
        (10**400, "is too large a number"),
        (1.1e30, "is too large a number"),
        (-1.1e30, "is too large a number"),
    ],
)
def test_a_value_that_is_not_a_number_is_named(value: Any, fault: str) -> None:
    assert errors([{"a": value, "b": 1}]) == [("a", fault)]


def test_all_errors_of_all_rows_are_named_at_once() -> None:
    rows = [{"a": None, "c": 1}, 7, {"a": 1, "b": 2}, {"a": 1, "b": "x"}]
    assert errors(rows, "instances") == [
        ("instances[0].a", "is null; a number is needed"),
        ("instances[0].b", "is missing"),
        ("instances[0].c", "is not a field of this model"),
        ("instances[1]", "is a number; an object with the fields a, b is needed"),
        ("instances[3].b", "is text; a number is needed"),
    ]


def test_many_errors_are_counted_and_cut() -> None:
    with pytest.raises(ContractError) as raised:
        Plan(CONTRACT).parse([{}] * 1000)
    assert (raised.value.count, len(raised.value.errors)) == (2000, MAX_REPORTED_ERRORS)
    assert str(raised.value) == "a is missing; and 1999 more errors"


@given(st.lists(json_values, min_size=1, max_size=4))
def test_any_json_gives_its_numbers_or_an_error(rows: list[Any]) -> None:
    try:
        matrix, _ = Plan(CONTRACT).parse(rows)
    except ContractError as error:
        assert error.errors
    else:
        assert [[float(row["a"]), float(row["b"])] for row in rows] == matrix.tolist()
        assert np.isfinite(matrix).all()


def test_categories_and_missing_values_are_read() -> None:
    rows = [{"a": "high", "b": None, "c": None}, {"c": "x", "b": 2, "a": "low"}]
    matrix, warnings = Plan(MIXED).parse(rows)
    np.testing.assert_array_equal(matrix, [[1, math.nan, math.nan], [0, 2, 0]])
    assert warnings == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"a": "middle", "b": 1, "c": "x"}, ("a", "is none of low, high")),
        ({"a": 1, "b": 1, "c": "x"}, ("a", "is a number; one of low, high is needed")),
        ({"a": None, "b": 1, "c": "x"}, ("a", "is null; one of low, high is needed")),
        ({"a": ["low"], "b": 1, "c": "x"}, ("a", "is a list; one of low, high is needed")),
        ({"a": "low", "b": math.nan, "c": "x"}, ("b", "is nan; a finite number is needed")),
        ({"a": "low", "b": 10**400, "c": "x"}, ("b", "is too large a number")),
        ({"a": "low", "b": True, "c": "x"}, ("b", "is the boolean true; a number is needed")),
        ({"a": "low", "b": 1}, ("c", "is missing")),
    ],
)
def test_a_value_that_does_not_fit_its_feature_is_named(row: dict[str, Any], fault: tuple[str, str]) -> None:
    with pytest.raises(ContractError) as raised:
        Plan(MIXED).parse([row])
    assert raised.value.errors == [fault]


cells = st.sampled_from(["low", "high", "x", None, True, 0, 2.5, math.nan, 1e31, 10**400, "", ["low"]])


plain = st.fixed_dictionaries(dict.fromkeys("ab", cells))
mixed = st.fixed_dictionaries(dict.fromkeys("abc", cells))


@given(st.lists(plain | mixed | st.dictionaries(st.sampled_from("abcd"), cells), min_size=1, max_size=3))
@pytest.mark.parametrize("contract", [CONTRACT, MIXED], ids=["plain", "mixed"])
def test_the_fast_and_the_thorough_parser_agree(contract: Contract, rows: list[Any]) -> None:
    plan = Plan(contract)
    try:
        thorough = plan._row_by_row(rows, "")
    except ContractError as error:
        with pytest.raises(ContractError) as raised:
            plan.parse(rows)
        assert raised.value.errors == error.errors
    else:
        np.testing.assert_array_equal(plan.parse(rows)[0], thorough)
        assert plan._quickly(rows) is not None


def test_values_out_of_range_are_read_with_a_warning() -> None:
    matrix, warnings = Plan(MIXED).parse([{"a": "low", "b": 10, "c": "x"}, {"a": "low", "b": 11, "c": None}], "rows")
    assert matrix[:, 1].tolist() == [10, 11]
    assert warnings == [("rows[1].b", "is 11, out of the range of training, 0 to 10")]
    assert Plan(CONTRACT).parse([{"a": -1, "b": 0}])[1] == [("a", "is -1, out of the range of training, 0 to 1")]


def test_differences_that_break_callers_are_named() -> None:
    def changed(**fields: Any) -> Contract:
        return MIXED.model_copy(update=fields)

    a, b, c = MIXED.features
    assert MIXED.breaks_with(MIXED) == []
    assert (
        changed(features=(c, b, a.model_copy(update={"categories": ("low", "mid", "high")}))).breaks_with(MIXED) == []
    )
    for other, difference in [
        (changed(task="classification"), "its task is classification, not regression"),
        (changed(classes=("p", "q")), "its classes are p, q, not "),
        (changed(features=(a, b)), "it takes no field 'c'"),
        (changed(features=(*MIXED.features, Feature(name="d"))), "it needs the field 'd'"),
        (changed(features=(a, Feature(name="b"), c)), "'b' may not be missing"),
        (changed(features=(a, b, Feature(name="c", missing=True))), "'c' is a number"),
        (changed(features=(Feature(name="a", categories=("low",)), b, c)), "'a' knows no high"),
    ]:
        assert other.breaks_with(MIXED) == [difference]


def test_differences_are_named_in_the_order_of_the_features_that_callers_know() -> None:
    names = [f"feature_{number}" for number in range(20)]
    optional = [Feature(name=name, missing=True) for name in names]
    known = MIXED.model_copy(update={"features": tuple(optional)})
    stricter = MIXED.model_copy(update={"features": tuple(Feature(name=name) for name in reversed(names))})
    assert stricter.breaks_with(known) == [f"{name!r} may not be missing" for name in names]


def test_a_contract_is_read_as_it_was_written(tmp_path: Path) -> None:
    CONTRACT.write(tmp_path)
    assert Contract.read(tmp_path) == CONTRACT


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"task": "guessing"})])
def test_a_file_that_is_not_a_contract_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "contract.json").write_text(text)
    with pytest.raises(ValueError, match=r"contract\.json is not valid"):
        Contract.read(tmp_path)

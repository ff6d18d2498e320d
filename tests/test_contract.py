"""JSON in, a matrix out, or everything that is wrong with it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labstack.contract import MAX_REPORTED_ERRORS, Contract, ContractError, Feature, Plan, Sample

CONTRACT = Contract(
    task="regression",
    target="y",
    features=(Feature(name="a", minimum=0, maximum=1), Feature(name="b", minimum=0, maximum=1)),
    classes=(),
    sample=Sample(input={"a": 0.5, "b": 0.5}, output=1.0),
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
        Plan(CONTRACT).matrix(rows, prefix)
    return raised.value.errors


def test_columns_come_in_the_contracts_order_whatever_the_rows_order() -> None:
    matrix = Plan(CONTRACT).matrix([{"b": 2, "a": 1.5}, {"a": -3, "b": 0}])
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
def test_what_is_no_number_is_named(value: Any, fault: str) -> None:
    assert errors([{"a": value, "b": 1}]) == [("a", fault)]


def test_all_faults_of_all_rows_come_in_one_answer() -> None:
    rows = [{"a": None, "c": 1}, 7, {"a": 1, "b": 2}, {"a": 1, "b": "x"}]
    assert errors(rows, "instances") == [
        ("instances[0].a", "is null; a number is needed"),
        ("instances[0].b", "is missing"),
        ("instances[0].c", "is not a field of this model"),
        ("instances[1]", "is a number; an object with the fields a, b is needed"),
        ("instances[3].b", "is text; a number is needed"),
    ]


def test_a_flood_of_faults_is_counted_and_cut() -> None:
    with pytest.raises(ContractError) as raised:
        Plan(CONTRACT).matrix([{}] * 1000)
    assert (raised.value.count, len(raised.value.errors)) == (2000, MAX_REPORTED_ERRORS)
    assert str(raised.value) == "a is missing; and 1999 more faults"


@given(st.lists(json_values, min_size=1, max_size=4))
def test_any_json_gives_its_own_numbers_or_names_a_fault(rows: list[Any]) -> None:
    try:
        matrix = Plan(CONTRACT).matrix(rows)
    except ContractError as error:
        assert error.errors
    else:
        assert [[float(row["a"]), float(row["b"])] for row in rows] == matrix.tolist()
        assert np.isfinite(matrix).all()


def test_a_contract_is_what_its_file_says(tmp_path: Path) -> None:
    CONTRACT.write(tmp_path)
    assert Contract.read(tmp_path) == CONTRACT


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"task": "guessing"})])
def test_a_file_that_is_no_contract_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "contract.json").write_text(text)
    with pytest.raises(ValueError, match="Contract"):
        Contract.read(tmp_path)

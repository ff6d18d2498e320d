"""Filters: what pandas' query means by a condition, and nothing that runs code."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labstack.training import filters
from labstack.training.filters import FilterError

ROWS = pd.DataFrame(
    {
        "age": [10.0, 20.0, np.nan, 18.0, -3.0],
        "size": [0.0, 2.5, 3.0, 10.0, np.nan],
        "plan": np.array(["a", None, "b", "a", "#c"], object),
        "city": np.array(["a", "b", None, "x y", ""], object),
        "odd name": [1.0, 2.0, 3.0, 4.0, 5.0],
        "day": pd.to_datetime(["2025-01-01", "2026-01-01", "", "2025-06-30", "2024-02-29"]),
    }
)


def selected(text: str) -> list[bool]:
    return filters.parse(text)(ROWS).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("age >= 18", [1, 3]),
        ("  age >= 18 and plan != 'a'  ", [1]),
        ("age > 15 & size < 5 | plan == '#c'", [1, 4]),
        ("not (age < 15 or age > 19)", [2, 3]),
        ("~(age == 10)", [1, 2, 3, 4]),
        ("10 <= age < 20", [0, 3]),
        ("age in [10, -3] and plan not in ('b', 'x')", [0, 4]),
        ("plan == ['a', 'b']", [0, 2, 3]),
        ("plan in ['b', None]", [1, 2]),
        ("age.isna() or plan.isnull()", [1, 2]),
        ("age.notna() and city.notnull()", [0, 1, 3, 4]),
        ("age == age", [0, 1, 3, 4]),
        ("`odd name` % 2 == 1 and -age < 4 + 2 * 3", [0, 4]),
        ("age / 0 > 1e300", [0, 1, 3]),
        ("day >= '2025-06-01' and day != '2026-01-01'", [3]),
        ("day in ['2025-01-01']", [0]),
        ("plan == city", [0]),
        ("age > 15  # it's a comment\n and size < 5", [1]),
        ("plan == '#c' and city == \"\"", [4]),
    ],
)
def test_a_filter_selects_rows(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(selected(text)).tolist() == rows


def test_a_column_of_any_name_is_quoted() -> None:
    names = ["class", "it's", 'a"b', "a#b", "größe (cm)", "@x", "ﬁ", "__class__", "a.b", "_", "True", "1"]
    rows = pd.DataFrame([np.arange(float(len(names)))], columns=names)
    for place, name in enumerate(names):
        assert filters.parse(f"`{name}` == {place}")(rows).tolist() == [True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("@os.system('touch {mark}') == 0", "character 1, .*@ is not allowed; a filter compares columns"),
        ("@pd.io.common.os.system('touch {mark}') == 0", "@ is not allowed"),
        ("age > @age", "character 7, '@age': @ is not allowed"),
        ("__import__('os').system('touch {mark}') == age", "character 1, .*: a call is not allowed"),
        ("`__import__`('os') == age", "a call is not allowed"),
        ("age.__class__ == 1", "character 1, 'age.__class__': an attribute is not allowed"),
        ("age.map(print) == 1", "a call"),
        ("age.isna(1)", "a call"),
        ("(age).isna().any()", "a call"),
        ("(age > 1).isna()", "a call"),
        ("'age'.isna()", "a call"),
        ("`age`.__class__ == 1", "an attribute"),
        ("age[0] == 1", "a subscript"),
        ("f'{{age}}' == plan", "an f-string"),
        ("'%0999999999d' % age == plan", "this is text, and only numbers can be computed with"),
        ("plan == 'a' * 9999999999", "this is text, and only numbers"),
        ("plan * 9999999999 == 'a'", "character 1, 'plan': this is text"),
        ("age ** 2 > 1", r"\*\* is not allowed"),
        ("9 ** 9 ** 9 ** 9 > age", r"\*\* is not allowed"),
        ("age << 9999999999 > 1", "LShift is not allowed"),
        ("age > 1e999", "so large a number"),
        ("age > 9007199254740993", "so large a number"),
        ("age > " + "9" * 5000, "character 1|integer"),
        ("(lambda: age)() == 1", "a call"),
        ("(lambda: age) == age", "a lambda"),
        ("[x for x in age] == age", "a comprehension"),
        ("age in [x for x in age]", "in needs a list"),
        ("(age := 1) > age", "an assignment"),
        ("age = 3", "invalid syntax"),
        ("age > 1; import os", "invalid syntax"),
        ("age > 1 if age else 2", "if ... else"),
        ("age is None", "is is not allowed"),
        ("age == None", r"nothing is equal to None; write column.isna\(\)"),
        ("age + None > 1", "such a literal"),
        ("b'a' == plan", "such a literal"),
        ("1j == age", "such a literal"),
        ("age == ...", "such a literal"),
        ("{{1}} == age", "Set is not allowed"),
        ("age in plan", "in needs a list"),
        ("age in [plan]", "a list holds numbers and text only"),
        ("age < [1]", "a list is not compared in this way"),
        ("age + [1] > 1", "a list may only follow in"),
        ("(age > 1) > age", "a condition cannot be compared"),
        ("1 < 2", "neither is a column"),
        ("age", "no condition, such as age >= 18"),
        ("age and plan == 'a'", "character 1, 'age': this is no condition"),
        ("True", "no condition"),
        ("", "invalid syntax"),
        ("age >", "invalid syntax"),
        ("plan == 'a", "a quote is not closed"),
        ("`age > 1", "a quote is not closed"),
        ("`a`ge > 1", "invalid syntax"),
        ("a`ge` > 1", "invalid syntax"),
        ("age > 1\0", "null bytes"),
        ("plan == '\ud800'", "a lone surrogate"),
        ("\uff20os.system('touch {mark}') == 0", "invalid"),  # the full-width form of @
        ("__imp\uff4frt__('os') == age", "a call is not allowed"),
        ("age\u2024__class__ == 1", "invalid character"),
        ("(" * 300 + "age > 1" + ")" * 300, "too many nested parentheses"),
        ("not " * 150 + "age > 1", "100 deep"),
        ("age > " + "-" * 5000 + "1", "100 deep|recursion"),
        ("age + " * 200 + "age > 1", "100 deep"),
        ("age > 1 or " * 1000 + "age > 1", "11,007 characters; 10,000 are allowed"),
        ("none > 1", "character 1, 'none': there is no such column; there are: age, size"),
        ("`no such` > 1", "character 1, '`no such`': there is no such column"),
        ("__builtins__ == 1", "no such column"),
        ("plan > 3", "character 1, 'plan': this is text and 3 is a number; they cannot be compared"),
        ("plan == 3", "they cannot be compared"),
        ("'x' < age", "they cannot be compared"),
        ("age in [1, 'x']", "this is a number and 'x' is text"),
        ("day > 'soon'", "character 7, .*no date, such as"),
        ("day > 2025", "'day': this is a date and 2025 is a number"),
    ],
)
def test_an_invalid_filter_is_rejected_with_position_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FilterError, match=reason):
        selected(text.replace("{mark}", "mark").replace("{{", "{").replace("}}", "}"))
    assert os.listdir(tmp_path) == []


def test_dates_with_a_time_zone_are_compared_with_text() -> None:
    rows = pd.DataFrame({"day": ROWS["day"].dt.tz_localize("UTC")})
    assert filters.parse("day > '2025-06-01T00:00Z'")(rows).tolist() == [False, True, False, True, False]


NUMBERS = st.sampled_from(["age", "size", "`odd name`", "0", "1", "3", "2.5", "18", "1e3"])
TEXTS = st.sampled_from(["plan", "city", "'a'", "'b'", '"x y"', "'#c'", "'&'"])
ORDERS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


def has_column(text: str) -> bool:
    return any(name in text for name in ("age", "size", "odd name", "plan", "city", "day"))


VALUES = st.recursive(
    NUMBERS,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner)
        | st.builds("-{}".format, inner)
    ),
    max_leaves=5,
)
COMPARISONS = (
    st.builds("{} {} {}".format, VALUES, ORDERS, VALUES)
    | st.builds("{} {} {}".format, TEXTS, ORDERS, TEXTS)
    | st.builds("{} {} '{}'".format, st.just("day"), ORDERS, st.sampled_from(["2025-01-01", "2025-06-30 00:00"]))
    | st.builds("{} {} {}".format, st.sampled_from(["age", "size"]), IN := st.sampled_from(["in", "not in"]),
                st.sampled_from(["[10, 20]", "(3, 2.5)", "[]", "[None, 10]", "[-3]"]))
    | st.builds("{} {} {}".format, st.sampled_from(["plan", "city"]), IN,
                st.sampled_from(["['a']", "('b', 'x y')", "[]", "[None, 'a']", "[None]"]))
    | st.builds("{}.{}()".format, st.sampled_from(["age", "plan", "day", "`odd name`"]), st.sampled_from(
        ["isna", "notna", "isnull", "notnull"]))
).filter(has_column)  # fmt: skip
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or", "&", "|"]), inner)
        | st.builds("{}({})".format, st.sampled_from(["not ", "~", ""]), inner)
    ),
    max_leaves=5,
)


@given(CONDITIONS)
def test_a_condition_selects_the_rows_that_pandas_selects(text: str) -> None:
    try:
        rows = selected(text)
    except FilterError as error:  # of two literals, which pandas compares
        assert "neither is a column" in str(error)
        return
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore", category=FutureWarning):
        try:
            expected: Any = ROWS.eval(text, engine="python", parser="pandas")
        except ZeroDivisionError:  # of literals
            return
    assert rows == expected.tolist()

"""Conditions on rows: a subset of pandas' query language that compares, computes and joins, and cannot run code."""

import ast
import operator
import re
import warnings
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from labstack.errors import LabError

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 100  # of nested expressions
MAX_WHOLE = 2**53  # above, float64 cannot represent every integer

ALLOWED = (
    "a filter compares columns, numbers and text (== != < <= > >=, in [...], not in [...], column.isna(), "
    "column.notna()), computes numbers with + - * / // % and joins conditions with and, or, not"
)
_PIECES = re.compile(
    r"""(?P<text>'(?:[^'\\\n]|\\[^\n])*'|"(?:[^"\\\n]|\\[^\n])*")|(?P<name>`[^`\n]+`)|(?P<open>['"`])"""
    r"""|(?P<variable>@)|(?P<space>\s|\#[^\n]*)|(?P<join>[&|])|(?P<other>.)""",
    re.DOTALL,
)
_JOINS = {"&": " and ", "|": " or "}  # in a query they have the precedence of the words
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator | ast.unaryop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_MISSING: dict[str, Callable[[Any], Any]] = {"isna": pd.isna, "isnull": pd.isna, "notna": pd.notna, "notnull": pd.notna}
_NOUNS: dict[type[ast.AST], str] = {
    ast.Call: "a call",
    ast.Attribute: "an attribute",
    ast.Subscript: "a subscript",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment",
    ast.IfExp: "if ... else",
    ast.Pow: "**",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.Constant: "such a literal",
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
}

Condition = Callable[[pd.DataFrame], "pd.Series[bool]"]  # maps rows to a mask of the rows that meet it
_Value = Callable[[pd.DataFrame], Any]  # maps rows to a column or a literal


class FilterError(LabError, ValueError):
    """A filter is not allowed, or does not fit the rows; the text gives the position and the reason."""


def parse(text: str) -> Condition:
    """Parse a filter. Raises FilterError, as does the condition when rows do not fit it."""
    if len(text) > MAX_LENGTH:
        raise FilterError(f"it has {len(text):,} characters; {MAX_LENGTH:,} are allowed.")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise FilterError("it contains a lone surrogate, which is no character.")
    return _Parser(text).condition()


class _Parser:
    """A parser of one filter, from its text to conditions and values."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.positions: list[int] = []  # the position in the text of each parsed byte; quoted names are parsed as `_`

    def condition(self) -> Condition:
        source = self._source()
        try:
            with warnings.catch_warnings(action="ignore"):  # about escapes such as "\d"
                tree = ast.parse(source, mode="eval")
        except SyntaxError as error:
            position = self.positions[min(len(source[: (error.offset or 1) - 1].encode()), len(self.positions) - 1)]
            raise self._error(position, position + 20, f"{error.msg}; {ALLOWED}") from None
        except (ValueError, RecursionError, MemoryError) as error:  # NUL, or nested too deeply for Python's parser
            raise FilterError(f"it cannot be parsed: {error or 'it is nested too deeply'}; {ALLOWED}.") from None
        return self._condition(tree.body, 0)

    def _source(self) -> str:
        """Return the text as a Python expression on one line."""
        parts = []
        for piece in _PIECES.finditer(self.text):
            kind, start = piece.lastgroup, piece.start()
            if kind == "open":
                raise self._error(start, start + 20, "a quote is not closed")
            if kind == "variable":
                raise self._error(start, start + 20, f"@ is not allowed; {ALLOWED}")
            if kind == "name":
                part = " _ "
                self.positions += [start, start, piece.end()]
            else:
                part = {"space": " ", "join": _JOINS.get(piece[0], "")}.get(kind or "", piece[0])
                self.positions += [start] * len(part.encode())
            parts.append(part)
        lead = len("".join(parts)) - len("".join(parts).lstrip())
        self.positions = [*self.positions[lead:], len(self.text)]
        return "".join(parts)[lead:]

    def _condition(self, node: ast.expr, depth: int) -> Condition:
        self._require_shallow(node, depth)
        match node:
            case ast.BoolOp(op=op, values=values):
                join = operator.and_ if isinstance(op, ast.And) else operator.or_
                return _joined(join, [self._condition(value, depth + 1) for value in values])
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                part = self._condition(operand, depth + 1)
                return lambda rows: ~part(rows)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                pairs = zip([left, *comparators], ops, comparators, strict=False)
                return _joined(operator.and_, [self._comparison(*pair, depth + 1) for pair in pairs])
            case ast.Call(func=ast.Attribute(value=ast.Name() as name, attr=attribute), args=[], keywords=[]) if (
                attribute in _MISSING
            ):
                column = self._column(name)
                return lambda rows: _MISSING[attribute](column(rows))
            case ast.Name() | ast.Constant() | ast.BinOp() | ast.UnaryOp() | ast.List() | ast.Tuple():
                raise self._wrong(node, "this is no condition, such as age >= 18")
            case _:
                raise self._rejected(node)

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> Condition:
        if not any(isinstance(part, ast.Name) for side in (left, right) for part in ast.walk(side)):
            raise self._wrong(left, "this is compared with another literal, and neither is a column")
        if isinstance(op, ast.Eq | ast.NotEq) and isinstance(left, ast.List | ast.Tuple):
            left, right = right, left
        if isinstance(op, ast.In | ast.NotIn) or isinstance(right, ast.List | ast.Tuple):
            return self._membership(left, op, right, depth)
        if type(op) not in _COMPARISONS:
            raise self._rejected(op, left)
        if _is_none(left) or _is_none(right):
            raise self._wrong(left, "nothing is equal to None; write column.isna() or column.notna()")
        compare, values = _COMPARISONS[type(op)], [self._value(side, depth) for side in (left, right)]

        def compared(rows: pd.DataFrame) -> Any:
            first, second = (value(rows) for value in values)
            if _kind(first) == "a date" or _kind(second) == "a date":
                first, second = self._time(left, first), self._time(right, second)
            self._require_alike(left, first, right, second)
            return compare(first, second)

        return compared

    def _membership(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> Condition:
        if not isinstance(right, ast.List | ast.Tuple):
            raise self._wrong(right, "in needs a list, as in [1, 2]")
        if not isinstance(op, ast.In | ast.NotIn | ast.Eq | ast.NotEq):
            raise self._wrong(right, "a list is not compared in this way; write in or not in")
        for entry in right.elts:
            if any(isinstance(part, ast.Name) for part in ast.walk(entry)):
                raise self._wrong(entry, "a list holds numbers and text only")
        value = self._value(left, depth)
        entries = [_nothing if _is_none(entry) else self._value(entry, depth) for entry in right.elts]

        def is_member(rows: pd.DataFrame) -> Any:
            column = value(rows)
            known = []
            for node, entry in zip(right.elts, entries, strict=True):
                member = entry(rows)
                if member is not None:
                    member = self._time(node, member) if _kind(column) == "a date" else member
                    self._require_alike(left, column, node, member)
                known.append(member)
            included = column.isin(known)
            return included if isinstance(op, ast.In | ast.Eq) else ~included

        return is_member

    def _value(self, node: ast.expr, depth: int) -> _Value:
        self._require_shallow(node, depth)
        match node:
            case ast.Name():
                return self._column(node)
            case ast.Constant(value=str() as literal):
                return lambda _rows: literal
            case ast.Constant(value=int() | float() as number):
                if not abs(number) <= (MAX_WHOLE if isinstance(number, int) else np.finfo(float).max):
                    raise self._wrong(node, "no column holds so large a number exactly")
                return lambda _rows: np.float64(number)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _ARITHMETIC:
                return self._computed(_ARITHMETIC[type(op)], [operand], depth + 1)
            case ast.BinOp(op=operation, left=left, right=right):
                if type(operation) not in _ARITHMETIC:
                    raise self._rejected(operation, node)
                return self._computed(_ARITHMETIC[type(operation)], [left, right], depth + 1)
            case ast.BoolOp() | ast.Compare() | ast.UnaryOp():
                raise self._wrong(node, "a condition cannot be compared or computed with; join conditions with and")
            case ast.List() | ast.Tuple():
                raise self._wrong(node, "a list may only follow in, not in, == or !=")
            case _:
                raise self._rejected(node)

    def _computed(self, compute: Callable[..., Any], nodes: list[ast.expr], depth: int) -> _Value:
        values = [self._value(node, depth) for node in nodes]

        def computed(rows: pd.DataFrame) -> Any:
            operands = [value(rows) for value in values]
            for node, operand in zip(nodes, operands, strict=True):
                if _kind(operand) != "a number":
                    raise self._wrong(node, f"this is {_kind(operand)}, and only numbers can be computed with")
            with np.errstate(all="ignore"):  # a division by zero is infinite or missing, as in pandas
                return compute(*operands)

        return computed

    def _column(self, node: ast.Name) -> _Value:
        name = self._segment(node).strip("`")

        def column(rows: pd.DataFrame) -> Any:
            if name not in rows:
                raise self._wrong(node, f"there is no such column; there are: {', '.join(map(str, rows))}")
            return rows[name]

        return column

    def _time(self, node: ast.expr, value: Any) -> Any:
        """Convert text to a time. Raises FilterError for other text."""
        if not isinstance(value, str):
            return value
        try:
            return pd.Timestamp(value)
        except ValueError:
            raise self._wrong(node, "this is no date, such as '2026-01-31'") from None

    def _require_alike(self, left: ast.expr, first: Any, right: ast.expr, second: Any) -> None:
        kinds = [_kind(first), _kind(second)]
        if kinds[0] != kinds[1]:
            others = self._segment(right)
            raise self._wrong(left, f"this is {kinds[0]} and {others} is {kinds[1]}; they cannot be compared")

    def _require_shallow(self, node: ast.expr, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._wrong(node, f"expressions may be nested {MAX_DEPTH} deep")

    def _segment(self, node: ast.expr) -> str:
        return self.text[self.positions[node.col_offset] : self.positions[node.end_col_offset or -1]]

    def _rejected(self, node: ast.AST, around: ast.expr | None = None) -> FilterError:
        noun = _NOUNS.get(type(node), type(node).__name__)
        return self._wrong(around or node, f"{noun} is not allowed; {ALLOWED}")

    def _wrong(self, node: Any, reason: str) -> FilterError:
        return self._error(self.positions[node.col_offset], self.positions[node.end_col_offset], reason)

    def _error(self, start: int, end: int, reason: str) -> FilterError:
        shown = self.text[start:end].strip()
        shown = f"{shown[:60]} ..." if len(shown) > 60 else shown
        return FilterError(f"character {start + 1}, {shown!r}: {reason}.")


def _joined(join: Callable[[Any, Any], Any], parts: list[Condition]) -> Condition:
    return lambda rows: reduce(join, (part(rows) for part in parts))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _nothing(_rows: pd.DataFrame) -> None:
    """The value of None, which in a list stands for missing values."""


def _kind(value: Any) -> str:
    """Return the kind of a column's or a literal's values."""
    if isinstance(value, pd.Series):
        if pd.api.types.is_datetime64_any_dtype(value):
            return "a date"
        return "text" if value.dtype == object else "a number"
    if isinstance(value, pd.Timestamp):
        return "a date"
    return "text" if isinstance(value, str) else "a number"

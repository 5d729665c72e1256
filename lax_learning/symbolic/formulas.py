"""Formulas as pure functions: their text is parsed by a whitelist, and none of it is run."""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import as_floating, check_instance

MAX_LENGTH = 10_000
MAX_DEPTH = 100
MAX_INDEX = 999
MAX_INTEGER_POWER = 64
MAX_NUMBER = 1e38  # below the largest number of float32 and of bfloat16

OPERATORS: dict[type[ast.AST], Callable[[Array, Array], Array]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: jnp.power,
}
SIGNS: dict[type[ast.AST], Callable[[Array], Array]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    name: getattr(jnp, name) for name in ("sin", "cos", "tan", "exp", "log", "sqrt", "abs", "tanh")
}

_FOREIGN = re.compile(r"[^A-Za-z0-9_.+\-*/()\[\],: \t]")
_COEFFICIENT = re.compile(r"[NU][0-9]*")
_INPUT = re.compile(r"X[0-9]*")
_EXPECTED = (
    "a number, N0, N1, .., U0, U1, .., a column as X[:,0], one of + - * / ** or one of the functions "
    + " ".join(FUNCTIONS)
)


class ExpressionError(ValueError):
    """A formula that cannot be read: `file:line:column: expected ..., got ...`, counted from 1."""

    def __init__(self, problem: str, file: str = "<expression>", line: int = 1, column: int = 1):
        super().__init__(problem, file, line, column)
        self.file, self.line, self.column = file, line, column

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.args[0]}"


class Coefficients(NamedTuple):
    """Random numbers in a function: `N_k` is `normal[..., k]` and `U_k` is `uniform[..., k]`."""

    normal: Float[Array, "*draws K"]
    uniform: Float[Array, "*draws K"]


Term = Callable[[Coefficients, Array], Array]
"""`(coefficients of [K], x [points, columns]) -> [] or [points]`, all of the dtype of `x`."""


class Expression(NamedTuple):
    """A formula as a pure function.

    Fields:
      source: its text.
      evaluate: `(coefficients of [K], x [points, columns]) -> [points]`, in the dtype of x.
      num_coefficients: 1 + the highest index of a coefficient; 0 without.
      num_columns: 1 + the highest index of a column; 0 without.
    """

    source: str
    evaluate: Callable[[Coefficients, Array], Array]
    num_coefficients: int
    num_columns: int


def parse_expression(source: str) -> Expression:
    """Parses a formula on one line into a function that can be compiled, vmapped and differentiated.

    It may hold `N0, N1, ..` and `U0, U1, ..` (`N` and `U` are `N0` and `U0`), input columns `X[:,0]` or
    `X10[:,0]`, numbers, `+ - * / **`, and `sin cos tan exp log sqrt abs tanh`, also behind `np.` or `jnp.`
    Anything else is an `ExpressionError` with line and column.

    Example:
      >>> square = parse_expression("N0 * X[:,0]**2 + 1")
      >>> coefficients = Coefficients(jnp.array([3.0]), jnp.array([0.5]))
      >>> square.evaluate(coefficients, jnp.array([[0.0], [2.0]])).tolist()
      [1.0, 13.0]
    """
    check_instance("source", source, str, "a string")
    return expression_at(source)


def expression_at(source: str, file: str = "<expression>", line: int = 1, column: int = 1) -> Expression:
    """Parses a formula whose first character stands at this place, for errors."""
    term, num_coefficients, num_columns = Formula(source, file, line, column).program()

    def evaluate(coefficients: Coefficients, x: Float[Array, "points columns"]) -> Float[Array, " points"]:
        x = as_points(x, num_columns)
        coefficients = as_coefficients(coefficients, (), num_coefficients)
        values = term(Coefficients(*(each.astype(x.dtype) for each in coefficients)), x)
        return jnp.broadcast_to(values, x.shape[:1])

    return Expression(source, evaluate, num_coefficients, num_columns)


def as_points(x: ArrayLike, num_columns: int) -> Array:
    """Returns points `[points, columns]`; raises unless they are floating, with the columns that are read."""
    x = as_floating("x", x)
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] < num_columns:
        expected = f"shape [points, columns] of at least 1 point and {num_columns} columns"
        raise ValueError(f"x: expected {expected}, got {list(x.shape)}")
    return x


def as_coefficients(coefficients: Coefficients, draws: Sequence[int], num_coefficients: int) -> Coefficients:
    """Returns coefficients as arrays; raises unless there are enough floating ones for every draw."""
    check_instance("coefficients", coefficients, Coefficients, "Coefficients(normal, uniform)")
    found = Coefficients(*(as_floating(f"coefficients.{n}", v) for n, v in coefficients._asdict().items()))
    for name, values in found._asdict().items():
        shape = values.shape
        if shape[:-1] != tuple(draws) or not shape or shape[-1] < num_coefficients:
            expected = ", ".join([*map(str, draws), f"K >= {num_coefficients}"])
            raise ValueError(f"coefficients.{name}: expected shape [{expected}], got {list(shape)}")
    return found


class Formula:
    """A formula on its way from text to a term; nothing is computed before the term is called."""

    def __init__(self, source: str, file: str, line: int, column: int):
        stripped = source.lstrip(" \t")
        self.source = stripped.rstrip(" \t")
        self.place = (file, line, column + len(source) - len(stripped))
        self.num_coefficients = 0
        self.num_columns = 0

    def error(self, offset: int, expected: str, got: str) -> ExpressionError:
        file, line, column = self.place
        return ExpressionError(f"expected {expected}, got {got}", file, line, column + offset)

    def refusal(self, node: ast.expr, expected: str = _EXPECTED) -> ExpressionError:
        text = self.source[node.col_offset : node.end_col_offset]
        return self.error(node.col_offset, expected, repr(text if len(text) <= 40 else text[:40] + "..."))

    def program(self) -> tuple[Term, int, int]:
        return self.term(self.parse(), 1), self.num_coefficients, self.num_columns

    def parse(self) -> ast.expr:
        if len(self.source) > MAX_LENGTH:
            raise self.error(0, f"at most {MAX_LENGTH} characters", str(len(self.source)))
        if foreign := _FOREIGN.search(self.source):
            # Only ASCII passes, no line break: offsets of the tree are columns.
            expected = "letters, digits, spaces and _ . + - * / ( ) [ ] , :"
            raise self.error(foreign.start(), expected, repr(foreign.group()))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                return ast.parse(self.source, mode="eval").body
        except SyntaxError as error:  # at the end of the text the offset is 0
            offset = min((error.offset or len(self.source) + 1) - 1, len(self.source))
            got = f"{self.source[offset : offset + 40]!r} ({error.msg})"
            raise self.error(offset, "a formula", got) from None
        except (RecursionError, MemoryError):
            raise self.error(0, f"at most {MAX_DEPTH} nested operations", "more") from None
        except (ValueError, OverflowError, Warning) as error:
            raise self.error(0, "a formula", f"{self.source[:40]!r} ({error})") from None

    def term(self, node: ast.expr, depth: int) -> Term:
        if depth > MAX_DEPTH:
            raise self.error(node.col_offset, f"at most {MAX_DEPTH} nested operations", "more")
        match node:
            case ast.Constant(value=value) if type(value) in (int, float):
                return self.number(node, value)
            case ast.Name(id=name) if _COEFFICIENT.fullmatch(name):
                return self.coefficient(node, name)
            case ast.Subscript(
                value=ast.Name(id=name),
                slice=ast.Tuple(elts=[ast.Slice(None, None, None), ast.Constant(value=index)]),
            ) if _INPUT.fullmatch(name) and type(index) is int:
                if index > MAX_INDEX:
                    raise self.refusal(node, f"a column of 0..{MAX_INDEX}")
                self.num_columns = max(self.num_columns, index + 1)
                return lambda c, x: x[:, index]
            case ast.Subscript():
                raise self.refusal(node, "a column as X[:,0]")
            case ast.Call():
                return self.call(node, depth)
            case ast.UnaryOp() if type(node.op) in SIGNS:
                sign, operand = SIGNS[type(node.op)], self.term(node.operand, depth + 1)
                return lambda c, x: sign(operand(c, x))
            case ast.BinOp() if type(node.op) in OPERATORS:
                left, right = self.term(node.left, depth + 1), self.term(node.right, depth + 1)
                power = _integer(node.right) if isinstance(node.op, ast.Pow) else None
                if power is not None and abs(power) <= MAX_INTEGER_POWER:
                    return lambda c, x: lax.integer_pow(left(c, x), power)
                apply = OPERATORS[type(node.op)]
                return lambda c, x: apply(left(c, x), right(c, x))
        raise self.refusal(node)

    def number(self, node: ast.Constant, spelled: Any) -> Term:
        if spelled > MAX_NUMBER:
            raise self.refusal(node, f"a number of at most {MAX_NUMBER:g}")
        return lambda c, x: _constant(float(spelled), x)

    def coefficient(self, node: ast.Name, name: str) -> Term:
        digits = name[1:] or "0"
        if len(digits) > len(str(MAX_INDEX)) or str(int(digits)) != digits:
            raise self.refusal(node, f"an index of 0..{MAX_INDEX} without leading zeros")
        index = int(digits)
        self.num_coefficients = max(self.num_coefficients, index + 1)
        of = operator.attrgetter("normal" if name.startswith("N") else "uniform")
        return lambda c, x: of(c)[index]

    def call(self, node: ast.Call, depth: int) -> Term:
        name = None
        match node.func:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="np" | "jnp"), attr=name):
                pass
        if name not in FUNCTIONS:
            raise self.refusal(node.func, f"one of the functions {' '.join(FUNCTIONS)}")
        if len(node.args) != 1 or node.keywords:
            raise self.refusal(node, f"{name} of one argument")
        function, argument = FUNCTIONS[name], self.term(node.args[0], depth + 1)
        return lambda c, x: function(argument(c, x))


def _constant(value: float, x: Array) -> Array:
    if value > float(jnp.finfo(x.dtype).max):
        raise ValueError(f"x: expected a dtype that holds the number {value:g}, got {x.dtype}")
    return jnp.asarray(value, x.dtype)


def _integer(node: ast.expr) -> int | None:
    """Returns the integer that an exponent spells out, such as `2` or `-2`."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
        case ast.Constant(value=int(value)):
            return value
    return None

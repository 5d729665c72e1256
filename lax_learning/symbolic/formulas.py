"""Formulas as pure functions: the text is parsed against a whitelist and never executed as Python."""

import ast
import operator
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import as_floating, check_instance

MAX_LENGTH = 10_000
MAX_DEPTH = 100
MAX_INDEX = 999
MAX_INTEGER_POWER = 64
MAX_NUMBER = 1e38  # below the largest number of float32 and of bfloat16
TOO_DEEP = f"at most {MAX_DEPTH} nested operations", "more"

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
_COEFFICIENT = re.compile(r"[NU](0|[1-9][0-9]{0,2})?")
_INTEGER = re.compile(r"-?[0-9]{1,4}")
_EXPECTED = (
    "a number, N0, N1, .., U0, U1, .., a column such as X[:,0], one of + - * / ** or one of the functions "
    + " ".join(FUNCTIONS)
)


class ExpressionError(ValueError):
    """Error of an invalid formula: `file:line:column: expected ..., got ...`, counted from 1."""

    def __init__(self, problem: str, file: str = "<expression>", line: int = 1, column: int = 1):
        super().__init__(problem, file, line, column)
        self.file, self.line, self.column = file, line, column

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.args[0]}"


class Coefficients(NamedTuple):
    """Random coefficients of a function: `N_k` is `normal[..., k]` and `U_k` is `uniform[..., k]`."""

    normal: Float[Array, "*draws K"]
    uniform: Float[Array, "*draws K"]


Term = Callable[[Coefficients, Array], Array]
"""`(coefficients [K], x [points, columns]) -> [] or [points]`, all in the dtype of `x`."""


class Expression(NamedTuple):
    """A formula as a pure function.

    Fields:
      source: the text of the formula.
      evaluate: `(coefficients [K], x [points, columns]) -> [points]`, in the dtype of x.
      num_coefficients: 1 + the highest index of a coefficient; 0 without coefficients.
      num_columns: 1 + the highest index of a column; 0 without columns.
    """

    source: str
    evaluate: Callable[[Coefficients, Array], Array]
    num_coefficients: int
    num_columns: int


def parse_expression(source: str) -> Expression:
    """Parses a one-line formula into a function that can be compiled, vmapped and differentiated.

    Formulas may contain `N0, N1, ..` and `U0, U1, ..` (`N` and `U` mean `N0` and `U0`), input columns such as
    `X[:,0]` or `X10[:,0]`, numbers, `+ - * / **`, and `sin cos tan exp log sqrt abs tanh`, optionally with
    the prefix `np.` or `jnp.`. Anything else raises an `ExpressionError` with line and column.

    Example:
      >>> square = parse_expression("N0 * X[:,0]**2 + 1")
      >>> coefficients = Coefficients(jnp.array([3.0]), jnp.array([0.5]))
      >>> square.evaluate(coefficients, jnp.array([[0.0], [2.0]])).tolist()
      [1.0, 13.0]
    """
    check_instance("source", source, str, "a string")
    formula = Formula(source)
    term = formula.term(formula.parse())

    def evaluate(coefficients: Coefficients, x: Float[Array, "points columns"]) -> Float[Array, " points"]:
        x = as_points(x, formula.num_columns)
        coefficients = as_coefficients(coefficients, (), formula.num_coefficients)
        values = term(Coefficients(*(each.astype(x.dtype) for each in coefficients)), x)
        return jnp.broadcast_to(values, x.shape[:1])

    return Expression(source, evaluate, formula.num_coefficients, formula.num_columns)


def as_points(x: ArrayLike, num_columns: int, *, exactly: bool = False) -> Array:
    """Returns points `[points, columns]`; raises unless they are floats with enough columns."""
    x = as_floating("x", x)
    shape, at_least = list(x.shape), "exactly" if exactly else "at least"
    if x.ndim != 2 or shape[0] == 0 or shape[1] < num_columns or (exactly and shape[1] > num_columns):
        expected = f"[points, columns] with at least 1 point and {at_least} {num_columns} columns"
        raise ValueError(f"x: expected {expected}, got {shape}")
    return x


def as_coefficients(of: Coefficients, draws: tuple[int, ...], num_coefficients: int) -> Coefficients:
    """Returns coefficients as arrays; raises unless they are floats, and enough for every draw."""
    check_instance("coefficients", of, Coefficients, "Coefficients(normal, uniform)")
    found = Coefficients(*(as_floating(f"coefficients.{name}", a) for name, a in of._asdict().items()))
    for name, shape in zip(of._fields, map(jnp.shape, found), strict=True):
        if len(shape) != len(draws) + 1 or shape[:-1] != draws or shape[-1] < num_coefficients:
            expected = ", ".join([*map(str, draws), f"K >= {num_coefficients}"])
            raise ValueError(f"coefficients.{name}: expected shape [{expected}], got {list(shape)}")
    return found


class Formula:
    """Parser of a formula, from text to a term; nothing is computed before the term is called."""

    def __init__(self, source: str):
        self.source = source.strip(" \t")
        self.indent = len(source) - len(source.lstrip(" \t"))
        self.num_coefficients = self.num_columns = 0

    def error(self, offset: int, expected: str, got: str) -> ExpressionError:
        return ExpressionError(f"expected {expected}, got {got}", column=self.indent + offset + 1)

    def refusal(self, node: ast.expr, expected: str = _EXPECTED) -> ExpressionError:
        text = self.source[node.col_offset : node.end_col_offset]
        return self.error(node.col_offset, expected, repr(text if len(text) <= 40 else text[:40] + "..."))

    def parse(self) -> ast.expr:
        if len(self.source) > MAX_LENGTH:
            raise self.error(0, f"at most {MAX_LENGTH} characters", str(len(self.source)))
        if foreign := _FOREIGN.search(self.source):
            # Only ASCII without line breaks is accepted, so offsets in the tree are columns.
            expected = "letters, digits, spaces and _ . + - * / ( ) [ ] , :"
            raise self.error(foreign.start(), expected, repr(foreign.group()))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                return ast.parse(self.source, mode="eval").body
        except (RecursionError, MemoryError):
            raise self.error(0, *TOO_DEEP) from None
        except (ValueError, OverflowError, Warning, SyntaxError) as error:
            # Only syntax errors have an offset, which is 0 at the end of the text.
            offset = min((getattr(error, "offset", 1) or MAX_LENGTH + 1) - 1, len(self.source))
            got = f"{self.source[offset : offset + 40]!r} ({getattr(error, 'msg', error)})"
            raise self.error(offset, "a formula", got) from None

    def term(self, node: ast.expr, depth: int = 1) -> Term:
        if depth > MAX_DEPTH:
            raise self.error(node.col_offset, *TOO_DEEP)
        match node:
            case ast.Constant(value=int(value) | float(value)) if not isinstance(value, bool):
                if value > MAX_NUMBER:
                    raise self.refusal(node, f"a number of at most {MAX_NUMBER:g}")
                number = float(value)
                return lambda c, x: _constant(number, x)
            case ast.Name(id=name) if _COEFFICIENT.fullmatch(name):
                kind, index = "normal" if name.startswith("N") else "uniform", int(name[1:] or 0)
                self.num_coefficients = max(self.num_coefficients, index + 1)
                return lambda c, x: getattr(c, kind)[index]
            case ast.Name(id=name) if re.fullmatch("[NU][0-9]+", name):
                raise self.refusal(node, f"an index in 0..{MAX_INDEX} without leading zeros")
            case ast.Subscript(
                value=ast.Name(id=name),
                slice=ast.Tuple(elts=[ast.Slice(None, None, None), ast.Constant(value=int(index))]),
            ) if re.fullmatch("X[0-9]*", name) and not isinstance(index, bool):
                if index > MAX_INDEX:
                    raise self.refusal(node, f"a column in 0..{MAX_INDEX}")
                self.num_columns = max(self.num_columns, index + 1)
                return lambda c, x: x[:, index]
            case ast.Subscript():
                raise self.refusal(node, "a column such as X[:,0]")
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id="np" | "jnp"), attr=name)
            ) if name in FUNCTIONS:
                if len(node.args) != 1 or node.keywords:
                    raise self.refusal(node, f"{name} with one argument")
                function, argument = FUNCTIONS[name], self.term(node.args[0], depth + 1)
                return lambda c, x: function(argument(c, x))
            case ast.Call():
                raise self.refusal(node.func, f"one of the functions {' '.join(FUNCTIONS)}")
            case ast.UnaryOp() if type(node.op) in SIGNS:
                sign, operand = SIGNS[type(node.op)], self.term(node.operand, depth + 1)
                return lambda c, x: sign(operand(c, x))
            case ast.BinOp() if type(node.op) in OPERATORS:
                left, right = self.term(node.left, depth + 1), self.term(node.right, depth + 1)
                exponent = ast.unparse(node.right) if isinstance(node.op, ast.Pow) else ""
                if _INTEGER.fullmatch(exponent) and abs(int(exponent)) <= MAX_INTEGER_POWER:
                    return lambda c, x: lax.integer_pow(left(c, x), int(exponent))
                apply = OPERATORS[type(node.op)]
                return lambda c, x: apply(left(c, x), right(c, x))
        raise self.refusal(node)


def _constant(value: float, x: Array) -> Array:
    if value > float(jnp.finfo(x.dtype).max):
        raise ValueError(f"x: expected a dtype that holds the number {value:g}, got {x.dtype}")
    return jnp.asarray(value, x.dtype)

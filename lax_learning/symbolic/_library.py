"""Formulas and libraries of them as pure functions (symrep, 2022)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import as_floating, check_count, check_instance
from lax_learning.symbolic._parser import ExpressionError, compile_formula

CHECKED_POINTS = 64
MAX_FUNCTIONS = 10_000
NOISE_RATIO = 2.0**-29 * 64  # of float64 to float32, and how much worse than its largest sample it may be


class Coefficients(NamedTuple):
    """The random numbers in a function: `N_k` is `normal[..., k]` and `U_k` is `uniform[..., k]`."""

    normal: Float[Array, "*draws K"]
    uniform: Float[Array, "*draws K"]


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


class Library(NamedTuple):
    """Functions to draw from; `jax.jit` closes over it.

    Fields:
      expressions: one an entry.
      derivatives: those written by hand, by column; None for an entry without.
      num_coefficients: that fit every entry.
      num_columns: that fit every entry.
    """

    expressions: tuple[Expression, ...]
    derivatives: tuple[tuple[Expression, ...] | None, ...]
    num_coefficients: int
    num_columns: int


def parse_expression(
    source: str, *, file: str = "<expression>", line: int = 1, column: int = 1
) -> Expression:
    """Reads one formula, without running any of it.

    `N0, N1, ..` and `U0, U1, ..` (`N` and `U` are `N0` and `U0`), input columns `X[:,0]` or `X10[:,0]`,
    numbers, `+ - * / **`, and `sin cos tan exp log sqrt abs tanh`, also behind `np.` or `jnp.`

    Args:
      source: the formula, on one line.
      file: where it stands, for errors.
      line: of the formula in the file, from 1.
      column: of its first character, from 1.

    Returns:
      Expression: its function can be compiled, vmapped and differentiated.

    Raises:
      ExpressionError: for anything else, with line and column.

    Example:
      >>> square = parse_expression("N0 * X[:,0]**2 + 1")
      >>> coefficients = Coefficients(jnp.array([3.0]), jnp.array([0.5]))
      >>> square.evaluate(coefficients, jnp.array([[0.0], [2.0]])).tolist()
      [1.0, 13.0]

    References:
      The public notebooks of symrep, https://github.com/fabxy/symrep, 2022.
    """
    if not isinstance(source, str):
        raise TypeError(f"source: expected a string, got {source!r}")
    if not isinstance(file, str):
        raise TypeError(f"file: expected a string, got {file!r}")
    check_count("line", line)
    check_count("column", column)
    term, num_coefficients, num_columns = compile_formula(source, file, line, column)

    def evaluate(coefficients: Coefficients, x: Float[Array, "points columns"]) -> Float[Array, " points"]:
        x = as_points(x, num_columns)
        coefficients = as_coefficients(coefficients, (), num_coefficients)
        normal, uniform = (values.astype(x.dtype) for values in coefficients)
        return jnp.broadcast_to(term(normal, uniform, x), x.shape[:1])

    return Expression(source, evaluate, num_coefficients, num_columns)


def parse_library(text: str, *, file: str = "<library>") -> Library:
    """Reads one function a line.

    `function` or `function; derivative by column 0; derivative by column 1; ..`

    Derivatives written by hand are compared with those of `jax.grad`, to 1e-6 of their size at fixed random
    points, and not used otherwise.

    Args:
      text: the lines; blank ones are skipped.
      file: where they stand, for errors.

    Returns:
      Library: an entry a line.

    Raises:
      ExpressionError: for a formula that cannot be read, a derivative that is missing or wrong, or no
        function at all.

    Example:
      >>> parse_library("N0 * X[:,0]**2; 2 * N0 * X[:,0]").num_columns
      1

    References:
      The public notebooks of symrep, https://github.com/fabxy/symrep, 2022.
    """
    if not isinstance(text, str):
        raise TypeError(f"text: expected a string, got {text!r}")
    if not isinstance(file, str):
        raise TypeError(f"file: expected a string, got {file!r}")
    entries: list[list[Expression]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        entry, columns = [], [1]
        for part in line.removesuffix("\r").split(";"):
            entry.append(parse_expression(part, file=file, line=number, column=columns[-1]))
            columns.append(columns[-1] + len(part) + 1)
        if 0 < len(entry) - 1 < entry[0].num_columns:
            problem = f"expected {entry[0].num_columns} derivatives, one a column, got {len(entry) - 1}"
            raise ExpressionError(problem, file, number, 1)
        _check_derivatives(entry, file, number, columns[1:])
        entries.append(entry)
        if len(entries) > MAX_FUNCTIONS:
            raise ExpressionError(f"expected at most {MAX_FUNCTIONS} functions, got more", file, number, 1)
    if not entries:
        raise ExpressionError("expected a function, got none", file)
    everything = [expression for entry in entries for expression in entry]
    return Library(
        tuple(entry[0] for entry in entries),
        tuple(tuple(entry[1:]) or None for entry in entries),
        max(expression.num_coefficients for expression in everything),
        max(expression.num_columns for expression in everything),
    )


def as_points(x: ArrayLike, num_columns: int) -> Array:
    """Points `[points, columns]`; raises unless they are floating, with the columns that are read."""
    x = as_floating("x", x)
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] < num_columns:
        expected = f"shape [points, columns] of at least 1 point and {num_columns} columns"
        raise ValueError(f"x: expected {expected}, got {list(x.shape)}")
    return x


def as_coefficients(coefficients: Coefficients, draws: Sequence[int], num_coefficients: int) -> Coefficients:
    """The coefficients as arrays; raises unless there are enough floating ones for every draw."""
    check_instance("coefficients", coefficients, Coefficients, "Coefficients(normal, uniform)")
    found = Coefficients(*(as_floating(f"coefficients.{n}", v) for n, v in coefficients._asdict().items()))
    for name, values in found._asdict().items():
        shape = values.shape
        if shape[:-1] != tuple(draws) or not shape or shape[-1] < num_coefficients:
            expected = ", ".join([*map(str, draws), f"K >= {num_coefficients}"])
            raise ValueError(f"coefficients.{name}: expected shape [{expected}], got {list(shape)}")
    return found


def _check_derivatives(entry: list[Expression], file: str, line: int, columns: list[int]) -> None:
    """Compares derivatives written by hand with those of `jax.grad`, in float64 at fixed random points.

    They may differ by 1e-6 of their size, and by what rounding adds: as much as it adds in float32, at the
    points near 0 or at the others, times the ratio of the precisions. Constants that a function adds play no
    part in that.
    """
    function, *derivatives = entry
    if not derivatives:
        return
    num_coefficients = max(expression.num_coefficients for expression in entry)
    num_columns = max(len(derivatives), *(expression.num_columns for expression in entry))
    draw = np.random.default_rng(0)
    normal = draw.normal(size=(CHECKED_POINTS, num_coefficients))
    uniform = draw.uniform(size=(CHECKED_POINTS, num_coefficients))
    points = draw.uniform(-2, 2, size=(CHECKED_POINTS, num_columns))
    points[::2] *= 10

    def at_points(expression: Expression, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        def at_point(point: Array, normal: Array, uniform: Array) -> Array:
            return expression.evaluate(Coefficients(normal, uniform), point[None])[0]

        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            # Numbers of float32 in either precision.
            arrays = [jnp.asarray(array.astype(np.float32), dtype) for array in (points, normal, uniform)]
            values, gradients = jax.vmap(jax.value_and_grad(at_point))(*arrays)
            return np.asarray(values, np.float64), np.asarray(gradients, np.float64)

    def noise(rough: np.ndarray, exact: np.ndarray) -> np.ndarray:
        """Returns the rounding error of every number; 0 where float32 cannot hold it."""
        with np.errstate(all="ignore"):
            error = np.where(np.isfinite(rough), np.abs(rough - exact), 0)
        error[::2], error[1::2] = error[::2].max(), error[1::2].max()
        return error * NOISE_RATIO

    values, gradients = at_points(function, jnp.float64)
    rough = at_points(function, jnp.float32)[1]
    for column, derivative in enumerate(derivatives):
        written, exact = at_points(derivative, jnp.float64)[0], gradients[:, column]
        finite = np.isfinite(values) & np.isfinite(exact) & np.isfinite(written)
        rounding = noise(rough[:, column], exact) + noise(at_points(derivative, jnp.float32)[0], written)
        with np.errstate(all="ignore"):
            tolerance = 1e-6 * (np.abs(written) + np.abs(exact)) + rounding
            wrong = finite & (np.abs(written - exact) > tolerance)
        place = file, line, columns[column] + len(derivative.source) - len(derivative.source.lstrip())
        expected = f"expected the derivative by column {column}"
        if not finite.any():
            raise ExpressionError(f"{expected}, got no point where it and the function are finite", *place)
        if wrong.any():
            i = int(np.argmax(wrong))
            where = f"{exact[i]:.6g} at {[round(value, 6) for value in points[i].tolist()]}"
            raise ExpressionError(f"{expected}, {where}, got {written[i]:.6g}", *place)

"""Libraries of formulas, and functions drawn from them with random coefficients."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lax_learning._checks import (
    as_array,
    check_count,
    check_floating_dtype,
    check_instance,
    check_key,
    check_memory,
)
from lax_learning.symbolic.formulas import (
    Coefficients,
    Expression,
    ExpressionError,
    as_coefficients,
    as_points,
    expression_at,
)
from lax_learning.types import Key

CHECKED_POINTS = 64
MAX_FUNCTIONS = 10_000
NOISE_RATIO = 2.0**-29 * 64  # rounding of float64 relative to float32, with a margin of 64


class Library(NamedTuple):
    """Functions to draw from. Not a pytree of arrays: let jitted functions close over it.

    Fields:
      expressions: the formula of each entry.
      derivatives: the handwritten derivatives of each entry by column, or None.
      num_coefficients, num_columns: enough for every entry.
    """

    expressions: tuple[Expression, ...]
    derivatives: tuple[tuple[Expression, ...] | None, ...]
    num_coefficients: int
    num_columns: int


class FunctionDraws(NamedTuple):
    """The drawn entries, and the coefficients of each, `[number, K]`."""

    entries: Int[Array, " number"]
    coefficients: Coefficients


def parse_library(text: str, *, file: str = "<library>") -> Library:
    """Parses one function per line, optionally followed by its derivatives after semicolons.

    A line is `function` or `function; df/dX[:,0]; df/dX[:,1]`, with a derivative for every column.
    Handwritten derivatives are only compared with `jax.grad`, in float64 at fixed random points: differences
    below 1e-6 of their size, or below the rounding error, are accepted.

    Args:
      text: the lines; blank lines are skipped.
      file: name of the source, for errors.

    Raises:
      ExpressionError: for an invalid formula, a missing or wrong derivative, or if there is no function.

    Example:
      >>> parse_library("N0 * X[:,0]**2; 2 * N0 * X[:,0]").num_columns
      1
    """
    check_instance("text", text, str, "a string")
    check_instance("file", file, str, "a string")
    entries: list[list[Expression]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        entry, columns = [], [1]
        for part in line.removesuffix("\r").split(";"):
            entry.append(expression_at(part, file, number, columns[-1]))
            columns.append(columns[-1] + len(part) + 1)
        if 0 < len(entry) - 1 < entry[0].num_columns:
            problem = f"expected {entry[0].num_columns} derivatives, one per column, got {len(entry) - 1}"
            raise ExpressionError(problem, file, number, 1)
        _check_derivatives(entry, file, number, columns[1:])
        entries.append(entry)
        if len(entries) > MAX_FUNCTIONS:
            raise ExpressionError(f"expected at most {MAX_FUNCTIONS} functions, got more", file, number, 1)
    if not entries:
        raise ExpressionError("expected a function, got none", file)
    every = [expression for entry in entries for expression in entry]
    num_coefficients, num_columns = (max(sizes) for sizes in zip(*(e[2:] for e in every), strict=True))
    derivatives = tuple(tuple(entry[1:]) or None for entry in entries)
    return Library(tuple(entry[0] for entry in entries), derivatives, num_coefficients, num_columns)


def load_library(path: str | os.PathLike[str]) -> Library:
    """Parses a UTF-8 file with `parse_library`; errors name the file."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a path, got {path!r}")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: expected UTF-8 text, got {error}") from error
    return parse_library(text, file=os.fspath(path))


def draw_functions(
    key: Key, library: Library, number: int, *, dtype: DTypeLike = jnp.float32
) -> FunctionDraws:
    """Draws functions with replacement, each with its own coefficients `N_k ~ N(0, 1)`, `U_k ~ U(0, 1)`.

    Args:
      key: PRNG key for the entries, which are uniformly distributed, and the coefficients.
      library: the formulas to draw from.
      number: number of functions.
      dtype: dtype of the coefficients.

    Example:
      >>> draws = draw_functions(jax.random.key(0), parse_library("5*N0*sin(3*U0*X[:,0])"), 4)
      >>> draws.entries.tolist(), draws.coefficients.normal.shape
      ([0, 0, 0, 0], (4, 1))
    """
    check_key("key", key)
    check_instance("library", library, Library, "a Library, from parse_library")
    check_count("number", number)
    check_floating_dtype("dtype", dtype)
    check_memory("number", [(number, max(1, library.num_coefficients))], dtype)
    entry_key, normal_key, uniform_key = jax.random.split(key, 3)
    shape = (number, library.num_coefficients)
    normal = jax.random.normal(normal_key, shape, dtype)
    uniform = jax.random.uniform(uniform_key, shape, dtype)
    entries = jax.random.randint(entry_key, (number,), 0, len(library.expressions))
    return FunctionDraws(entries, Coefficients(normal, uniform))


def function_values(
    library: Library, draws: FunctionDraws, x: Float[Array, "points columns"]
) -> Float[Array, "number points"]:
    """Evaluates drawn functions at the same points: `f_i(x)`, in the dtype of x.

    Every entry is evaluated for every draw, so the cost grows with the size of the library. The derivatives
    of all functions w.r.t. a column take one `jax.jvp` in its direction.

    Args:
      library: the library from which the functions were drawn.
      draws: from `draw_functions`. Traced entries cannot be checked; they are clamped to valid ones.
      x: floating-point `[points, columns]`, with all columns that the library uses.

    Example:
      >>> library, x = parse_library("X[:,0]**2"), jnp.array([[1.0], [3.0]])
      >>> draws = draw_functions(jax.random.key(0), library, 1)
      >>> values = lambda x: function_values(library, draws, x)
      >>> values(x).tolist(), jax.jvp(values, (x,), (jnp.ones((2, 1)),))[1].tolist()
      ([[1.0, 9.0]], [[2.0, 6.0]])
    """
    check_instance("library", library, Library, "a Library, from parse_library")
    check_instance("draws", draws, FunctionDraws, "FunctionDraws, from draw_functions")
    x = as_points(x, library.num_columns)
    entries, size = as_array("entries", draws.entries), len(library.expressions)
    if not jnp.issubdtype(entries.dtype, jnp.integer):
        raise TypeError(f"entries: expected integers, got {entries.dtype}")
    if entries.ndim != 1:
        raise ValueError(f"entries: expected shape [number], got {list(entries.shape)}")
    outside = [] if isinstance(entries, Tracer) else [i for i in entries.tolist() if not 0 <= i < size]
    if outside:
        raise ValueError(f"entries: expected indices in 0..{size - 1}, got {outside[0]}")
    coefficients = as_coefficients(draws.coefficients, entries.shape, library.num_coefficients)

    # Under vmap every entry is evaluated and one is selected. The inputs are selected too, so the other
    # entries contribute no NaN or infinity to derivatives.
    branches = [expression.evaluate for expression in library.expressions]
    return jax.vmap(lambda entry, coefficients: lax.switch(entry, branches, coefficients, x))(
        entries.astype(jnp.int32), coefficients
    )


def _check_derivatives(entry: list[Expression], file: str, line: int, columns: list[int]) -> None:
    """Compares handwritten derivatives with those of `jax.grad`, in float64 at fixed random points.

    They may differ by 1e-6 of their size plus the rounding error, which is estimated as that in float32
    (separately for points near 0 and the others) times the ratio of precisions.
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

    def at_points(expression: Expression, column: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns values, or derivatives w.r.t. a column, and their rounding errors."""

        def at_point(point: Array, normal: Array, uniform: Array) -> Array:
            return expression.evaluate(Coefficients(normal, uniform), point[None])[0]

        of_point = at_point if column is None else lambda *at: jax.grad(at_point)(*at)[column]
        found = []
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            for dtype in (jnp.float64, jnp.float32):  # the same float32 inputs in both precisions
                arrays = [jnp.asarray(a.astype(np.float32), dtype) for a in (points, normal, uniform)]
                found.append(np.asarray(jax.vmap(of_point)(*arrays), np.float64))
        exact, rough = found
        with np.errstate(all="ignore"):
            error = np.where(np.isfinite(rough), np.abs(rough - exact), 0)
        error[::2], error[1::2] = error[::2].max(), error[1::2].max()
        return exact, error * NOISE_RATIO

    values, _ = at_points(function)
    for column, derivative in enumerate(derivatives):
        (exact, rounding), (written, more) = at_points(function, column), at_points(derivative)
        finite = np.isfinite(values) & np.isfinite(exact) & np.isfinite(written)
        with np.errstate(all="ignore"):
            tolerance = 1e-6 * np.maximum(np.abs(written), np.abs(exact)) + rounding + more
            wrong = finite & (np.abs(written - exact) > tolerance)
        place = file, line, columns[column] + len(derivative.source) - len(derivative.source.lstrip())
        expected = f"expected the derivative w.r.t. column {column}"
        if not finite.any():
            raise ExpressionError(f"{expected}, got no point where it and the function are finite", *place)
        if wrong.any():
            i = int(np.argmax(wrong))
            where = f"{exact[i]:.6g} at {[round(value, 6) for value in points[i].tolist()]}"
            raise ExpressionError(f"{expected}, {where}, got {written[i]:.6g}", *place)

"""Libraries of formulas, and functions drawn from them with random coefficients."""

import os
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lax_learning import _checks as checks
from lax_learning.symbolic import formulas
from lax_learning.symbolic.formulas import Coefficients, Expression, ExpressionError
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

    Blank lines are skipped; errors name `file`.

    Raises:
      ExpressionError: for an invalid formula, a missing or wrong derivative, or if there is no function.

    Example:
      >>> parse_library("N0 * X[:,0]**2; 2 * N0 * X[:,0]").num_columns
      1
    """
    checks.check_instance("text", text, str, "a string")
    checks.check_instance("file", file, str, "a string")
    entries: list[list[Expression]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(" \t\r"):
            try:
                entries.append(_parse_line(line.removesuffix("\r")))
            except ExpressionError as error:
                raise ExpressionError(error.args[0], file, number, error.column) from None
    if not 0 < len(entries) <= MAX_FUNCTIONS:
        raise ExpressionError(f"expected 1 to {MAX_FUNCTIONS} functions, got {len(entries)}", file)
    every = [expression for entry in entries for expression in entry]
    num_coefficients, num_columns = (max(sizes) for sizes in zip(*(e[2:] for e in every), strict=True))
    functions, derivatives = zip(*((entry[0], tuple(entry[1:]) or None) for entry in entries), strict=True)
    return Library(functions, derivatives, num_coefficients, num_columns)


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

    Entries are drawn uniformly; `dtype` is that of the coefficients.

    Example:
      >>> draws = draw_functions(jax.random.key(0), parse_library("5*N0*sin(3*U0*X[:,0])"), 4)
      >>> draws.entries.tolist(), draws.coefficients.normal.shape
      ([0, 0, 0, 0], (4, 1))
    """
    checks.check_key("key", key)
    checks.check_instance("library", library, Library, "a Library, from parse_library")
    checks.check_count("number", number)
    checks.check_floating_dtype("dtype", dtype)
    checks.check_memory("number", [(number, max(1, library.num_coefficients))], dtype)
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

    Every entry is evaluated for every draw, so the cost grows with the size of the library.

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
    checks.check_instance("library", library, Library, "a Library, from parse_library")
    checks.check_instance("draws", draws, FunctionDraws, "FunctionDraws, from draw_functions")
    x = formulas.as_points(x, library.num_columns)
    entries, size = checks.as_array("entries", draws.entries), len(library.expressions)
    if not jnp.issubdtype(entries.dtype, jnp.integer):
        raise TypeError(f"entries: expected integers, got {entries.dtype}")
    if entries.ndim != 1:
        raise ValueError(f"entries: expected shape [number], got {list(entries.shape)}")
    outside = [] if isinstance(entries, Tracer) else [i for i in entries.tolist() if not 0 <= i < size]
    if outside:
        raise ValueError(f"entries: expected indices in 0..{size - 1}, got {outside[0]}")
    coefficients = formulas.as_coefficients(draws.coefficients, entries.shape, library.num_coefficients)

    # Under vmap every entry is evaluated and one is selected. The inputs are selected too, so the other
    # entries contribute no NaN or infinity to derivatives.
    branches = [expression.evaluate for expression in library.expressions]
    one = jax.vmap(lambda entry, coefficients: lax.switch(entry, branches, coefficients, x))
    return one(entries.astype(jnp.int32), coefficients)


def _parse_line(line: str) -> list[Expression]:
    """Parses a function and its derivatives; errors have the column in the line."""
    parts = line.split(";")
    # Spaces in place of what is before a part make the columns of its errors those in the line.
    ends = accumulate(len(part) + 1 for part in parts)
    padded = (part.rjust(end - 1) for part, end in zip(parts, ends, strict=True))
    function, *derivatives = map(formulas.parse_expression, padded)
    if 0 < len(derivatives) < function.num_columns:
        expected = f"{function.num_columns} derivatives, one per column"
        raise ExpressionError(f"expected {expected}, got {len(derivatives)}")
    if derivatives:
        _check_derivatives(function, *derivatives)
    return [of._replace(source=part) for of, part in zip((function, *derivatives), parts, strict=True)]


def _value(expression: Expression, coefficients: Coefficients, point: Array) -> Array:
    return expression.evaluate(coefficients, point[None])[0]


def _check_derivatives(function: Expression, *derivatives: Expression) -> None:
    """Compares handwritten derivatives with those of `jax.grad`, in float64 at fixed random points.

    They may differ by 1e-6 of their size plus the rounding error, which is estimated as that in float32
    (separately for points near 0 and the others) times the ratio of precisions.
    """
    entry, draw = (function, *derivatives), np.random.default_rng(0)
    shape = CHECKED_POINTS, max(expression.num_coefficients for expression in entry)
    num_columns = max(len(derivatives), *(expression.num_columns for expression in entry))
    normal, uniform = draw.normal(size=shape), draw.uniform(size=shape)
    points = draw.uniform(-2, 2, size=(CHECKED_POINTS, num_columns))
    points[::2] *= 10

    def at_point(point: Array, *coefficients: Array) -> tuple[Array, Array, Array]:
        """Returns the value of the function, and its derivatives and the handwritten ones `[column]`."""
        value, *written = (partial(_value, of, Coefficients(*coefficients)) for of in entry)
        found, slopes = jax.value_and_grad(value)(point)
        return found, slopes[: len(derivatives)], jnp.stack([of(point) for of in written])

    found = []
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        for dtype in (jnp.float64, jnp.float32):  # the same float32 inputs in both precisions
            arrays = [jnp.asarray(a.astype(np.float32), dtype) for a in (points, normal, uniform)]
            found.append([np.asarray(a, np.float64) for a in jax.vmap(at_point)(*arrays)])
    (values, *exact), (_, *rough) = found
    slopes, written = exact
    with np.errstate(all="ignore"):
        errors = np.where(np.isfinite(rough), np.abs(np.subtract(rough, exact)), 0)
        errors[:, ::2], errors[:, 1::2] = (errors[:, i::2].max(axis=1, keepdims=True) for i in (0, 1))
        tolerance = 1e-6 * np.maximum(np.abs(written), np.abs(slopes)) + NOISE_RATIO * errors.sum(axis=0)
        finite = np.isfinite(values)[:, None] & np.isfinite(slopes) & np.isfinite(written)
        wrong = finite & (np.abs(written - slopes) > tolerance)
    for column, source in enumerate(derivative.source for derivative in derivatives):
        problem = f"expected the derivative w.r.t. column {column}, "
        if not finite[:, column].any():
            problem += "got no point where it and the function are finite"
        elif wrong[:, column].any():
            i = int(np.argmax(wrong[:, column]))
            at = [round(value, 6) for value in points[i].tolist()]
            problem += f"{slopes[i, column]:.8g} at {at}, got {written[i, column]:.8g}"
        else:
            continue
        raise ExpressionError(problem, column=1 + len(source) - len(source.lstrip()))

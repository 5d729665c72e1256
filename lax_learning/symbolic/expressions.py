"""Functions drawn from a library of symbolic expressions with random coefficients (symrep, 2022)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
from lax_learning.symbolic._library import (
    Coefficients,
    Expression,
    Library,
    as_coefficients,
    as_points,
    parse_expression,
    parse_library,
)
from lax_learning.symbolic._parser import ExpressionError
from lax_learning.types import Key

__all__ = [
    "Coefficients",
    "Expression",
    "ExpressionError",
    "FunctionDraws",
    "Library",
    "draw_functions",
    "function_gradients",
    "function_values",
    "load_library",
    "parse_expression",
    "parse_library",
]

Evaluate = Callable[[Coefficients, Array], Array]


class FunctionDraws(NamedTuple):
    """Entries that were drawn, and each draw's coefficients `[number, K]`."""

    entries: Int[Array, " number"]
    coefficients: Coefficients


def load_library(path: str | os.PathLike[str]) -> Library:
    """`parse_library` of a UTF-8 file.

    Args:
      path: of the file.

    Returns:
      Library: an entry a line.

    Raises:
      ExpressionError: as `parse_library`, naming the file.
      ValueError: for a file that is not UTF-8.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "quadratic.lib")
      ...     _ = path.write_text("N0 * X[:,0]**2; 2 * N0 * X[:,0]")
      ...     len(load_library(path).expressions)
      1

    References:
      The public notebooks of symrep, https://github.com/fabxy/symrep, 2022.
    """
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
    """Draws functions and their coefficients: the entry uniformly, `N_k ~ N(0, 1)`, `U_k ~ U(0, 1)`.

    Args:
      key: chooses the entries, with replacement, and the coefficients.
      library: what to draw from.
      number: of functions.
      dtype: of the coefficients.

    Returns:
      FunctionDraws: every function has coefficients of its own.

    Raises:
      TypeError, ValueError: for a number that is no int of at least 1.

    Example:
      >>> draws = draw_functions(jax.random.key(0), parse_library("5*N0*sin(3*U0*X[:,0])"), 4)
      >>> draws.entries.tolist(), draws.coefficients.normal.shape
      ([0, 0, 0, 0], (4, 1))

    References:
      The public notebooks of symrep, https://github.com/fabxy/symrep, 2022.
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
    """The values of drawn functions at the same points: `f_i(x)`.

    Every draw evaluates every entry and keeps its own: that is what one program for all of them costs.

    Args:
      library: that the functions were drawn from.
      draws: entries `[number]` and coefficients `[number, K]`. Entries that are traced cannot be checked, and
        count as the nearest.
      x: points `[points, columns]`.

    Returns:
      `[number, points]`, in the dtype of x.

    Raises:
      TypeError, ValueError: for x without points, with too few columns or not floating, and for draws that
        do not fit the library.

    Example:
      >>> library = parse_library("X[:,0]**2")
      >>> draws = draw_functions(jax.random.key(0), library, 1)
      >>> function_values(library, draws, jnp.array([[1.0], [3.0]])).tolist()
      [[1.0, 9.0]]

    References:
      The public notebooks of symrep, https://github.com/fabxy/symrep, 2022.
    """
    return _at_draws(library, draws, x, lambda evaluate: evaluate)


def function_gradients(
    library: Library, draws: FunctionDraws, x: Float[Array, "points columns"]
) -> Float[Array, "number points columns"]:
    """The derivatives of drawn functions, every point on its own: `df_i(x) / dx`.

    By automatic differentiation: derivatives written by hand are not needed.

    Args:
      library: that the functions were drawn from.
      draws: entries `[number]` and coefficients `[number, K]`.
      x: points `[points, columns]`.

    Returns:
      `[number, points, columns]`, in the dtype of x.

    Raises:
      TypeError, ValueError: as `function_values`.

    Example:
      >>> library = parse_library("X[:,0]**2")
      >>> draws = draw_functions(jax.random.key(0), library, 1)
      >>> function_gradients(library, draws, jnp.array([[1.0], [3.0]])).tolist()
      [[[2.0], [6.0]]]

    References:
      The public notebooks of symrep, https://github.com/fabxy/symrep, 2022.
    """

    def gradient(evaluate: Evaluate) -> Evaluate:
        # A point's value does not depend on the others: the gradient of the sum is that of every point.
        return jax.grad(lambda coefficients, x: jnp.sum(evaluate(coefficients, x)), 1)

    return _at_draws(library, draws, x, gradient)


def _at_draws(
    library: Library, draws: FunctionDraws, x: Array, transform: Callable[[Evaluate], Evaluate]
) -> Array:
    check_instance("library", library, Library, "a Library, from parse_library")
    check_instance("draws", draws, FunctionDraws, "FunctionDraws, from draw_functions")
    x = as_points(x, library.num_columns)
    entries = as_array("entries", draws.entries)
    _check_entries(entries, len(library.expressions))
    coefficients = as_coefficients(draws.coefficients, entries.shape, library.num_coefficients)

    # Under vmap every entry is evaluated and one is selected, inputs included: no derivative that is not
    # finite comes back from the others.
    branches = [transform(expression.evaluate) for expression in library.expressions]
    return jax.vmap(lambda entry, coefficients: lax.switch(entry, branches, coefficients, x))(
        entries.astype(jnp.int32), coefficients
    )


def _check_entries(entries: Array, size: int) -> None:
    if not jnp.issubdtype(entries.dtype, jnp.integer):
        raise TypeError(f"entries: expected integers, got {entries.dtype}")
    if entries.ndim != 1:
        raise ValueError(f"entries: expected shape [number], got {list(entries.shape)}")
    if isinstance(entries, Tracer):
        return
    outside = [entry for entry in entries.tolist() if not 0 <= entry < size]
    if outside:
        raise ValueError(f"entries: expected indices of 0..{size - 1}, got {outside[0]}")

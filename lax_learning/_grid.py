"""Grids over named axes: seeds, learning rates and noise levels in one call."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from lax_learning._arrays import as_arrays, check_members
from lax_learning._checks import check_callable, describe
from lax_learning._ensemble import Ensemble, Progress, ensemble


class Grid(NamedTuple):
    """Results of a function on a grid.

    Fields:
      axes: values along each axis, by name, in the order of the axes of the results.
      results: results of the function; every leaf has these axes in front.
    """

    axes: dict[str, Any]
    results: Any


def grid(
    function: Callable[..., Any],
    *,
    memory_budget: float = 8e9,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> Callable[..., Grid]:
    """Runs a function on all combinations of named values, in one compiled program.

    Args:
      function: a pure function of one point of the grid, `function(*shared, **point)`.
      memory_budget, batch_size, devices, progress: as in `ensemble`.

    Returns:
      `(axes, *shared) -> Grid`, where `axes` is a dict of arrays, or of pytrees of arrays, with a leading
      axis of values, such as `{"seed": keys, "learning_rate": rates}`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draw = grid(lambda shift, *, seed, sigma: shift + sigma * jax.random.normal(seed))
      >>> keys = jax.random.split(jax.random.key(0), 5)
      >>> found = draw({"seed": keys, "sigma": jnp.array([0.1, 1.0])}, 2.0)
      >>> list(found.axes), found.results.shape
      (['seed', 'sigma'], (5, 2))
    """
    check_callable("function", function, "a function of one point, such as run(data, *, seed, sigma)")

    @cache
    def run_of(names: tuple[str, ...]) -> Ensemble:
        def point(index: Any, axes: list[Any], *shared: Any) -> Any:
            places = jnp.unravel_index(index, tuple(map(_length, axes)))
            chosen = [jax.tree.map(itemgetter(i), axis) for axis, i in zip(axes, places, strict=True)]
            return function(*shared, **dict(zip(names, chosen, strict=True)))

        return ensemble(
            point, memory_budget=memory_budget, batch_size=batch_size, devices=devices, progress=progress
        )

    def on_grid(axes: Mapping[str, Any], *shared: Any) -> Grid:
        if not isinstance(axes, Mapping) or not axes or not all(isinstance(name, str) for name in axes):
            raise TypeError(f"axes: expected a dict of values by name, got {describe(axes)}")
        named = {name: as_arrays(f"axes[{name!r}]", axis) for name, axis in axes.items()}
        for name, axis in named.items():
            leaves = jax.tree_util.tree_leaves_with_path(axis)
            check_members({f"axes[{name!r}]{keystr(path)}": leaf for path, leaf in leaves})
        sizes = tuple(map(_length, named.values()))
        found = run_of(tuple(named))(jnp.arange(math.prod(sizes)), list(named.values()), *shared)
        return Grid(named, jax.tree.map(lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]), found))

    run_of(())  # options are checked here
    return on_grid


def _length(axis: Any) -> int:
    return len(jax.tree.leaves(axis)[0])

"""Studies: configurations drawn from a space, and one program for all of the same static shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lax_learning._checks import (
    as_array,
    check_count,
    check_function,
    check_instance,
    check_key,
    check_memory,
    check_sequence,
    describe,
)
from lax_learning._ensemble import ensemble
from lax_learning.types import Key

Configuration = Mapping[str, Any]
MakeRun = Callable[..., Callable[[Key, dict[str, Any]], PyTree]]


class Group(NamedTuple):
    """Configurations that one program can hold.

    Fields:
      static: what they have in common and a program is made for: sizes, numbers of steps.
      traced: what differs, each value `[members]`.
      members: their places among all configurations.
    """

    static: dict[str, Any]
    traced: dict[str, np.ndarray]
    members: tuple[int, ...]


def random_configurations(key: Key, space: Mapping[str, Sequence[Any]], number: int) -> list[dict[str, Any]]:
    """Draws configurations: every field uniformly from its values, on its own and with replacement.

    Args:
      key: chooses.
      space: the values of every field.
      number: of configurations.

    Returns:
      The configurations.

    Raises:
      TypeError, ValueError: for a number that is no int of at least 1, or a field without values.

    Example:
      >>> space = {"width": (64, 128), "learning_rate": (1e-4, 1e-3)}
      >>> len(random_configurations(jax.random.key(0), space, 3))
      3
    """
    check_key("key", key)
    check_count("number", number)
    if not isinstance(space, Mapping):
        raise TypeError(f"space: expected a dict of fields and their values, got {describe(space)}")
    check_memory("number", [(number, max(1, len(space)))])
    for name, values in space.items():
        if not isinstance(values, np.ndarray):
            check_sequence(f"space[{name!r}]", values, "a sequence of values")
        if len(values) == 0:
            raise ValueError(f"space[{name!r}]: expected at least one value, got none")
    keys = jax.random.split(key, max(1, len(space)))
    places = {
        name: np.asarray(jax.random.randint(k, (number,), 0, len(values)))
        for k, (name, values) in zip(keys, space.items(), strict=False)
    }
    return [{name: space[name][places[name][i]] for name in space} for i in range(number)]


def group_by_shape(configurations: Sequence[Configuration], static: Sequence[str]) -> list[Group]:
    """Groups configurations by their static fields.

    Args:
      configurations: all with the same fields.
      static: names of the fields that a program is made for; the others are numbers, and traced.

    Returns:
      The groups, in the order of their first members; every configuration is in one of them.

    Raises:
      TypeError, ValueError: for no configurations, other fields in one of them, or traced values that are
        no numbers.

    Example:
      >>> rates = [{"width": w, "rate": r} for w in (8, 16) for r in (0.1, 0.2)]
      >>> [(g.static, g.traced["rate"].tolist(), g.members) for g in group_by_shape(rates, ["width"])]
      [({'width': 8}, [0.1, 0.2], (0, 1)), ({'width': 16}, [0.1, 0.2], (2, 3))]
    """
    _check_configurations(configurations)
    check_sequence("static", static, "a sequence of names of fields")
    for i, name in enumerate(static):
        check_instance(f"static[{i}]", name, str, "the name of a field")
    fields = set(configurations[0])
    if not set(static) <= fields:
        raise ValueError(f"static: expected fields among {sorted(fields)}, got {sorted(static)}")
    traced = [name for name in configurations[0] if name not in static]
    members: dict[tuple[Any, ...], list[int]] = {}
    for i, configuration in enumerate(configurations):
        for name in traced:
            value = configuration[name]
            _check_number(f"configurations[{i}][{name!r}]", value)
        for name in static:
            try:
                hash(configuration[name])
            except TypeError as error:
                raise TypeError(
                    f"configurations[{i}][{name!r}]: expected a value that can be hashed, such as a tuple, "
                    f"got {describe(configuration[name])}"
                ) from error
        # 1, 1.0 and True are equal, and make different programs.
        values = tuple((type(configuration[name]), configuration[name]) for name in static)
        members.setdefault(values, []).append(i)
    return [
        Group(
            {name: configurations[places[0]][name] for name in static},
            {name: np.array([configurations[i][name] for i in places]) for name in traced},
            tuple(places),
        )
        for places in members.values()
    ]


def _check_configurations(configurations: Any) -> None:
    check_sequence("configurations", configurations, "a sequence of dicts")
    if len(configurations) == 0:
        raise ValueError("configurations: expected at least one, got none")
    for i, configuration in enumerate(configurations):
        if not isinstance(configuration, Mapping):
            raise TypeError(f"configurations[{i}]: expected a dict, got {describe(configuration)}")
        for name in configuration:
            check_instance(f"configurations[{i}]", name, str, "fields that are named by text")
        if configuration.keys() != configurations[0].keys():
            fields = sorted(configurations[0])
            raise ValueError(f"configurations[{i}]: expected fields {fields}, got {sorted(configuration)}")


def _check_number(name: str, value: Any) -> None:
    """Raises unless JAX has a number for the value, neither wrapped around, infinite nor 0 in its place."""
    if isinstance(value, bool | complex | np.complexfloating) or not isinstance(
        value, int | float | np.number
    ):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    dtype = jnp.dtype(int if isinstance(value, int | np.integer) else float)
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        fits = jnp.iinfo(dtype).min <= value <= jnp.iinfo(dtype).max
    else:
        size = abs(float(value))
        fits = not np.isfinite(size) or size == 0 or jnp.finfo(dtype).tiny <= size <= jnp.finfo(dtype).max
    if not fits:
        raise ValueError(f"{name}: expected a number in the range of {dtype}, got {value!r}")


def run_group(make_run: MakeRun, group: Group, keys: Array, **options: Any) -> PyTree:
    """Runs all configurations of a group for all seeds, in one program.

    Args:
      make_run: `(**static) -> run(key, traced)`; `traced` is a dict of scalars.
      group: from `group_by_shape`.
      keys: one a seed, `[seeds]`; the same for every configuration.
      **options: of `ensemble`: devices and memory budget.

    Returns:
      What `run` returns, each leaf `[members, seeds, ...]`.

    Raises:
      ValueError: if keys have no leading axis of seeds.

    Example:
      >>> group, = group_by_shape([{"n": 2, "a": 1.0}, {"n": 2, "a": 2.0}], ["n"])
      >>> make_run = lambda n: lambda key, traced: traced["a"] * jnp.ones(n)
      >>> run_group(make_run, group, jax.random.split(jax.random.key(0), 3)).shape
      (2, 3, 2)
    """
    check_instance("group", group, Group, "a Group, from group_by_shape")
    expected = f"a function of the static fields {list(group.static)} that returns a run"
    check_function("make_run", make_run, expected, **group.static)
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"keys: expected keys of jax.random.key, got {describe(keys)}")
    if keys.ndim != 1 or keys.shape[0] == 0:
        raise ValueError(f"keys: expected shape [seeds], got {list(keys.shape)}")
    shape = (len(group.members), keys.shape[0])
    every_key = jnp.broadcast_to(keys, shape).reshape(-1)
    traced = {name: jnp.repeat(jnp.asarray(values), shape[1]) for name, values in group.traced.items()}
    one = make_run(**group.static)
    check_function("make_run", one, f"{expected}(key, traced)", None, None)
    run = ensemble(one, in_axes=(0, 0), **options)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), run(every_key, traced))


def run_study(
    make_run: MakeRun,
    configurations: Sequence[Configuration],
    keys: Array,
    *,
    static: Sequence[str],
    **options: Any,
) -> Iterator[tuple[Group, PyTree]]:
    """Runs configurations, one program for each static shape among them, and yields what each group gives.

    Args:
      make_run, keys, options: as for `run_group`.
      configurations, static: as for `group_by_shape`.

    Returns:
      An iterator of groups and what they give, so that a study can be shown and saved as it goes.

    Raises:
      TypeError, ValueError: as `group_by_shape` and `run_group`.

    Example:
      >>> configurations = [{"n": n, "a": 1.0} for n in (2, 3)]
      >>> make_run = lambda n: lambda key, traced: traced["a"] * n
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> [found.tolist() for _, found in run_study(make_run, configurations, keys, static=["n"])]
      [[[2.0, 2.0]], [[3.0, 3.0]]]
    """
    for group in group_by_shape(configurations, static):
        yield group, run_group(make_run, group, keys, **options)


def study_dataset(configurations: Sequence[Configuration], found: Sequence[tuple[Group, Mapping[str, Any]]]):
    """All results of a study with named axes; needs xarray.

    Args:
      configurations: all of them.
      found: groups and their results, each a dict of arrays `[members, seeds, ...]`.

    Returns:
      An `xarray.Dataset` with the axes `configuration`, `seed` and, for each metric that has more,
      `METRIC_0, ...`; the fields of the configurations are coordinates along `configuration`. Where
      groups have axes of other lengths, the shorter ones are filled with NaN.

    Raises:
      ValueError: if the groups do not hold every configuration once.

    Example:
      >>> configurations = [{"n": n, "a": 1.0} for n in (2, 3)]
      >>> make_run = lambda n: lambda key, traced: {"loss": traced["a"] * n}
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> found = list(run_study(make_run, configurations, keys, static=["n"]))
      >>> study_dataset(configurations, found).loss.sel(seed=0).values.tolist()
      [2.0, 3.0]
    """
    try:
        import xarray as xr
    except ImportError as error:
        raise ImportError(
            "study_dataset: expected xarray to be installed, got none; pip install xarray"
        ) from error

    _check_configurations(configurations)
    check_sequence("found", found, "a sequence of (group, results)")
    taken = ["configuration", "seed", *configurations[0]]
    for i, entry in enumerate(found):
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], Group)):
            raise TypeError(f"found[{i}]: expected (group, results), got {describe(entry)}")
        group, results = entry
        if not isinstance(results, Mapping):
            raise TypeError(
                f"found[{i}]: expected results that are a dict of arrays, got {describe(results)}"
            )
        num_seeds: int | None = None
        for name, values in results.items():
            if name in taken:
                raise ValueError(f"found[{i}]: expected metrics not named as one of {taken}, got {name!r}")
            shape = jnp.shape(as_array(f"found[{i}][{name!r}]", values))
            if len(shape) < 2 or shape[0] != len(group.members) or shape[1] != (num_seeds or shape[1]):
                seeds = "seeds" if num_seeds is None else num_seeds
                raise ValueError(
                    f"found[{i}][{name!r}]: expected shape [{len(group.members)}, {seeds}, ...], "
                    f"got {list(shape)}"
                )
            num_seeds = shape[1]
    places = [i for group, _ in found for i in group.members]
    if sorted(places) != list(range(len(configurations))):
        raise ValueError(
            f"found: expected each of {len(configurations)} configurations once, got {sorted(places)}"
        )
    parts = []
    for group, results in found:
        variables = {}
        for name, values in results.items():
            values = np.asarray(values)
            more = tuple(f"{name}_{i}" for i in range(values.ndim - 2))
            variables[name] = (("configuration", "seed", *more), values)
        sizes = {
            axis: n for axes, values in variables.values() for axis, n in zip(axes, values.shape, strict=True)
        }
        coordinates = {axis: np.arange(n) for axis, n in sizes.items()}
        parts.append(xr.Dataset(variables, {**coordinates, "configuration": list(group.members)}))
    dataset = xr.concat(parts, "configuration", join="outer").sortby("configuration")
    fields = {
        name: ("configuration", [_plain(c[name]) for c in configurations]) for name in configurations[0]
    }
    return dataset.assign_coords(fields)


def _plain(value: Any) -> Any:
    """A value that an axis of a dataset can hold: sequences as text."""
    return value if isinstance(value, int | float | str | np.number) else str(value)

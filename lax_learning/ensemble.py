"""Many seeds, many hyper-parameters, all devices of all hosts: one compiled program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lax_learning._batches import Axes, count_members, in_batches
from lax_learning._checks import as_arrays, check_callable, check_count, check_positive, check_values
from lax_learning._flat import COMPILER_OPTIONS, flat
from lax_learning.placement import place, repeating_the_last, within_reach


class _Prepared(NamedTuple):
    """Arguments of a call, their axes, and how many members there are."""

    args: tuple[Any, ...]
    axes: Axes
    number: int


class _Traced(NamedTuple):
    """`function(closed_over, *args)` for one member; for all of them a 1, and what it closes over."""

    function: Callable[..., Any]
    shared: tuple[jax.Array, list[jax.Array]]


class _Program(NamedTuple):
    """Compiled program, and its first argument."""

    compiled: jax.stages.Compiled
    shared: tuple[jax.Array, list[jax.Array]]


def ensemble(
    function: Callable[..., Any],
    *,
    in_axes: Sequence[int | None] | None = None,
    memory_budget: float = 8e9,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
) -> "Ensemble":
    """Runs a function written for one seed on many at once.

    `function` is vmapped, sharded over the devices along a mesh axis `seed`, and compiled once for all
    calls with arguments of the same shapes. Devices do not talk to each other while it runs. Uneven devices
    are padded by repeating the last member, so that the result of a member does not depend on how many run
    beside it.

    With many processes (`jax.distributed`) every one of them makes the same calls with the same arguments
    and computes the members of its own devices. Results of as many members as fill the devices evenly stay
    where they were computed, ready for a next call; `gather` brings them to every process. Others are
    gathered at once, on the first device of each process.

    Args:
      function: a pure function, for example what `make_train` returns.
      in_axes: for every positional argument 0, if its leaves have a leading axis of members, or None, if
        all members share it; by default 0 for the first and None for the others.
      memory_budget: bytes a device may use for temporaries; if members side by side need more, they are
        computed in equal batches one after another.
      batch_size: how many members a device computes side by side; the others come one after another. By
        default as many as the budget allows: right for an accelerator. On a CPU a few whose params and
        moments stay in its cache can be twice as fast. With 1, a member's result is the same to the last
        bit beside any other members, on any number of devices of one kind and in any number of processes.
        Else sums may be rounded otherwise. A device with fewer members than that computes some of them again.
      devices: by default all, of all processes.

    Returns:
      A function of the same positional arguments; every leaf of its result has a leading axis of
      members. It compiles for itself: call it outside of `jit`. Its method `compile` takes the same
      arguments and compiles without running, to keep that out of timings; it returns the program.

    Raises:
      TypeError, ValueError: for axes other than 0 and None, none at 0, arguments of unequal leading axes or
        with fewer members than processes, a budget <= 0, or a batch_size that is no int of at least 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draw = ensemble(lambda key, scale: scale * jax.random.normal(key, (2,)), in_axes=(0, 0))
      >>> draw(jax.random.split(jax.random.key(0), 5), jnp.arange(5.0)).shape
      (5, 2)
    """
    check_callable("function", function, "a function of one member, such as make_train(...)")
    check_positive("memory_budget", memory_budget)
    if in_axes is not None and (any(axis not in (0, None) for axis in in_axes) or 0 not in in_axes):
        raise ValueError(f"in_axes: expected 0 or None for each argument and 0 for one, got {tuple(in_axes)}")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    mesh = Mesh(tuple(jax.devices() if devices is None else devices), ("seed",))
    axes = None if in_axes is None else tuple(in_axes)
    return Ensemble(function, axes, float(memory_budget), batch_size, mesh)


class Ensemble:
    """A function of many members at once; made by `ensemble`."""

    def __init__(
        self,
        function: Callable[..., Any],
        in_axes: Axes | None,
        memory_budget: float,
        batch_size: int | None,
        mesh: Mesh,
    ) -> None:
        self._function = function
        self._in_axes = in_axes
        self._memory_budget = memory_budget
        self._batch_size = batch_size
        self._mesh = mesh
        self._programs: dict[Any, _Program] = {}

    def __call__(self, *args: Any) -> Any:
        """Runs all members."""
        prepared = self._prepare(args)
        program = self._program(prepared)
        found = program.compiled(program.shared, *self._place(prepared))
        if prepared.number % self._mesh.size == 0:
            return found
        found = jax.device_put(jax.tree.map(within_reach, found), self._mesh.local_mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf[: prepared.number], found)

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for arguments of these shapes; what it returns tells costs and memory of a device."""
        return self._program(self._prepare(args)).compiled

    def _prepare(self, args: tuple[Any, ...]) -> _Prepared:
        axes = (0, *(None,) * (len(args) - 1)) if self._in_axes is None else self._in_axes
        if len(axes) != len(args):
            raise ValueError(f"in_axes: expected one entry for each of {len(args)} arguments, got {axes}")
        args = as_arrays("args", args)
        check_values("args", args)
        count = count_members(axes, args)
        processes = len({device.process_index for device in self._mesh.devices.flat})
        if count < processes:
            raise ValueError(
                f"number of members: expected at least one for each of {processes} processes, got {count}"
            )
        return _Prepared(args, axes, count)

    def _program(self, prepared: _Prepared) -> _Program:
        leaves, structure = jax.tree.flatten(jax.tree.map(jax.typeof, prepared.args))
        signature = (structure, tuple(leaves))
        if signature not in self._programs:
            traced = self._trace(prepared)
            self._programs[signature] = _Program(self._fit(prepared, traced), traced.shared)
        return self._programs[signature]

    def _trace(self, prepared: _Prepared) -> _Traced:
        """Makes the arrays that the function closes over arguments of it.

        XLA computes what follows from constants alone, and rounds otherwise than the program would. How much
        it does depends on the number of devices.
        """
        one = jax.eval_shape(partial(_first, prepared.axes), *prepared.args)

        def checked(*args: Any) -> Any:
            return as_arrays("function", self._function(*args))

        program, shapes = jax.make_jaxpr(flat(checked), return_shape=True)(*one)

        def function(closed_over: list[jax.Array], *args: Any) -> Any:
            found = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, closed_over))(*jax.tree.leaves(args))
            return jax.tree.unflatten(jax.tree.structure(shapes), found)

        everywhere = NamedSharding(self._mesh, PartitionSpec())
        shared = jax.tree.map(jnp.asarray, (jnp.int32(1), list(program.consts)))
        return _Traced(function, place(shared, everywhere))

    def _fit(self, prepared: _Prepared, traced: _Traced) -> jax.stages.Compiled:
        """Compiles for batches of the size asked for, or else for the largest that the budget holds."""
        if self._batch_size is not None:
            return self._compile(prepared, traced, self._batch_size)
        compiled = self._compile(prepared, traced, None)
        memory = compiled.memory_analysis()
        used = 0 if memory is None else memory.temp_size_in_bytes
        all_of_them = -(-prepared.number // self._mesh.size)
        if used <= self._memory_budget or all_of_them == 1:
            return compiled
        num_batches = -(-all_of_them // max(int(all_of_them * self._memory_budget / used), 1))
        return self._compile(prepared, traced, -(-all_of_them // num_batches))

    def _compile(self, prepared: _Prepared, traced: _Traced, batch_size: int | None) -> jax.stages.Compiled:
        def members(shared: Any, *args: Any) -> Any:
            one, closed_over = shared
            together = jax.vmap(partial(traced.function, closed_over), in_axes=prepared.axes)
            if batch_size is None:
                return together(*args)
            return in_batches(together, prepared.axes, batch_size, one, *args)

        sharded = jax.shard_map(
            members,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), *map(_spec, prepared.axes)),
            out_specs=PartitionSpec("seed"),
            check_vma=False,
        )
        lowered = jax.jit(sharded).lower(traced.shared, *self._place(prepared))
        return lowered.compile(compiler_options=None if self._batch_size is None else COMPILER_OPTIONS)

    def _place(self, prepared: _Prepared) -> tuple[Any, ...]:
        """The members spread over the devices, and what they share on all of them."""
        args, axes, number = prepared
        chosen = repeating_the_last(number, self._mesh.size)
        return tuple(
            place(arg, NamedSharding(self._mesh, _spec(axis)), ... if axis is None else chosen)
            for axis, arg in zip(axes, args, strict=True)
        )


def _first(axes: Axes, *args: Any) -> tuple[Any, ...]:
    """Arguments of the first member."""
    return tuple(
        arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg)
        for axis, arg in zip(axes, args, strict=True)
    )


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec("seed")

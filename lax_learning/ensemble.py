"""Many seeds, many hyper-parameters, all devices of all hosts: one compiled program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lax_learning._checks import check_count, check_positive
from lax_learning.placement import place, repeating_the_last, within_reach

Axes: TypeAlias = tuple[int | None, ...]


class _Prepared(NamedTuple):
    """Arguments of a call, their axes, and how many members there are."""

    args: tuple[Any, ...]
    axes: Axes
    number: int


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
        bit beside any other members and on any two or more devices of one kind; on a single one it nearly
        always is, but XLA leaves out a pass there. Else sums may be rounded otherwise. A device with fewer
        members than that computes some of them again.
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
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        """Runs all members."""
        prepared = self._prepare(args)
        found = self._program(prepared)(*self._place(prepared))
        if prepared.number % self._mesh.size == 0:
            return found
        found = jax.device_put(jax.tree.map(within_reach, found), self._mesh.local_mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf[: prepared.number], found)

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for arguments of these shapes; what it returns tells costs and memory of a device."""
        return self._program(self._prepare(args))

    def _prepare(self, args: tuple[Any, ...]) -> _Prepared:
        axes = (0, *(None,) * (len(args) - 1)) if self._in_axes is None else self._in_axes
        if len(axes) != len(args):
            raise ValueError(f"in_axes: expected one entry for each of {len(args)} arguments, got {axes}")
        args = jax.tree.map(jnp.asarray, args)
        count = _count(axes, args)
        processes = len({device.process_index for device in self._mesh.devices.flat})
        if count < processes:
            raise ValueError(
                f"number of members: expected at least one for each of {processes} processes, got {count}"
            )
        return _Prepared(args, axes, count)

    def _program(self, prepared: _Prepared) -> jax.stages.Compiled:
        leaves, structure = jax.tree.flatten(jax.tree.map(jax.typeof, prepared.args))
        signature = (structure, tuple(leaves))
        if signature not in self._programs:
            self._programs[signature] = self._fit(prepared)
        return self._programs[signature]

    def _fit(self, prepared: _Prepared) -> jax.stages.Compiled:
        """Compiles for batches of the size asked for, or else for the largest that the budget holds."""
        if self._batch_size is not None:
            return self._compile(prepared, self._batch_size)
        all_of_them = -(-prepared.number // self._mesh.size)
        compiled = self._compile(prepared, all_of_them)
        memory = compiled.memory_analysis()
        used = 0 if memory is None else memory.temp_size_in_bytes
        if used <= self._memory_budget or all_of_them == 1:
            return compiled
        num_batches = -(-all_of_them // max(int(all_of_them * self._memory_budget / used), 1))
        return self._compile(prepared, -(-all_of_them // num_batches))

    def _compile(self, prepared: _Prepared, batch_size: int) -> jax.stages.Compiled:
        sharded = jax.shard_map(
            partial(self._members, prepared.axes, batch_size),
            mesh=self._mesh,
            in_specs=(PartitionSpec(), *map(_spec, prepared.axes)),
            out_specs=PartitionSpec("seed"),
            check_vma=False,
        )
        return jax.jit(sharded).lower(*self._place(prepared)).compile()

    def _members(self, axes: Axes, batch_size: int, one: Any, *args: Any) -> Any:
        """The members of one device, batch by batch; the last one is repeated where they do not fill them.

        XLA makes another program of a loop that it knows to run once, and of arrays with a single row: it is
        not told that `one` is 1, and there are at least two rows.
        """
        together, count = jax.vmap(self._function, in_axes=axes), _count(axes, args)
        if self._batch_size is None and count == batch_size:
            return together(*args)
        num_batches = -(-count // batch_size)
        num_rows = max(num_batches, 2)
        chosen = repeating_the_last(count, num_rows * batch_size)
        rows = [
            arg
            if axis is None
            else jax.tree.map(lambda leaf: leaf[chosen].reshape(num_rows, batch_size, *leaf.shape[1:]), arg)
            for axis, arg in zip(axes, args, strict=True)
        ]

        def batch(i: Any) -> Any:
            return together(
                *(
                    arg if axis is None else jax.tree.map(lambda leaf: leaf[i], arg)
                    for axis, arg in zip(axes, rows, strict=True)
                )
            )

        def put(i: Any, found: Any) -> Any:
            return jax.tree.map(lambda of_all, of_batch: of_all.at[i].set(of_batch), found, batch(i))

        found = jax.tree.map(
            lambda leaf: jax.lax.full((num_rows, *leaf.shape), 0, leaf.dtype), jax.eval_shape(batch, 0)
        )
        found = jax.lax.fori_loop(0, one * num_batches, put, found)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)

    def _place(self, prepared: _Prepared) -> tuple[Any, ...]:
        """A 1, the members spread over the devices, and what they share on all of them."""
        args, axes, number = (jnp.int32(1), *prepared.args), (None, *prepared.axes), prepared.number
        chosen = repeating_the_last(number, self._mesh.size)
        return tuple(
            place(arg, NamedSharding(self._mesh, _spec(axis)), ... if axis is None else chosen)
            for axis, arg in zip(axes, args, strict=True)
        )


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec("seed")


def _count(axes: Axes, args: tuple[Any, ...]) -> int:
    counts = set()
    for i, (axis, arg) in enumerate(zip(axes, args, strict=True)):
        if axis == 0:
            for leaf in jax.tree.leaves(arg):
                if leaf.ndim == 0:
                    raise ValueError(f"argument {i}: expected a leading axis of members, got a scalar")
                counts.add(leaf.shape[0])
    if len(counts) != 1:
        raise ValueError(f"arguments: expected leading axes of one size, got {sorted(counts)}")
    (count,) = counts
    check_count("number of members", count)
    return count

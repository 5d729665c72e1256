"""Many seeds, many hyper-parameters, all devices of all hosts: one compiled program."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lax_learning._checks import as_arrays, check_callable, check_count, check_positive, check_values
from lax_learning.placement import place, repeating_the_last, within_reach

Axes: TypeAlias = tuple[int | None, ...]


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
        bit whatever runs beside it; with another number of devices or members side by side, it agrees to
        rounding.
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
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        """Runs all members."""
        axes, args, number = self._prepare(args)
        placed = self._place(axes, args, number)
        found = self._program(axes, args, placed, number)(*placed)
        if number % self._mesh.size == 0:
            return found
        found = jax.device_put(jax.tree.map(within_reach, found), self._mesh.local_mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf[:number], found)

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for arguments of these shapes; what it returns tells costs and memory of a device."""
        axes, args, number = self._prepare(args)
        return self._program(axes, args, self._place(axes, args, number), number)

    def _prepare(self, args: tuple[Any, ...]) -> tuple[Axes, tuple[Any, ...], int]:
        """Axes of the arguments, the arguments checked, and the number of members."""
        axes = (0, *(None,) * (len(args) - 1)) if self._in_axes is None else self._in_axes
        if len(axes) != len(args):
            raise ValueError(f"in_axes: expected one entry for each of {len(args)} arguments, got {axes}")
        args = as_arrays("args", args)
        check_values("args", args)
        number = _number_of_members(axes, args)
        processes = len({device.process_index for device in self._mesh.devices.flat})
        if number < processes:
            raise ValueError(
                f"number of members: expected at least one for each of {processes} processes, got {number}"
            )
        return axes, args, number

    def _place(self, axes: Axes, args: tuple[Any, ...], number: int) -> tuple[Any, ...]:
        """The members spread over the devices, and what they share on all of them."""
        chosen = repeating_the_last(number, self._mesh.size)
        return tuple(
            place(arg, NamedSharding(self._mesh, _spec(axis)), ... if axis is None else chosen)
            for axis, arg in zip(axes, args, strict=True)
        )

    def _program(self, axes: Axes, args: Any, placed: Any, number: int) -> jax.stages.Compiled:
        """The program of these shapes: in batches as asked for, or the largest that the budget holds."""
        leaves, structure = jax.tree.flatten(jax.tree.map(jax.typeof, args))
        signature = (structure, tuple(leaves))
        if signature not in self._programs:
            each = -(-number // self._mesh.size)
            compiled = self._compile(axes, placed, self._batch_size)
            memory = compiled.memory_analysis() if self._batch_size is None else None
            used = 0 if memory is None else memory.temp_size_in_bytes
            if used > self._memory_budget and each > 1:
                num_batches = -(-each // max(int(each * self._memory_budget / used), 1))
                compiled = self._compile(axes, placed, -(-each // num_batches))
            self._programs[signature] = compiled
        return self._programs[signature]

    def _compile(self, axes: Axes, placed: tuple[Any, ...], batch_size: int | None) -> jax.stages.Compiled:
        def checked(*args: Any) -> Any:
            return as_arrays("function", self._function(*args))

        def members(*args: Any) -> Any:
            if batch_size is None:
                return jax.vmap(checked, in_axes=axes)(*args)
            own = [arg for axis, arg in zip(axes, args, strict=True) if axis == 0]
            count = jax.tree.leaves(own)[0].shape[0]
            # Whole batches: a smaller last one would be another program, with other bits.
            rows = repeating_the_last(count, batch_size)

            def one(own: list[Any]) -> Any:
                values = iter(own)
                pairs = zip(axes, args, strict=True)
                return checked(*(arg if axis is None else next(values) for axis, arg in pairs))

            found = jax.lax.map(one, jax.tree.map(lambda leaf: leaf[rows], own), batch_size=batch_size)
            return jax.tree.map(lambda leaf: leaf[:count], found)

        sharded = jax.shard_map(
            members,
            mesh=self._mesh,
            in_specs=tuple(map(_spec, axes)),
            out_specs=PartitionSpec("seed"),
            check_vma=False,
        )
        return jax.jit(sharded).lower(*placed).compile()


def _number_of_members(axes: Axes, args: tuple[Any, ...]) -> int:
    """The size of all leading axes of members."""
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


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec("seed")

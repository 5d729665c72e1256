"""Many seeds, many hyper-parameters, all devices of a host: one compiled program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lax_learning._checks import check_count, check_positive

Axes: TypeAlias = tuple[int | None, ...]


class _Plan(NamedTuple):
    """A compiled program for `chunk` members at a time."""

    run: jax.stages.Compiled
    chunk: int


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
    calls with arguments of the same shapes. If the program needs more memory than the budget, the members
    run in equal chunks one after another. The last chunk and uneven devices are padded by repeating
    the last member, so that the result of a member does not depend on how many run beside it.

    Args:
      function: a pure function, for example what `make_train` returns.
      in_axes: for every positional argument 0, if its leaves have a leading axis of members, or None, if
        all members share it; by default 0 for the first and None for the others.
      memory_budget: bytes a device may use for results and temporaries of one chunk.
      batch_size: how many members a device computes side by side, as `jax.lax.map` has it; the others come
        one after another. By default all: right for an accelerator. On a CPU a few whose params and moments
        stay in its cache can be twice as fast.
      devices: by default all of this host.

    Returns:
      A function of the same positional arguments; every leaf of its result has a leading axis of
      members. It compiles for itself: call it outside of `jit`. Its method `compile` takes the same
      arguments and compiles without running, to keep that out of timings; it returns the program.

    Raises:
      TypeError, ValueError: for axes other than 0 and None, none at 0, arguments of unequal leading axes or
        without members, a budget <= 0, or a batch_size that is no int of at least 1.

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
    devices = tuple(jax.local_devices() if devices is None else devices)
    axes = None if in_axes is None else tuple(in_axes)
    return Ensemble(function, axes, float(memory_budget), batch_size, devices)


class Ensemble:
    """A function of many members at once; made by `ensemble`."""

    def __init__(
        self,
        function: Callable[..., Any],
        in_axes: tuple[int | None, ...] | None,
        memory_budget: float,
        batch_size: int | None,
        devices: tuple[Any, ...],
    ) -> None:
        self._function = function
        self._in_axes = in_axes
        self._memory_budget = memory_budget
        self._batch_size = batch_size
        self._devices = devices
        self._mesh = Mesh(devices, ("seed",))
        self._plans: dict[Any, _Plan] = {}

    def __call__(self, *args: Any) -> Any:
        """Runs all members."""
        axes, args, count = self._prepare(args)
        compiled, chunk = self._plan(axes, args, count)
        parts = [compiled(*self._place(axes, args, start, chunk)) for start in range(0, count, chunk)]
        if count == chunk:
            return parts[0]
        parts = jax.device_put(parts, self._devices[0])
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for arguments of these shapes; what it returns tells costs and memory of one chunk."""
        return self._plan(*self._prepare(args)).run

    def _prepare(self, args: tuple[Any, ...]) -> tuple[Axes, tuple[Any, ...], int]:
        axes = (0, *(None,) * (len(args) - 1)) if self._in_axes is None else self._in_axes
        if len(axes) != len(args):
            raise ValueError(f"in_axes: expected one entry for each of {len(args)} arguments, got {axes}")
        args = jax.tree.map(jnp.asarray, args)
        return axes, args, _count(axes, args)

    def _plan(self, axes: Axes, args: tuple[Any, ...], count: int) -> _Plan:
        leaves, structure = jax.tree.flatten(jax.tree.map(jax.typeof, args))
        signature = (structure, tuple(leaves))
        if signature not in self._plans:
            self._plans[signature] = self._fit(axes, args, count)
        return self._plans[signature]

    def _fit(self, axes: Axes, args: tuple[Any, ...], count: int) -> _Plan:
        """Compiles for all members, or for as many as the memory budget holds."""
        num_devices = len(self._devices)
        batch = min(self._batch_size or 1, -(-count // num_devices))
        least = num_devices * batch
        chunk = _round_up(count, least)
        compiled = self._compile(axes, args, chunk)
        memory = compiled.memory_analysis()
        used = 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes
        if used > self._memory_budget and chunk > least:
            fits = max(int(chunk * self._memory_budget / used), least)
            num_chunks = -(-count // fits)
            chunk = _round_up(-(-count // num_chunks), least)
            compiled = self._compile(axes, args, chunk)
        return _Plan(compiled, chunk)

    def _compile(self, axes: Axes, args: tuple[Any, ...], chunk: int) -> jax.stages.Compiled:
        sharded = jax.shard_map(
            partial(self._members, axes),
            mesh=self._mesh,
            in_specs=tuple(map(_spec, axes)),
            out_specs=PartitionSpec("seed"),
            check_vma=False,
        )
        return jax.jit(sharded).lower(*self._place(axes, args, 0, chunk)).compile()

    def _members(self, axes: Axes, *args: Any) -> Any:
        """The members of one device: side by side, or batch by batch."""
        together = jax.vmap(self._function, in_axes=axes)
        if self._batch_size is None:
            return together(*args)
        size = min(self._batch_size, _count(axes, args))
        split = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
        batches = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), split)

        def batch(members: list[Any]) -> Any:
            left = iter(members)
            return together(
                *(arg if axis is None else next(left) for arg, axis in zip(args, axes, strict=True))
            )

        found = jax.lax.map(batch, batches)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def _place(self, axes: Axes, args: tuple[Any, ...], start: int, chunk: int) -> tuple[Any, ...]:
        """The members from `start` on, spread over the devices, and what they share on all of them.

        Members are chosen on one device: to index an array that is spread out takes a program with messages
        between devices, and no such program runs here.
        """

        def members(leaf: jax.Array) -> jax.Array:
            """The last member is repeated where fewer than `chunk` are left."""
            if start == 0 and leaf.shape[0] == chunk:
                return leaf
            leaf = jax.device_put(leaf, self._devices[0])
            return leaf[jnp.minimum(jnp.arange(start, start + chunk), leaf.shape[0] - 1)]

        chosen = (
            jax.tree.map(members, arg) if axis == 0 else arg for axis, arg in zip(axes, args, strict=True)
        )
        shardings = (NamedSharding(self._mesh, _spec(axis)) for axis in axes)
        return tuple(jax.device_put(arg, to) for arg, to in zip(chosen, shardings, strict=True))


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec("seed")


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


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

"""Many seeds and many hyper-parameters on all devices of all hosts, in one compiled program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from lax_learning._arrays import as_arrays, check_members
from lax_learning._checks import check_callable, check_count, check_positive
from lax_learning._placement import as_values, mesh_of, place, repeating_the_last, within_reach
from lax_learning._sites._equations import all_equations

MEMBERS, SHARED = PartitionSpec("seed"), PartitionSpec()
NO_MESH = Mesh(np.empty((), object), ())  # an ensemble has its own mesh, whichever one the user has set

Progress = Callable[[int, int], object]
"""`(number of members done, total number)`, called after every batch."""

_CONTEXT = (
    "jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion", "jax_random_seed_offset", "jax_debug_nans",
    "jax_debug_infs", "jax_disable_jit",
)  # fmt: skip
"""JAX settings that change what a function computes."""


def ensemble(
    function: Callable[..., Any],
    *,
    in_axes: Any = None,
    memory_budget: float = 8e9,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> "Ensemble":
    """Runs a function written for one seed on many seeds at once.

    `function` is vmapped, sharded over the devices along a mesh axis `seed`, and compiled once for all
    calls with arguments of the same shapes. Devices do not communicate while it runs. Members that do not
    divide evenly among the devices are padded by repeating the last one.

    On the same devices, a member's result is identical to the last bit, whichever other members run with it
    and in whatever order, provided that the number of members computed side by side is the same
    (`batch_size`). On a different number of devices or hosts, it agrees up to rounding.

    With several processes (`jax.distributed`), every process makes the same calls with the same arguments and
    computes the members of its own devices. If the members divide evenly among the devices, results stay
    where they were computed, ready for the next call, and `gather` brings them to every process. Otherwise
    they are gathered at once, on the first device of each process.

    Args:
      function: a pure function, for example the result of `make_train`.
      in_axes: as in `jax.vmap`, with axes 0 (one value per member) and None (shared by all): one axis for all
        arguments, or a sequence with an axis, or a pytree of axes, per argument. By default 0 for the first
        argument and None for the others.
      memory_budget: bytes of temporaries that a device may use; if all members side by side need more, they
        are computed in batches of equal size, one after another.
      batch_size: number of members that a device computes side by side; by default as many as the budget
        allows, which suits an accelerator. On a CPU, a few members whose params and moments stay in cache can
        be twice as fast. With `rbg` keys, which draw different numbers under vmap, members run one at a time.
      devices: by default all devices of all processes.
      progress: `(done, total)`, called with numbers of members after every batch of all devices.

    Returns:
      A function of the same positional arguments; every leaf of its result has a leading axis of members. It
      compiles itself, so call it outside of `jit`. Its method `compile` takes the same arguments and returns
      the program without running it, for example to exclude compilation from timings.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draw = ensemble(lambda key, scale: scale * jax.random.normal(key, (2,)), in_axes=(0, 0))
      >>> draw(jax.random.split(jax.random.key(0), 5), jnp.arange(5.0)).shape
      (5, 2)
    """
    check_callable("function", function, "a function of one member, such as make_train(...)")
    check_positive("memory_budget", memory_budget)
    if progress is not None:
        check_callable("progress", progress, "a function (done, total)", num_arguments=2)
    axes = jax.tree.leaves(in_axes, is_leaf=lambda axis: axis is None)
    if in_axes is not None and (0 not in axes or any(axis is not None and axis != 0 for axis in axes)):
        raise ValueError(f"in_axes: expected 0 or None for each argument and at least one 0, got {in_axes}")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    return Ensemble(function, in_axes, float(memory_budget), batch_size, mesh_of(devices), progress)


class _Call(NamedTuple):
    """Arguments of a call, or their shares of a device."""

    leaves: list[Any]
    structure: Any
    own: tuple[bool, ...]  # of each leaf, whether it has an axis of members
    weak: tuple[bool, ...]  # and whether its type is weak, as that of a Python number is

    @property
    def number(self) -> int:
        """Number of members."""
        return self.leaves[self.own.index(True)].shape[0]

    def each(self, change: Callable[[Any, bool], Any]) -> "_Call":
        """Applies `change(leaf, own)` to all leaves."""
        return self._replace(leaves=[change(*pair) for pair in zip(self.leaves, self.own, strict=True)])

    def rows(self, rows: Any) -> "_Call":
        """Returns the arguments of some of the members."""
        return self.each(lambda leaf, own: leaf[rows] if own else leaf)


@dataclass(eq=False)
class Ensemble:
    """A function of many members at once, made by `ensemble`."""

    _function: Callable[..., Any]
    _in_axes: Any
    _memory_budget: float
    _batch_size: int | None
    _mesh: Mesh
    _progress: Progress | None
    _programs: dict[Any, tuple[jax.stages.Compiled, int]] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Any:
        """Runs all members."""
        call = self._read(args)
        with jax.set_mesh(NO_MESH):
            return self._run(call) if self._progress is None else self._in_batches(call, self._progress)

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for arguments of these shapes; the result reports cost and memory per device."""
        call = self._read(args)
        with jax.set_mesh(NO_MESH):
            return self._program(self._placed(call))[0]

    def _in_batches(self, call: _Call, progress: Progress) -> Any:
        shared = call.each(lambda leaf, own: leaf if own else place(leaf, NamedSharding(self._mesh, SHARED)))
        count, found = call.number, []
        size = min((self._batch_size or self._program(self._placed(call))[1]) * self._mesh.size, count)
        padded = shared.rows(repeating_the_last(count, size))
        for start in range(0, count, size):
            results = jax.block_until_ready(self._run(padded.rows(slice(start, start + size))))
            found.append(jax.tree.map(within_reach, results))
            progress(min(start + size, count), count)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *found)

    def _run(self, call: _Call) -> Any:
        placed = self._placed(call)
        found = self._program(placed)[0](placed.leaves)
        if call.number == placed.number:
            return found
        found = jax.device_put(jax.tree.map(within_reach, found), self._mesh.local_mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf[: call.number], found)

    def _read(self, args: tuple[Any, ...]) -> _Call:
        """Checks the arguments."""
        axes = (0, *(None,) * (len(args) - 1)) if self._in_axes is None else self._in_axes
        axes = (axes,) * len(args) if isinstance(axes, int) else tuple(axes)
        if len(axes) != len(args):
            raise ValueError(f"in_axes: expected one entry for each of {len(args)} arguments, got {axes}")
        hint = "; an ensemble compiles itself: call it outside of jit, vmap and grad"
        args = as_values("args", args, hint)
        if isinstance(jnp.zeros(()), Tracer):
            raise TypeError(f"ensemble: expected a call outside of jit, got one inside{hint}")
        # Booleans, because JAX treats None as an empty pytree.
        is_own = jax.tree.map(lambda axis: axis == 0, axes, is_leaf=lambda axis: axis is None)
        try:
            own = tuple(jax.tree.leaves(jax.tree.broadcast(is_own, args)))
        except ValueError as error:
            raise ValueError(f"in_axes: expected the structure of the arguments, got {axes}") from error
        paths = [f"args{keystr(path)}" for path, _ in jax.tree.leaves_with_path(args)]
        leaves, structure = jax.tree.flatten(args)
        call = _Call(leaves, structure, own, tuple(jax.typeof(leaf).weak_type for leaf in leaves))
        check_members({path: leaf for path, leaf, of in zip(paths, call.leaves, own, strict=True) if of})
        processes = len({device.process_index for device in self._mesh.devices.flat})
        if call.number < processes:
            expected = f"at least one for each of {processes} processes"
            raise ValueError(f"number of members: expected {expected}, got {call.number}")
        return call

    def _placed(self, call: _Call) -> _Call:
        """Spreads the members over the devices, and copies shared leaves to all of them."""
        rows = repeating_the_last(call.number, self._mesh.size)
        members, shared = (NamedSharding(self._mesh, spec) for spec in (MEMBERS, SHARED))
        return call.each(lambda leaf, own: place(leaf, members, rows) if own else place(leaf, shared))

    def _program(self, placed: _Call) -> tuple[jax.stages.Compiled, int]:
        """Returns the program for these shapes, and the number of members it computes side by side.

        This number is `batch_size`, or the largest number whose temporaries fit into the budget.
        """
        context = tuple(getattr(jax.config, name, None) for name in _CONTEXT)
        signature = *placed[1:], tuple(map(jax.typeof, placed.leaves)), context
        if signature not in self._programs:
            each = placed.number // self._mesh.size
            fixed = self._batch_size
            size = min(fixed or each, each)
            traced = self._traced(placed, size)
            if size > 1 and _draws_by_batch(traced):
                fixed = size = 1
                traced = self._traced(placed, size)
            compiled = traced.lower().compile()
            last = (0, 0)
            while fixed is None and (used := _temporaries(compiled)) > self._memory_budget and size > 1:
                slope = max((used - last[1]) / (size - last[0]), 1.0)  # bytes that each member adds
                last = size, used
                fitting = max(int(size - (used - self._memory_budget) / slope), 1)
                size = -(-each // -(-each // min(fitting, size - 1)))  # batches of equal size
                compiled = self._traced(placed, size).lower().compile()
            self._programs[signature] = compiled, size
        return self._programs[signature]

    def _traced(self, placed: _Call, size: int) -> jax.stages.Traced:
        def one(leaves: list[Any]) -> Any:
            return as_arrays("function", self._function(*placed.structure.unflatten(leaves)))

        def members(leaves: list[Any]) -> Any:
            share = placed._replace(leaves=leaves)
            if size == share.number and self._batch_size is None:
                return jax.vmap(one, in_axes=([0 if own else None for own in share.own],))(leaves)
            # Padded to whole batches: a smaller last batch would be another program and round differently.
            rows = jnp.minimum(jnp.arange(-(-share.number // size) * size), share.number - 1)
            batch = jax.vmap(lambda row: one(share.rows(row).leaves))
            found = jax.lax.map(batch, rows.reshape(-1, size))
            return jax.tree.map(lambda leaf: leaf.reshape(rows.size, *leaf.shape[2:])[: share.number], found)

        specs = [MEMBERS if own else SHARED for own in placed.own]
        sharded = jax.shard_map(
            members, mesh=self._mesh, in_specs=(specs,), out_specs=MEMBERS, check_vma=False
        )
        types = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding, weak_type=weak)
            for leaf, weak in zip(placed.leaves, placed.weak, strict=True)
        ]
        return jax.jit(sharded).trace(types)


def _temporaries(program: jax.stages.Compiled) -> int:
    """Returns the bytes that a program needs besides arguments and results; 0 if the backend reports none."""
    memory = program.memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes


def _draws_by_batch(traced: jax.stages.Traced) -> bool:
    """Returns whether a program has keys that draw different numbers under vmap."""
    every = (var for each in all_equations(traced.jaxpr.jaxpr) for var in (*each.invars, *each.outvars))
    return any("rbg" in str(getattr(var.aval, "dtype", "")) for var in every)

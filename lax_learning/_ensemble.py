"""Many seeds and many hyper-parameters on all devices of all hosts, in one compiled program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from lax_learning._arrays import as_arrays
from lax_learning._checks import check_callable, check_count, check_positive
from lax_learning._placement import as_values, mesh_of, place, repeating_the_last, within_reach

MEMBERS, SHARED = PartitionSpec("seed"), PartitionSpec()

Progress = Callable[[int, int], object]
"""`(number of members done, total number)`, called after every batch."""

_CONTEXT = (
    "jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion", "jax_debug_nans", "jax_debug_infs", "jax_disable_jit",
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
    axes = jax.tree.leaves(in_axes, is_leaf=_is_none)
    if in_axes is not None and (0 not in axes or any(axis is not None and axis != 0 for axis in axes)):
        raise ValueError(f"in_axes: expected 0 or None for each argument and at least one 0, got {in_axes}")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    return Ensemble(function, in_axes, float(memory_budget), batch_size, mesh_of(devices), progress)


class _Members(NamedTuple):
    """Arguments of a call."""

    own: list[Any]  # leaves with an axis of members, and None in place of shared leaves
    shared: list[Any]  # the other leaves, and None in place of those with an axis of members

    @property
    def number(self) -> int:
        return jax.tree.leaves(self.own)[0].shape[0]

    def some(self, rows: Any) -> "_Members":
        """Returns the arguments of some of the members."""
        return self._replace(own=jax.tree.map(lambda leaf: leaf[rows], self.own))


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
        structure, members = self._split(args)
        if self._progress is None:
            return self._run(structure, members)
        count = members.number
        each = self._batch_size or self._program(structure, members)[1]
        size = min(each * self._mesh.size, count)
        whole = members._replace(shared=place(members.shared, NamedSharding(self._mesh, SHARED)))
        whole, found = whole.some(repeating_the_last(count, size)), []
        for start in range(0, count, size):
            results = self._run(structure, whole.some(slice(start, start + size)))
            found.append(jax.tree.map(within_reach, jax.block_until_ready(results)))
            self._progress(min(start + size, count), count)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *found)

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for arguments of these shapes; the result reports cost and memory per device."""
        return self._program(*self._split(args))[0]

    def _run(self, structure: Any, members: _Members) -> Any:
        placed = self._placed(members)
        found = self._program(structure, members, placed)[0](*placed)
        if members.number % self._mesh.size == 0:
            return found
        found = jax.device_put(jax.tree.map(within_reach, found), self._mesh.local_mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf[: members.number], found)

    def _split(self, args: tuple[Any, ...]) -> tuple[Any, _Members]:
        """Checks the arguments; returns their structure, and their leaves split into own and shared."""
        axes = (0, *(None,) * (len(args) - 1)) if self._in_axes is None else self._in_axes
        axes = (axes,) * len(args) if isinstance(axes, int) else tuple(axes)
        if len(axes) != len(args):
            raise ValueError(f"in_axes: expected one entry for each of {len(args)} arguments, got {axes}")
        hint = "; an ensemble compiles itself: call it outside of jit, vmap and grad"
        leaves, structure = jax.tree.flatten_with_path(as_values("args", args, hint))
        # Booleans, because JAX treats None as an empty pytree.
        is_own = jax.tree.map(lambda axis: axis == 0, axes, is_leaf=_is_none)
        try:
            flat = jax.tree.leaves(jax.tree.broadcast(is_own, args))
        except ValueError as error:
            raise ValueError(f"in_axes: expected the structure of the arguments, got {axes}") from error
        marked = list(zip(leaves, flat, strict=True))
        check_members({f"args{keystr(path)}": leaf for (path, leaf), own in marked if own})
        members = _Members(
            [leaf if own else None for (_, leaf), own in marked],
            [None if own else leaf for (_, leaf), own in marked],
        )
        processes = len({device.process_index for device in self._mesh.devices.flat})
        if members.number < processes:
            raise ValueError(
                f"number of members: expected at least one for each of {processes} processes, "
                f"got {members.number}"
            )
        return structure, members

    def _placed(self, members: _Members) -> _Members:
        """Spreads the members over the devices, and copies shared leaves to all of them."""
        rows = repeating_the_last(members.number, self._mesh.size)
        own = place(members.own, NamedSharding(self._mesh, MEMBERS), rows)
        return _Members(own, place(members.shared, NamedSharding(self._mesh, SHARED)))

    def _program(
        self, structure: Any, members: _Members, placed: _Members | None = None
    ) -> tuple[jax.stages.Compiled, int]:
        """Returns the program for these shapes, and the number of members it computes side by side.

        This number is `batch_size`, or the largest number whose temporaries fit into the budget.
        """
        placed = placed or self._placed(members)
        context = tuple(getattr(jax.config, name, None) for name in _CONTEXT)
        types, form = jax.tree.flatten(jax.tree.map(jax.typeof, placed))
        signature = structure, form, tuple(types), context
        if signature not in self._programs:
            each = placed.number // self._mesh.size
            fixed = 1 if any(map(_draws_by_batch, jax.tree.leaves(members))) else self._batch_size
            size = min(fixed or each, each)
            compiled = self._compiled(structure, placed, size)
            last = (0, 0)
            while fixed is None and (used := _temporaries(compiled)) > self._memory_budget and size > 1:
                slope = max((used - last[1]) / (size - last[0]), 1.0)  # bytes that each member adds
                last = size, used
                fitting = max(int(size - (used - self._memory_budget) / slope), 1)
                size = -(-each // -(-each // min(fitting, size - 1)))  # batches of equal size
                compiled = self._compiled(structure, placed, size)
            self._programs[signature] = compiled, size
        return self._programs[signature]

    def _compiled(self, structure: Any, placed: _Members, size: int) -> jax.stages.Compiled:
        def members(own: list[Any], shared: list[Any]) -> Any:
            def one(own: list[Any]) -> Any:
                leaves = [a if b is None else b for a, b in zip(own, shared, strict=True)]
                return as_arrays("function", self._function(*structure.unflatten(leaves)))

            count = _Members(own, shared).number
            if size == count and self._batch_size is None:
                return jax.vmap(one)(own)
            # Padded to whole batches: a smaller last batch would be another program and round differently.
            rows = _Members(own, shared).some(repeating_the_last(count, size)).own
            found = jax.lax.map(one, rows, batch_size=size)
            return jax.tree.map(lambda leaf: leaf[:count], found)

        sharded = jax.shard_map(
            members, mesh=self._mesh, in_specs=(MEMBERS, SHARED), out_specs=MEMBERS, check_vma=False
        )
        return jax.jit(sharded).lower(*placed).compile()


def _is_none(node: Any) -> bool:
    return node is None


def _temporaries(program: jax.stages.Compiled) -> int:
    """Returns the bytes that a program needs besides arguments and results; 0 if the backend reports none."""
    memory = program.memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes


def _draws_by_batch(leaf: Any) -> bool:
    """Returns whether keys draw different numbers under vmap."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) and "rbg" in str(jax.random.key_impl(leaf))


def check_members(named: dict[str, Any]) -> None:
    """Raises ValueError unless all leaves have a leading axis of the same size, at least 1."""
    for name, leaf in named.items():
        if leaf.ndim == 0:
            raise ValueError(f"{name}: expected a leading axis of members, got a scalar")
    counts = {name: len(leaf) for name, leaf in named.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"args: expected leading axes of one size, at least one, got {counts}")
    check_count("number of members", next(iter(counts.values())))

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
"""`(members done, members in all)`, called whenever more are done."""

_CONTEXT = (
    "jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion", "jax_debug_nans", "jax_debug_infs", "jax_disable_jit",
)  # fmt: skip
"""Settings of JAX that change what a function computes."""


def ensemble(
    function: Callable[..., Any],
    *,
    in_axes: Any = None,
    memory_budget: float = 8e9,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> "Ensemble":
    """Runs a function written for one seed on many at once.

    `function` is vmapped, sharded over the devices along a mesh axis `seed`, and compiled once for all
    calls with arguments of the same shapes. Devices do not exchange messages while it runs. Members that do
    not fill the devices evenly are padded by repeating the last one.

    On the same devices a member's result is the same to the last bit whatever runs beside it and in whatever
    order, as long as the number of members side by side is (`batch_size`); on another number of devices or
    hosts it agrees to rounding.

    With many processes (`jax.distributed`) each makes the same calls with the same arguments and computes
    the members of its own devices. Results of as many members as fill the devices evenly stay where they
    were computed, ready for a next call; `gather` brings them to every process. Others are gathered at once,
    on the first device of each process.

    Args:
      function: a pure function, for example what `make_train` returns.
      in_axes: as of `jax.vmap`, with axes 0 (one value a member) and None (shared by all): one for all
        arguments, or a sequence with one, or a pytree of them, for each. By default 0 for the first argument
        and None for the others.
      memory_budget: bytes a device may use for temporaries; if members side by side need more, they are
        computed in equal batches one after another.
      batch_size: number of members that a device computes side by side; by default as many as the budget
        allows: right for an accelerator. On a CPU a few whose params and moments stay in its cache can be
        twice as fast. With `rbg` keys members run one after another, as they draw other numbers side by side.
      devices: by default all, of all processes.
      progress: called with the number of members that are done, and that of all, after every batch of all
        devices (see `batch_size`).

    Returns:
      A function of the same positional arguments; every leaf of its result has a leading axis of members. It
      compiles for itself: call it outside of `jit`. Its method `compile` takes the same arguments and returns
      the program without running it, to keep that out of timings.

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
        raise ValueError(f"in_axes: expected 0 or None for each argument and 0 for one, got {in_axes}")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    return Ensemble(function, in_axes, float(memory_budget), batch_size, mesh_of(devices), progress)


class _Members(NamedTuple):
    """Arguments of a call."""

    own: list[Any]  # leaves with an axis of members, None in the place of the others
    shared: list[Any]  # the others, None in the place of those

    @property
    def number(self) -> int:
        return jax.tree.leaves(self.own)[0].shape[0]

    def some(self, rows: Any) -> "_Members":
        """These arguments for some of the members."""
        return self._replace(own=jax.tree.map(lambda leaf: leaf[rows], self.own))


@dataclass(eq=False)
class Ensemble:
    """A function of many members at once; made by `ensemble`."""

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
        """Compiles for arguments of these shapes; the result tells costs and memory of a device."""
        return self._program(*self._split(args))[0]

    def _run(self, structure: Any, members: _Members) -> Any:
        placed = self._placed(members)
        found = self._program(structure, members, placed)[0](*placed)
        if members.number % self._mesh.size == 0:
            return found
        found = jax.device_put(jax.tree.map(within_reach, found), self._mesh.local_mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf[: members.number], found)

    def _split(self, args: tuple[Any, ...]) -> tuple[Any, _Members]:
        """Checks the arguments; returns their structure, and the leaves with an axis of members apart."""
        axes = (0, *(None,) * (len(args) - 1)) if self._in_axes is None else self._in_axes
        axes = (axes,) * len(args) if isinstance(axes, int) else tuple(axes)
        if len(axes) != len(args):
            raise ValueError(f"in_axes: expected one entry for each of {len(args)} arguments, got {axes}")
        hint = "; an ensemble compiles for itself: call it outside of jit, vmap and grad"
        leaves, structure = jax.tree.flatten_with_path(as_values("args", args, hint))
        # False for None, which JAX takes for an empty pytree.
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
        """Returns the program of these shapes, and how many members it computes side by side.

        These are `batch_size`, or the largest number whose temporaries the budget holds.
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
                size = -(-each // -(-each // min(fitting, size - 1)))  # batches of equal sizes
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
            # Whole batches: a smaller last one would be another program, with other bits.
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
    """Bytes that a program needs beside its arguments and results; 0 where a backend does not tell."""
    memory = program.memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes


def _draws_by_batch(leaf: Any) -> bool:
    """Returns whether keys draw other numbers under vmap than alone."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) and "rbg" in str(jax.random.key_impl(leaf))


def check_members(named: dict[str, Any]) -> None:
    """Raises ValueError unless all leaves have a leading axis of one size, at least 1."""
    for name, leaf in named.items():
        if leaf.ndim == 0:
            raise ValueError(f"{name}: expected a leading axis of members, got a scalar")
    counts = {name: len(leaf) for name, leaf in named.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"args: expected leading axes of one size, at least one, got {counts}")
    check_count("number of members", next(iter(counts.values())))

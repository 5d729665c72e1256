"""Placement of arrays on the devices of all processes: sharding, replication and gathering."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lax_learning._arrays import as_arrays, check_values
from lax_learning._checks import check_sequence, describe


def replicate(arrays: Any, devices: Sequence[Any] | None = None) -> Any:
    """Copies arrays to all devices, so that an ensemble does not copy shared arguments at every call.

    Args:
      arrays: a pytree of arrays, the same in every process.
      devices: as in `ensemble`; by default all devices of all processes.

    Example:
      >>> images = replicate(np.zeros((5, 3)))
      >>> len(images.devices()) == jax.device_count()
      True
    """

    return place(as_values("arrays", arrays), NamedSharding(mesh_of(devices), PartitionSpec()))


def as_values(name: str, tree: Any, hint: str = "") -> Any:
    """Returns a pytree of concrete arrays; raises TypeError, with a hint, if a leaf is traced."""
    tree = as_arrays(name, tree)
    check_values(name, tree)
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, Tracer):
            at = f"{name}{jax.tree_util.keystr(path)}"
            raise TypeError(f"{at}: expected a concrete array, got a traced {describe(leaf)}{hint}")
    return tree


def mesh_of(devices: Sequence[Any] | None) -> Mesh:
    """Returns a mesh of the given devices, by default all devices, along the axis `seed`."""
    if devices is not None:
        check_sequence("devices", devices, "a sequence of devices, such as jax.devices()")
        for i, device in enumerate(devices):
            if not isinstance(device, jax.Device):
                raise TypeError(f"devices[{i}]: expected a device, as in jax.devices(), got {device!r}")
        if len(set(devices)) != len(devices) or not devices:
            raise ValueError(f"devices: expected at least one, without duplicates, got {list(devices)}")
    return Mesh(tuple(jax.devices() if devices is None else devices), ("seed",))


def gather(results: Any) -> Any:
    """Gathers the results of an ensemble, a pytree of arrays, as NumPy arrays in every process.

    All processes must call it together; values on devices of other processes are communicated. PRNG keys
    among the results stay JAX arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> gather({"losses": jnp.arange(3)})
      {'losses': array([0, 1, 2], dtype=int32)}
    """

    def in_memory(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return within_reach(leaf) if is_key else np.asarray(within_reach(leaf))

    as_values("results", results)
    return jax.tree.map(in_memory, results)


def within_reach(leaf: Any) -> Any:
    """Returns an array as a complete copy on a device of this process."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    everywhere = NamedSharding(cast(NamedSharding, leaf.sharding).mesh, PartitionSpec())
    return jax.jit(lambda a: a, out_shardings=everywhere)(leaf).addressable_data(0)


def place(arrays: Any, sharding: NamedSharding, chosen: Any = ...) -> Any:
    """Puts the chosen rows on devices; every process places the shards of its own devices."""
    mesh = cast(Mesh, sharding.mesh)
    local = tuple(mesh.local_mesh.devices.flat)

    def put(array: jax.Array) -> jax.Array:
        if array.sharding == sharding:
            return array
        # On one device, because indexing a sharded array needs communication.
        array = jax.device_put(array, local[0])[chosen]
        shares = sharding.devices_indices_map(array.shape)
        pieces = [jax.device_put(array[shares[device]], device) for device in local]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)

    return jax.tree.map(put, arrays)


def repeating_the_last(count: int, multiple: int) -> Any:
    """Returns the indices of rows that pad `count` rows to a multiple by repeating the last one."""
    if count % multiple == 0:
        return ...
    return np.minimum(np.arange(-(-count // multiple) * multiple), count - 1)

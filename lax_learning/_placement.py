"""Placement of arrays: spread over the devices of all processes, copied to them, or gathered from them."""

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
    """Copies arrays to all devices, so that an ensemble does not copy shared ones at every call.

    Args:
      arrays: a pytree of arrays, the same in every process.
      devices: by default all, of all processes, as of `ensemble`.

    Example:
      >>> images = replicate(np.zeros((5, 3)))
      >>> len(images.devices()) == jax.device_count()
      True
    """

    return place(as_values("arrays", arrays), NamedSharding(mesh_of(devices), PartitionSpec()))


def as_values(name: str, tree: Any, hint: str = "") -> Any:
    """Returns a pytree of arrays with values; raises TypeError, with a hint, if one is traced."""
    tree = as_arrays(name, tree)
    check_values(name, tree)
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, Tracer):
            at = f"{name}{jax.tree_util.keystr(path)}"
            raise TypeError(f"{at}: expected an array, got {describe(leaf)} that is traced{hint}")
    return tree


def mesh_of(devices: Sequence[Any] | None) -> Mesh:
    """Returns a mesh of devices, by default of all, along the axis `seed`; raises for other values."""
    if devices is not None:
        check_sequence("devices", devices, "a sequence of devices, as jax.devices()")
        for i, device in enumerate(devices):
            if not isinstance(device, jax.Device):
                raise TypeError(f"devices[{i}]: expected a device, as of jax.devices(), got {device!r}")
        if len(set(devices)) != len(devices) or not devices:
            raise ValueError(f"devices: expected different ones, at least one, got {list(devices)}")
    return Mesh(tuple(jax.devices() if devices is None else devices), ("seed",))


def gather(results: Any) -> Any:
    """Results of an ensemble, a pytree of arrays, as NumPy arrays in every process.

    To be called by all processes together; devices that are out of a process's reach send theirs. Keys among
    the results stay arrays of JAX.

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
    """An array whole on devices of this process."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    everywhere = NamedSharding(cast(NamedSharding, leaf.sharding).mesh, PartitionSpec())
    return jax.jit(lambda a: a, out_shardings=everywhere)(leaf).addressable_data(0)


def place(arrays: Any, sharding: NamedSharding, chosen: Any = ...) -> Any:
    """Puts the chosen rows on devices; every process puts the shards of its own."""
    mesh = cast(Mesh, sharding.mesh)
    local = tuple(mesh.local_mesh.devices.flat)

    def put(array: jax.Array) -> jax.Array:
        if array.sharding == sharding:
            return array
        # On one device: to index an array that is spread out takes messages between devices.
        array = jax.device_put(array, local[0])[chosen]
        shares = sharding.devices_indices_map(array.shape)
        pieces = [jax.device_put(array[shares[device]], device) for device in local]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)

    return jax.tree.map(put, arrays)


def repeating_the_last(count: int, multiple: int) -> Any:
    """Returns rows to take so that they are a multiple of a number."""
    if count % multiple == 0:
        return ...
    return np.minimum(np.arange(-(-count // multiple) * multiple), count - 1)

"""Where arrays lie: spread over the devices of all processes, copied to them, or gathered from them."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def replicate(arrays: Any, devices: Sequence[Any] | None = None) -> Any:
    """Copies on all devices: what members of an ensemble share is then not copied at every call.

    Args:
      arrays: a pytree of arrays, the same in every process.
      devices: by default all, of all processes, as `ensemble` has it.

    Example:
      >>> images = replicate(np.zeros((5, 3)))
      >>> len(images.devices()) == jax.device_count()
      True
    """
    mesh = Mesh(tuple(jax.devices() if devices is None else devices), ("seed",))
    return place(jax.tree.map(jnp.asarray, arrays), NamedSharding(mesh, PartitionSpec()))


def gather(results: Any) -> Any:
    """Results of an ensemble as NumPy arrays, in every process.

    To be called by all processes together; devices that are out of a process's reach send theirs.

    Args:
      results: a pytree of arrays; keys among them stay arrays of JAX.

    Example:
      >>> import jax.numpy as jnp
      >>> gather({"losses": jnp.arange(3)})
      {'losses': array([0, 1, 2], dtype=int32)}
    """

    def in_memory(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return within_reach(leaf) if is_key else np.asarray(within_reach(leaf))

    return jax.tree.map(in_memory, results)


def within_reach(leaf: Any) -> Any:
    """An array whole on devices of this process."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    everywhere = NamedSharding(cast(NamedSharding, leaf.sharding).mesh, PartitionSpec())
    return jax.jit(lambda a: a, out_shardings=everywhere)(leaf).addressable_data(0)


def place(arrays: Any, sharding: NamedSharding, chosen: Any = ...) -> Any:
    """Puts the chosen rows on devices; every process puts what belongs to its own."""
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
    """Which rows to take so that they are a multiple of a number."""
    if count % multiple == 0:
        return ...
    return np.minimum(np.arange(-(-count // multiple) * multiple), count - 1)

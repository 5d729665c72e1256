"""Checks, before anything is allocated, that a run fits into memory."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax


def total_bytes() -> float | None:
    """Returns the memory of all devices, or of the machine if they are CPU cores; None if unknown."""
    if jax.default_backend() == "cpu":
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return jax.process_count() * sum(limits) if all(limits) else None


def bytes_of(tree: Any) -> int:
    """Returns the number of bytes of a pytree of arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of a float32 array."""
    return jax.ShapeDtypeStruct(shape, "float32")


def check_fits(
    needed: Callable[[Mapping[str, Any]], int],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    name_of: Callable[[str], str],
) -> None:
    """Raises ValueError unless a run with the sizes `given`, which needs `needed(given)` bytes, fits.

    The message is about the size whose default would save most memory, named by `name_of`.
    """
    memory = total_bytes()
    try:
        bytes_needed: float = needed(given)
    except ValueError as error:
        if memory is None or not is_about_arrays(error):
            raise
        bytes_needed = math.inf
    if memory is None or bytes_needed <= memory:
        return
    left: dict[str, float] = dict.fromkeys(given, bytes_needed)
    for name in given:
        with suppress(ValueError):  # a default that is inconsistent with the other sizes
            left[name] = needed({**given, name: defaults[name]})
    largest = min(left, key=lambda name: left[name])
    got = given[largest]
    got = " ".join(map(str, got)) if isinstance(got, tuple) else got
    needs = f": at least {bytes_needed / 1e9:,.3g} GB" if math.isfinite(bytes_needed) else ""
    raise ValueError(
        f"{name_of(largest)}: expected a size that fits into {memory / 1e9:.3g} GB of memory, got {got} "
        f"(out of memory{needs})"
    )


def is_about_arrays(error: ValueError) -> bool:
    """Returns whether the library raised an error because arrays would be too large."""
    return ": expected arrays " in str(error)


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory ran out."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)

"""Memory of the machine, compared with what a run holds before anything is allocated."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax


def total_bytes() -> float | None:
    """Memory of all devices; of the machine where they are CPU cores; None if it is not known."""
    if jax.default_backend() == "cpu":
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return jax.process_count() * sum(limits) if all(limits) else None


def bytes_of(tree: Any) -> int:
    """Bytes of arrays, or of their shapes, in a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """The shape of an array of float32."""
    return jax.ShapeDtypeStruct(shape, "float32")


def check_fits(
    needed: Callable[[Mapping[str, Any]], int],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    name_of: Callable[[str], str],
) -> None:
    """Raises ValueError unless the bytes of a run, `needed(given)` by its sizes, fit into memory.

    It names, by `name_of`, the size whose default would save most.
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
        with suppress(ValueError):  # a default that does not go with the others
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
    """Returns whether an error of the library refuses arrays that are too large to describe."""
    return ": expected arrays " in str(error)


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)

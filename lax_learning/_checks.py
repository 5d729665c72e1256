"""Argument checks, whose errors name the argument, the expected value and the given one."""

import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

MAX_ENTRIES = 2**31 - 1  # per array, because indices are int32


def describe(value: Any) -> str:
    """Returns a short description of `value` for an error message: dtype and shape for an array."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__


def short(value: Any) -> str:
    """Returns the repr of `value`, or a short description if the repr is long."""
    text = repr(value)
    return describe(value) if len(text) > 80 or "\n" in text else text


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {sorted(choices)}, got {value!r}")


def check_count(name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> None:
    """Raises unless `value` is an int of at least `minimum`, and at most `maximum` if given."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {short(value)}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name}: expected at most {maximum}, got {short(value)}")


def check_samples(name: str, value: Any, minimum: int = 1) -> None:
    """Raises unless `value` is a valid number of draws whose PRNG keys fit into memory."""
    check_count(name, value, minimum)
    check_memory(name, [(value, 2)], jnp.uint32)


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a finite positive number, or a traced real number."""
    _check_number(name, value, "a finite number > 0", lambda value: value > 0)


def check_not_negative(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a finite number of at least 0, or a traced real number."""
    _check_number(name, value, "a finite number >= 0", lambda value: value >= 0)


def check_probability(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number in 0..1, or a traced real number."""
    _check_number(name, value, "a number in 0..1", lambda value: 0 <= value <= 1)


def _check_number(name: str, value: Any, expected: str, holds: Callable[[Any], bool]) -> None:
    if isinstance(value, Tracer):
        return check_scalar(name, value)
    array = np.asarray(None if isinstance(value, Sequence) or _is_key(value) else value)
    is_real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    if not (is_real and array.ndim == 0 and np.isfinite(array) and holds(value)):
        raise ValueError(f"{name}: expected {expected}, got {short(value)}")


def check_scalar(name: str, value: Any) -> None:
    """Raises ValueError if `value` is traced and not a real scalar; concrete values pass."""
    if isinstance(value, Tracer) and (value.shape != () or jnp.iscomplexobj(value) or value.dtype == bool):
        raise ValueError(f"{name}: expected a real number, got {describe(value)}")


def check_resolved(name: str, value: Any, *dtypes: Any) -> None:
    """Raises ValueError if a positive `value` is 0 or infinite in one of `dtypes`; traced values pass.

    Subnormal numbers count as 0, as in XLA, except in float16, whose numbers are all normal in float32.
    """
    for dtype in () if isinstance(value, Tracer) else map(jnp.dtype, dtypes):
        with np.errstate(over="ignore", under="ignore"):
            there = float(np.asarray(value).astype(dtype))
        smallest = 0.0 if jnp.finfo(dtype).minexp > -126 else float(jnp.finfo(dtype).tiny)
        wrong = "infinity" if not np.isfinite(there) else "0" if there <= 0 or there < smallest else ""
        if wrong:
            raise ValueError(f"{name}: expected a number that {dtype} can tell from {wrong}, got {value}")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is True or False."""
    check_instance(name, value, bool | np.bool_, "True or False")


def check_instance(name: str, value: Any, kind: Any, expected: str) -> None:
    """Raises TypeError unless `value` is an instance of `kind`; `expected` describes it."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, got {describe(value)}")


def check_callable(
    name: str, value: Any, expected: str = "a function", num_arguments: int | None = None
) -> None:
    """Raises TypeError unless `value` can be called (with `num_arguments`); `expected` describes it."""
    check_instance(name, value, Callable, expected)
    if num_arguments is not None and (signature := _misfit(value, range(num_arguments))):
        raise TypeError(f"{name}: expected {expected}, got a function of {signature}")


def check_function(name: str, value: Any, expected: str, *arguments: Any, **keywords: Any) -> None:
    """Raises TypeError unless `value` can be called with these arguments; `expected` describes it."""
    check_callable(name, value, expected)
    if signature := _misfit(value, arguments, **keywords):
        called = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{name}: expected {expected}, got {called}{signature}")


def _misfit(function: Any, arguments: Sequence[Any], **keywords: Any) -> inspect.Signature | None:
    """Returns the signature of a function if it is known and does not accept these arguments, else None."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # the signature is unknown, as for some functions written in C
        return None
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        return signature
    return None


def check_sequence(name: str, value: Any, expected: str = "a sequence") -> None:
    """Raises TypeError unless `value` is a list, a tuple or another sequence, but not text."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected {expected}, got {describe(value)}")


def as_tuple(name: str, value: Any, expected: str = "a sequence") -> tuple[Any, ...]:
    """Returns the entries of a list, a tuple or another iterable, but not of text, dicts or sets."""
    try:
        if not isinstance(value, str | bytes | Mapping | Set):
            return tuple(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: expected {expected}, got {describe(value)}")


def as_sizes(
    name: str, value: Any, expected: str = "a sequence of ints", minimum: int = 1
) -> tuple[int, ...]:
    """Returns sizes as a tuple; raises unless all are ints of at least `minimum`."""
    sizes = as_tuple(name, value, expected)
    for i, size in enumerate(sizes):
        check_count(f"{name}[{i}]", size, minimum)
    return tuple(map(int, sizes))


def check_memory(name: str, shapes: Sequence[Sequence[int]], dtype: Any = jnp.float32) -> None:
    """Raises ValueError unless arrays of these shapes can be indexed with int32 and fit into memory."""
    for shape in shapes:
        if math.prod(shape) > MAX_ENTRIES:
            expected = f"arrays of at most {MAX_ENTRIES} entries"
            raise ValueError(f"{name}: expected {expected}, got one of shape {list(shape)}")
    needed = sum(map(math.prod, shapes)) * jnp.dtype(dtype).itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needed > memory:
        sizes = f"{memory / 1e9:.1f} GB of memory, got {needed / 1e9:.1f} GB"
        raise ValueError(f"{name}: expected arrays that fit into {sizes}")


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_key(name: str, value: Any) -> None:
    """Raises unless `value` is a single PRNG key."""
    expected = "one key, such as jax.random.key(0)"
    is_raw = isinstance(value, jax.Array | np.ndarray) and value.dtype == np.uint32
    if _is_key(value) and value.shape != ():
        raise ValueError(f"{name}: expected {expected}, got {describe(value)}")
    if not (_is_key(value) or (is_raw and value.ndim == 1 and value.size)):
        raise TypeError(f"{name}: expected {expected}, got {describe(value)}")


def check_shapes(names: Sequence[str], arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises ValueError unless every array has the expected shape."""
    for name, array, shape in zip(names, arrays, shapes, strict=True):
        if jnp.shape(array) != tuple(shape):
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(jnp.shape(array))}")


def as_array(name: str, value: Any, expected: str = "an array of real numbers") -> Array:
    """Returns `value` as an array of real numbers or booleans; raises TypeError for anything else.

    Lists, numbers and NumPy arrays are converted as `jnp.asarray` does; arrays and tracers pass unchanged.
    """
    try:
        array = jnp.asarray(None if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError, OverflowError) as error:
        is_type = isinstance(value, jax.ShapeDtypeStruct)
        got = "ShapeDtypeStruct " * is_type + describe(value)
        raise TypeError(f"{name}: expected {expected}, got {got}") from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool) or jnp.iscomplexobj(array):
        raise TypeError(f"{name}: expected {expected}, got {describe(array)}")
    check_integers(name, value)
    return array


def check_integers(name: str, value: Any) -> None:
    """Raises ValueError for NumPy integers outside the range of JAX's integers, which would wrap around."""
    if isinstance(value, np.ndarray | np.integer) and value.dtype.kind in "iu" and value.size:
        limits = jnp.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        for beyond in (int(value.min()), int(value.max())):
            if limits.dtype != value.dtype and not limits.min <= beyond <= limits.max:
                raise ValueError(f"{name}: expected numbers that {limits.dtype} can hold, got {beyond}")


def check_floating(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is a floating-point array, or a `jax.ShapeDtypeStruct` of one."""
    expected = "a floating-point array"
    array = value if isinstance(value, jax.ShapeDtypeStruct) else as_array(name, value, expected)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected {expected}, got {describe(array)}")


def as_floating(name: str, value: Any) -> Array:
    """Returns `value` as a floating-point array; Python floats and lists of them are converted."""
    array = as_array(name, value, "a floating-point array")
    check_floating(name, array)
    return array


def check_floating_dtype(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is a floating-point dtype."""
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
    try:
        is_floating = not is_array and value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        got = value.__name__ if isinstance(value, type) else describe(value) if is_array else repr(value)
        raise TypeError(f"{name}: expected a floating-point dtype, got {got}")

"""The passes that XLA makes over a program: few in most tests, see conftest."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

OPTION = "jax_disable_most_optimizations"


@contextmanager
def default_passes() -> Iterator[None]:
    """Compiles with the passes that XLA has by default.

    Programs of before and after are forgotten: JAX keeps those of single operations whatever the passes, and
    the same operation, once alone and once within a larger program, would then give two results.
    """
    before = jax.config.read(OPTION)
    jax.clear_caches()
    jax.config.update(OPTION, False)
    try:
        yield
    finally:
        jax.config.update(OPTION, before)
        jax.clear_caches()

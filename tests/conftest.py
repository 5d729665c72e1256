"""Test set-up: annotations are checked, programs are compiled quickly and kept on disk.

The library is imported by the tests only after the hook below is in place: every function of
`lax_learning` that a test or a doctest calls has its jaxtyping annotations checked by beartype.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read when JAX is imported. Operations need not know which of a hundred nested calls they come from.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import jaxtyping
import numpy as np
import pytest
from jaxtyping import install_import_hook

from experiments import xla

# Nearly all of the time goes into compiling. Without LLVM's optimisations it takes half as long, and without
# MLIR between XLA and LLVM half of that; and programs are too small to be worth splitting over threads. What
# XLA makes of a program, its buffers and its flops stay the same. `jax_disable_most_optimizations` can be
# undone for what runs longer than it compiles; the level is then that given here.
xla.add_flags(
    "--xla_backend_optimization_level=1",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)

ROOT = Path(__file__).parents[1]

decorated = jaxtyping.jaxtyped


def _checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """The decorator of the hook, which takes a millisecond for each function made within a function."""

    def decorate(function: Any) -> Any:
        unseen = jaxtyping.config.jaxtyping_disable and "<locals>" in getattr(function, "__qualname__", "")
        return function if unseen else decorated(function, typechecker=typechecker)

    return decorate


jaxtyping.jaxtyped = _checked  # pyright: ignore
install_import_hook("lax_learning", "beartype.beartype")

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_finish() -> None:
    """Tracing makes many objects and little garbage, which is looked for less often, and not in modules."""
    gc.freeze()
    gc.set_threshold(100_000)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loads the arrays that the public code computed: `golden("microlearning")`."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = ROOT.parent / "shared" / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden arrays at {path}")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture
def with_default_passes() -> Iterator[None]:
    """Runs the test with the passes that XLA has by default, where bits count.

    Programs of before and after are forgotten: JAX keeps those of single operations whatever the passes, and
    the same operation, once alone and once within a larger program, would then give two results.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_a_user_sees_it() -> Iterator[None]:
    """Runs the test without the checks of annotations, so that the library's own messages show."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)

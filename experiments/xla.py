"""XLA settings: flags that this jaxlib supports, one device per CPU core, and cached programs."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import jax

NO_YNN = "--xla_cpu_experimental_ynn_fusion_type="
"""From jaxlib 0.10.2 on, YNNPACK fusions return wrong values if a product with a constant matrix is reduced:
https://github.com/jax-ml/jax/issues/39103. Without these fusions, updates take 0 to 5 % longer."""


def add_flags(*flags: str) -> None:
    """Adds the flags that this jaxlib supports to XLA_FLAGS; call this before JAX first runs.

    XLA would end the process without a traceback at an unknown flag, so all are tested in a subprocess
    (0.15 s). Flags already in the environment take precedence; an unsupported one ends the program. If
    XLA_FLAGS is the path of a file of flags, it is not changed.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    new = [flag for flag in flags if flag not in given]
    if not new or (given and not given[0].startswith("-")):
        return
    tried = subprocess.run(
        [sys.executable, "-c", "from jaxlib import xla_client; xla_client.CompileOptions()"],
        env={**os.environ, "XLA_FLAGS": " ".join([*new, *given])},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    named = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", tried.stderr)
    unknown = named[1].split() if named else new if tried.returncode else []
    if wrong := [flag for flag in given if flag in unknown]:
        sys.exit(f"XLA_FLAGS: expected flags that jaxlib {version('jaxlib')} knows, got {' '.join(wrong)}")
    known = [flag for flag in new if flag not in unknown]
    if known:
        os.environ["XLA_FLAGS"] = " ".join([*known, *given])


def keep_compiled_programs(folder: Path) -> None:
    """Caches compiled programs in `folder`, unless a cache folder is already set in JAX.

    Resumed runs, and parts of a run with the same program, then need not compile again.
    """
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_all_cores(*, compile_quickly: bool = False) -> None:
    """Makes each CPU core a JAX device, unless their number is set, and sets flags for small programs.

    Has no effect once JAX has run. Small programs take longer to compile than to run, so LLVM optimises less.
    `compile_quickly` saves a third of the compilation time if jaxlib has the flag, but makes loops slower
    (6 times with Adam): use it for short runs.
    """
    flags = ["--xla_llvm_disable_expensive_passes=true", "--xla_backend_optimization_level=1", NO_YNN]
    if compile_quickly:
        flags.append("--xla_cpu_use_fusion_emitters=false")
    add_flags(*flags)
    chosen = "--xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.jax_num_cpu_devices < 0:  # pyright: ignore[reportAttributeAccessIssue]
        with suppress(RuntimeError):  # JAX has already run, in a notebook: keep its devices
            jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

"""Settings of XLA: flags that this jaxlib knows, a device for every core, programs that are kept.

XLA ends the process at a flag that it does not know, without a traceback, and flags come and go with jaxlib.
"""

import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import jax

NO_YNN = "--xla_cpu_experimental_ynn_fusion_type="
"""From jaxlib 0.10.2 on fusions by YNNPACK return garbage where a product with a constant matrix is reduced:
https://github.com/jax-ml/jax/issues/39103. Without them updates take 0 to 5 % longer."""

_PARSE_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def add_flags(*flags: str) -> None:
    """Adds those flags to XLA_FLAGS that this jaxlib knows; a second process tries them, in 0.15 s.

    To be called before JAX first runs. Flags of the environment come last and win; one that this jaxlib does
    not know ends the program. A path in XLA_FLAGS, to a file of flags, stays as it is.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    new = [flag for flag in flags if flag not in given]
    if not new or (given and not given[0].startswith("-")):
        return
    tried = subprocess.run(
        [sys.executable, "-c", _PARSE_FLAGS],
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
    """Keeps what XLA compiles, in JAX's cache folder or else in this one.

    A run that goes on, and parts of a run with the same program, need not compile again.
    """
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_all_cores(*, compile_quickly: bool = False) -> None:
    """Makes a device of every CPU core, so that an ensemble of small programs runs on all of them, and right.

    Without effect once JAX has run. Small programs take longer to compile than to run: LLVM does less. A
    number of devices in JAX_NUM_CPU_DEVICES or XLA_FLAGS stays as it is, as do other flags in XLA_FLAGS.
    Compiling quickly takes a third less time, where jaxlib has the choice, but loops are slower (Adam's take
    6 times as long): it is for short runs.
    """
    flags = ["--xla_llvm_disable_expensive_passes=true", "--xla_backend_optimization_level=1", NO_YNN]
    if compile_quickly:
        flags.append("--xla_cpu_use_fusion_emitters=false")
    add_flags(*flags)
    chosen = "--xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.jax_num_cpu_devices < 0:  # pyright: ignore[reportAttributeAccessIssue]
        with suppress(RuntimeError):  # JAX has run already, in a notebook: its devices stay
            jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

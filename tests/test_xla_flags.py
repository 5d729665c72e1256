"""XLA gets the flags that this jaxlib knows, and keeps those of the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEVEL, OF_NO_JAXLIB = "--xla_backend_optimization_level=1", "--xla_of_no_jaxlib=true"
ADD_FLAGS = """
import os, sys
from experiments import xla
xla.add_flags(*sys.argv[1:])
print(os.environ.get("XLA_FLAGS"))
"""
USE_ALL_CORES = """
import jax
from experiments import harness
harness.use_all_cores()
print(jax.device_count(), jax.default_backend())
"""


def start(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=Path(__file__).parents[1],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("given", "added", "expected"),
    [
        ({}, [LEVEL], LEVEL),
        ({}, [OF_NO_JAXLIB, LEVEL, "--xla_nor_this"], LEVEL),
        ({}, [OF_NO_JAXLIB], "None"),
        ({"XLA_FLAGS": ""}, [LEVEL], LEVEL),
        # XLA takes the last of two values.
        (
            {"XLA_FLAGS": "--xla_backend_optimization_level=3"},
            [LEVEL],
            f"{LEVEL} --xla_backend_optimization_level=3",
        ),
        ({"XLA_FLAGS": LEVEL}, [LEVEL], LEVEL),
        ({"XLA_FLAGS": "flags.txt"}, [LEVEL], "flags.txt"),
    ],
)
def test_known_flags_are_added_to_those_of_the_environment(
    given: dict[str, str], added: list[str], expected: str
) -> None:
    done = start(ADD_FLAGS, *added, **given)
    assert (done.stdout.strip(), done.stderr, done.returncode) == (expected, "", 0)


def test_an_unknown_flag_of_the_environment_is_named() -> None:
    done = start(ADD_FLAGS, LEVEL, XLA_FLAGS=f"{OF_NO_JAXLIB} --xla_force_host_platform_device_count=2")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("XLA_FLAGS: expected flags that jaxlib ")
    assert done.stderr.endswith(f" knows, got {OF_NO_JAXLIB}\n")


def test_the_number_of_devices_in_the_environment_stays() -> None:
    done = start(USE_ALL_CORES, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert done.stdout == "3 cpu\n", done.stderr

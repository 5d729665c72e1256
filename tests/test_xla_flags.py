"""XLA gets the flags that this jaxlib knows, and keeps those of the environment."""

import os
from types import SimpleNamespace

import pytest

from experiments import xla
from tests.command_line import ended, start

LEVEL, OF_NO_JAXLIB = "--xla_backend_optimization_level=1", "--xla_of_no_jaxlib=true"
OTHER, COUNT = "--xla_backend_optimization_level=3", "--xla_force_host_platform_device_count=3"


@pytest.mark.parametrize(
    ("given", "added", "expected"),
    [
        (None, [OF_NO_JAXLIB, LEVEL, "--xla_nor_this"], LEVEL),
        (None, [OF_NO_JAXLIB], None),
        (OTHER, [LEVEL], f"{LEVEL} {OTHER}"),  # XLA takes the last of two values
        (LEVEL, [LEVEL], LEVEL),
        ("flags.txt", [LEVEL], "flags.txt"),
    ],
)
def test_known_flags_are_added_to_those_of_the_environment(given, added, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given or "")
    if given is None:
        monkeypatch.delenv("XLA_FLAGS")
    xla.add_flags(*added)
    assert os.environ.get("XLA_FLAGS") == expected


def test_an_unknown_flag_of_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{OF_NO_JAXLIB} {COUNT}")
    named = f"^XLA_FLAGS: expected flags that jaxlib .* knows, got {OF_NO_JAXLIB}$"
    with pytest.raises(SystemExit, match=named):
        xla.add_flags(LEVEL)


@pytest.mark.parametrize(("given", "number"), [("", -1), (COUNT, -1), ("", 3)])
def test_the_number_of_devices_in_the_environment_stays(given, number, monkeypatch):
    """Of XLA_FLAGS or JAX_NUM_CPU_DEVICES."""
    updated = []
    config = SimpleNamespace(jax_num_cpu_devices=number, update=lambda *option: updated.append(option))
    monkeypatch.setattr(xla, "jax", SimpleNamespace(config=config))
    monkeypatch.setenv("XLA_FLAGS", given)
    xla.use_all_cores()
    assert updated == ([] if given or number > 0 else [("jax_num_cpu_devices", os.cpu_count())])
    assert "--xla_llvm_disable_expensive_passes=true" in os.environ["XLA_FLAGS"]


@pytest.mark.slow
def test_products_with_constants_are_right_in_a_process_with_these_flags():
    program = (
        "from experiments import xla; xla.use_all_cores(); import jax; import jax.numpy as jnp; "
        "print(jax.jit(lambda x: jnp.square(x @ jnp.ones((48, 64))).max())(jnp.ones((600, 48))))"
    )
    code, out, errors = ended(start(program, JAX_PLATFORMS="cpu"))
    assert code == 0 and out == "2304.0\n", errors

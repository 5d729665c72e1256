"""Faults of ensembles that "A smaller house" mends."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll

pytestmark = [
    pytest.mark.xfail(strict=True, raises=AssertionError, reason="mended by issue 20, 'A smaller house'"),
    pytest.mark.usefixtures("as_a_user_sees_it"),
]

KEYS = jax.random.split(jax.random.key(0), 4)


# --- ensembles


def draw(key: Any) -> Any:
    return jax.random.normal(key)


def test_ensemble_follows_the_configuration_of_precision() -> None:
    members = ll.ensemble(lambda key: jax.random.normal(key, (3,)).sum())
    assert members(KEYS).dtype == jnp.float32
    with jax.enable_x64(True):
        assert members(KEYS).dtype == jnp.float64


def test_ensemble_follows_the_configuration_of_random_numbers() -> None:
    members, by_vmap = ll.ensemble(draw), jax.jit(jax.vmap(draw))
    np.testing.assert_array_equal(members(KEYS), by_vmap(KEYS))
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(members(KEYS), by_vmap(KEYS))


@pytest.mark.parametrize("chosen", [[2], [3, 1, 0, 2]], ids=["alone", "in another order"])
def test_member_with_fast_keys_is_the_same_whoever_is_beside(chosen: list[int]) -> None:
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    members = ll.ensemble(draw)
    beside = np.asarray(members(keys))
    np.testing.assert_array_equal(members(keys[np.array(chosen)]), beside[chosen])


def assert_right_or_refused(call: Callable[[], Any], right: Any, pattern: str) -> None:
    """Fails for another result, and for an error that JAX or Python thought of."""
    try:
        found = call()
    except Exception as error:
        assert type(error) in (ValueError, TypeError, RuntimeError), f"{type(error).__name__}: {error}"
        assert re.search(pattern, str(error)), error
    else:
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize(
    ("transformed", "pattern"),
    [(jax.jit, r"outside of .*\bjit\b"), (lambda f: lambda keys: jax.vmap(f)(keys[None])[0], "outside of ")],
    ids=["jit", "vmap"],
)
def test_ensemble_inside_of_a_transformation(transformed: Callable[..., Any], pattern: str) -> None:
    call = transformed(ll.ensemble(draw))
    assert_right_or_refused(lambda: call(KEYS), jax.jit(jax.vmap(draw))(KEYS), pattern)


def test_ensemble_under_grad() -> None:
    def loss(scale: Any, run: Callable[..., Any]) -> Any:
        return run(KEYS, scale).sum()

    def scaled(key: Any, scale: Any) -> Any:
        return scale * draw(key)

    def gradient(run: Callable[..., Any]) -> Any:
        return np.round(jax.grad(loss)(2.0, run), 4)

    right = gradient(jax.vmap(scaled, in_axes=(0, None)))
    assert_right_or_refused(lambda: gradient(ll.ensemble(scaled)), right, "outside of ")


@pytest.mark.parametrize(
    "devices", [[], [jax.devices()[0]] * 2, "cpu", [0]], ids=["none", "one twice", "text", "numbers"]
)
def test_devices_that_are_none_are_refused(devices: Any) -> None:
    try:
        ll.ensemble(draw, devices=devices)(KEYS)
    except Exception as error:
        assert re.match("devices: expected .*, got ", str(error)), f"{type(error).__name__}: {error}"
    else:
        raise AssertionError("expected a refusal, got a result")


def test_one_axis_for_all_arguments() -> None:
    axis: Any = 0  # as `jax.vmap` takes it
    right, pattern = jax.jit(jax.vmap(draw))(KEYS), "^in_axes: expected .*, got 0"
    assert_right_or_refused(lambda: ll.ensemble(draw, in_axes=axis)(KEYS), right, pattern)


MEBI = 2**20


def status_of_memory() -> dict[str, int]:
    """Bytes of this process: VmRSS now, VmHWM at most since the last reset."""
    return {
        name: int(size) * 1024
        for name, size in re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/status").read_text())
    }


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes that a call takes while it runs, when all is compiled."""
    reset = Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        pytest.skip("Linux alone tells the peak of memory")

    def of_one_call() -> int:
        time.sleep(0.5)  # what a program used is freed after its results are ready
        reset.write_text("5")
        before = status_of_memory()["VmRSS"]
        jax.block_until_ready(call())
        return status_of_memory()["VmHWM"] - before

    jax.block_until_ready(call())
    return max(of_one_call() for _ in range(3))


def test_ensemble_keeps_its_budget_of_memory() -> None:
    # All members share a product of 64 MiB; each has one of 4 MiB of its own, and a number as result.
    left, right = jnp.ones((4096, 2)), jnp.ones((2, 4096))

    def member(key: Any, left: Any, right: Any) -> Any:
        inward, outward = jax.random.normal(key, (1024, 2)), jax.random.normal(key, (4096,))
        own, shared = inward @ right[:, :1024], left @ right
        return jnp.tanh(own @ outward[:1024]).sum() + jnp.tanh(shared @ outward).sum()

    keys = jax.random.split(jax.random.key(0), 64)
    budget = 80.0 * MEBI
    limited = ll.ensemble(member, memory_budget=budget)
    assert peak_of(lambda: limited(keys, left, right)) <= 1.25 * budget

"""Ensembles and grids: what JAX computes for each member, the promises on bits, and a budget of memory."""

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

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEYS = jax.random.split(jax.random.key(0), 4)


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
        assert re.match(r"devices(\[0\])?: expected .*, got ", str(error)), f"{type(error).__name__}: {error}"
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


# --- arguments, progress, grids


def member(key: Any, options: dict[str, Any], x: Any) -> Any:
    return options["scale"] * jax.random.normal(key) * x + options["shift"].sum()


def test_axes_of_a_pytree() -> None:
    options = {"scale": jnp.arange(4.0), "shift": jnp.arange(3.0)}
    axes = (0, {"scale": 0, "shift": None}, None)
    right = jax.jit(jax.vmap(member, in_axes=axes))(KEYS, options, 2.0)
    np.testing.assert_array_equal(ll.ensemble(member, in_axes=axes)(KEYS, options, 2.0), right)


def test_arguments_with_empty_parts() -> None:
    def run(key: Any, options: Any) -> Any:
        return {"key": jax.random.normal(key), "none": options["none"], "shift": options["shift"]}

    found = ll.ensemble(run)(KEYS, {"none": None, "shift": jnp.ones(2)})
    assert found["none"] is None and found["shift"].shape == (4, 2)


@pytest.mark.parametrize(("batch_size", "told"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (None, [4])])
def test_progress_is_told_and_changes_nothing(batch_size: int | None, told: list[int]) -> None:
    calls: list[tuple[int, int]] = []
    one = ll.ensemble(draw, batch_size=batch_size, devices=jax.devices()[:1])
    other = ll.ensemble(
        draw, batch_size=batch_size, devices=jax.devices()[:1], progress=lambda *call: calls.append(call)
    )
    np.testing.assert_allclose(other(KEYS), one(KEYS), rtol=4 * float(jnp.finfo(jnp.float32).eps))
    assert calls == [(done, 4) for done in told]


def test_grid_is_the_nested_loop() -> None:
    def run(x: Any, *, sigma: Any, seed: Any, learning_rate: Any) -> dict[str, Any]:
        return {"a": x + 100 * sigma + 10 * seed["s"] + learning_rate, "b": jnp.stack([sigma, seed["s"]])}

    seeds, sigmas, rates = {"s": jnp.arange(3)}, jnp.array([1.0, 2.0]), jnp.arange(4.0)
    axes = {"seed": seeds, "sigma": sigmas, "learning_rate": rates}  # not in the order of the alphabet
    on_grid = ll.grid(run)
    for order in (axes, dict(reversed(axes.items()))):
        found = on_grid(order, 0.5)
        assert list(found.axes) == list(order)
        assert found.results["b"].shape == (*(len(jax.tree.leaves(a)[0]) for a in order.values()), 2)
        places = {name: np.arange(len(jax.tree.leaves(axis)[0])) for name, axis in order.items()}
        at = dict(zip(order, np.meshgrid(*places.values(), indexing="ij"), strict=True))
        right = 0.5 + 100 * (at["sigma"] + 1) + 10 * at["seed"] + at["learning_rate"]
        np.testing.assert_array_equal(found.results["a"], right)


def test_grid_with_fast_keys_draws_the_same_whoever_is_beside() -> None:
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    on_grid = ll.grid(lambda *, seed: draw(seed))
    beside = on_grid({"seed": keys}).results
    np.testing.assert_array_equal(on_grid({"seed": keys[2:3]}).results, beside[2:3])


@pytest.mark.parametrize("axes", [[KEYS], {}, {0: KEYS}], ids=["list", "none", "numbers"])
def test_grid_refuses_axes_without_names(axes: Any) -> None:
    with pytest.raises(TypeError, match=r"^axes: expected a dict of values by name, got "):
        ll.grid(lambda *, seed: seed)(axes)


def test_grid_names_the_axis_that_is_none() -> None:
    with pytest.raises(
        ValueError, match=r"^axes\['sigma'\]: expected a leading axis of members, got a scalar"
    ):
        ll.grid(lambda *, sigma: sigma)({"sigma": 0.1})

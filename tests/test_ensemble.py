"""Ensembles and grids: what JAX computes for each member, the promises on bits, and a budget of memory."""

import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from tests.compare import assert_close, assert_same, member

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEYS = jax.random.split(jax.random.key(0), 4)


def draw(key: Any) -> Any:
    return jax.random.normal(key)


def test_ensemble_follows_the_configuration() -> None:
    members = ll.ensemble(lambda key: jax.random.normal(key, (3,)).sum())
    assert members(KEYS).dtype == jnp.float32
    with jax.enable_x64(True):
        assert members(KEYS).dtype == jnp.float64
    members, by_vmap = ll.ensemble(draw), jax.jit(jax.vmap(draw))
    for by_index in (True, False):
        with jax.threefry_partitionable(by_index):
            np.testing.assert_array_equal(members(KEYS), by_vmap(KEYS))


def test_ensemble_compiles_once_for_arguments_of_one_shape() -> None:
    traces = []
    ensemble = ll.ensemble(lambda key: traces.append(key) or draw(key))
    ensemble(KEYS[:2])
    first = len(traces)
    ensemble(KEYS[2:])
    assert len(traces) == first


# --- bits


def check_members(run: Callable[[Any], Any], keys: Any, *, ulps: float) -> None:
    """A member of eight does not depend on how many run beside it, nor on their batches."""
    ensemble, close = ll.ensemble(run), partial(assert_close, ulps=ulps)
    eight = ensemble(keys)
    # In one and the same program neighbours and position leave no trace, to the last bit.
    assert_same(ensemble(keys[::-1]), member(eight, slice(None, None, -1)))
    others = jnp.concatenate([keys[:1], jax.random.split(keys[0], 7)])
    assert_same(member(ensemble(others), 0), member(eight, 0))
    # Programs for other numbers of members may round sums otherwise.
    close(ll.ensemble(run)(keys[:3]), member(eight, slice(0, 3)))
    one = ll.ensemble(run)(keys[1:2])
    close(one, member(eight, slice(1, 2)))
    one_at_a_time = ll.ensemble(run, memory_budget=1.0)(keys[:3])
    assert_same(member(one_at_a_time, slice(1, 2)), one)
    large: Any = ensemble.compile(keys).memory_analysis()
    budget = 0.45 * large.temp_size_in_bytes
    close(ll.ensemble(run, memory_budget=budget)(keys), eight)  # in batches of 3, 3 and 2
    # In batches a member's result does not depend on how many others there are.
    of_eight, of_five = (ll.ensemble(run, batch_size=2)(keys[:number]) for number in (8, 5))
    close(of_eight, eight)
    assert_same(of_five, member(of_eight, slice(0, 5)))


def test_a_member_does_not_depend_on_how_many_run_beside_it() -> None:
    def run(key: Any) -> Any:
        w = jax.random.normal(key, (5, 5)) / 2
        return w, jax.lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ w), jnp.ones((3, 5)))

    # Sums of five terms in another order, twice.
    check_members(run, jax.random.split(jax.random.key(1), 8), ulps=64)


@pytest.mark.parametrize("chosen", [[2], [3, 1, 0, 2]], ids=["alone", "in another order"])
def test_member_with_fast_keys_is_the_same_whoever_is_beside(chosen: list[int]) -> None:
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    members, on_grid = ll.ensemble(draw), ll.grid(lambda *, seed: draw(seed))
    beside = np.asarray(members(keys))
    np.testing.assert_array_equal(members(keys[np.array(chosen)]), beside[chosen])
    beside = np.asarray(on_grid({"seed": keys}).results)
    np.testing.assert_array_equal(on_grid({"seed": keys[np.array(chosen)]}).results, beside[chosen])


# --- refused


def test_ensemble_inside_of_a_transformation_is_refused() -> None:
    ensemble, scaled = ll.ensemble(draw), ll.ensemble(lambda key, scale: scale * draw(key))
    for call in (
        lambda: jax.jit(ensemble)(KEYS),
        lambda: jax.vmap(ensemble)(KEYS[None]),
        lambda: jax.grad(lambda scale: scaled(KEYS, scale).sum())(2.0),
    ):
        with pytest.raises(
            TypeError, match=r"^args\S*: expected .*, got .* call it outside of jit, vmap and g"
        ):
            call()


@pytest.mark.parametrize(
    "devices", [[], [jax.devices()[0]] * 2, "cpu", [0]], ids=["none", "one twice", "text", "numbers"]
)
def test_devices_that_are_none_are_refused(devices: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^devices(\[0\])?: expected .*, got "):
        ll.ensemble(draw, devices=devices)(KEYS)


# --- a budget of memory

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


def test_axes_of_a_pytree() -> None:
    def run(key: Any, options: dict[str, Any], x: Any) -> Any:
        shifted = options["scale"] * jax.random.normal(key) * x + options["shift"].sum()
        return {"shifted": shifted, "none": options["none"]}

    options = {"scale": jnp.arange(4.0), "shift": jnp.arange(3.0), "none": None}
    axes = (0, {"scale": 0, "shift": None, "none": None}, None)
    right = jax.jit(jax.vmap(run, in_axes=axes))(KEYS, options, 2.0)
    assert_same(ll.ensemble(run, in_axes=axes)(KEYS, options, 2.0), right)


@pytest.mark.parametrize(("batch_size", "told"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (None, [4])])
def test_progress_is_told_and_changes_nothing(batch_size: int | None, told: list[int]) -> None:
    calls: list[tuple[int, int]] = []
    options: Any = {"batch_size": batch_size, "devices": jax.devices()[:1]}
    other = ll.ensemble(draw, progress=lambda *call: calls.append(call), **options)
    assert_close(other(KEYS), ll.ensemble(draw, **options)(KEYS), ulps=4)
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


def test_grid_refuses_axes_without_names_or_values() -> None:
    axes: Any
    for axes in ([KEYS], {}, {0: KEYS}):
        with pytest.raises(TypeError, match=r"^axes: expected a dict of values by name, got "):
            ll.grid(lambda *, seed: seed)(axes)
    with pytest.raises(ValueError, match=r"^axes\['sigma'\]: expected a leading axis of members, got a scal"):
        ll.grid(lambda *, sigma: sigma)({"sigma": 0.1})

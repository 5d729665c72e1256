"""Ensembles and grids: what JAX computes for each member, the promises on bits, and a budget of memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from tests.compare import assert_close, assert_same, member
from tests.refusal import each, refusals

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEYS = jax.random.split(jax.random.key(0), 4)


def draw(key: Any) -> Any:
    return jax.random.uniform(key)


def test_ensemble_compiles_once_for_arguments_of_one_shape_and_follows_the_configuration() -> None:
    traces: list[Any] = []
    members = ll.ensemble(lambda key: traces.append(key) or draw(key), batch_size=2)
    assert members(KEYS[:2]).dtype == jnp.float32
    first, by_vmap = len(traces), jax.jit(jax.vmap(draw))
    members(KEYS[2:])
    assert len(traces) == first
    members(KEYS[:3])
    assert len(traces) == 2 * first  # the last batch is filled: another size would be another program
    with jax.enable_x64(True):
        assert members(KEYS[:2]).dtype == jnp.float64
    for by_index in (True, False):
        with jax.threefry_partitionable(by_index):
            np.testing.assert_array_equal(members(KEYS), by_vmap(KEYS))


# --- bits


def test_a_member_does_not_depend_on_how_many_run_beside_it() -> None:
    """Nor on their batches."""

    def run(key: Any) -> Any:
        w = jax.random.uniform(key, (5, 5), minval=-1)
        return w, jax.lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ w), jnp.ones((3, 5)))

    keys, ensemble = jax.random.split(jax.random.key(1), 8), ll.ensemble(run)
    close = partial(assert_close, ulps=64)  # sums of five terms in another order, twice
    eight = ensemble(keys)
    # In the same program neighbours and position leave no trace.
    assert_same(ensemble(keys[::-1]), member(eight, slice(None, None, -1)))
    others = keys[np.array([0, 3, 3, 3, 3, 3, 3, 3])]
    assert_same(member(ensemble(others), 0), member(eight, 0))
    # Programs for other numbers of members may round sums otherwise.
    one = ensemble(keys[1:2])
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


def test_member_with_fast_keys_is_the_same_whoever_is_beside() -> None:
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    members, on_grid = ll.ensemble(draw), ll.grid(lambda *, seed: draw(seed))
    within = ll.ensemble(lambda seed: draw(jax.random.key(seed, impl="rbg")))
    for run, seeds in (
        (members, keys), (lambda keys: on_grid({"seed": keys}).results, keys), (within, jnp.arange(4))
    ):  # fmt: skip
        beside = np.asarray(run(seeds))
        for chosen in (np.array([2]), np.array([3, 1, 0, 2])):  # alone, and in another order
            np.testing.assert_array_equal(run(seeds[chosen]), beside[chosen])


def test_python_numbers_do_not_change_dtypes() -> None:
    half, rates = jnp.ones((4, 3), jnp.bfloat16), jnp.full(4, 0.1)
    step = lambda p, rate: p - rate * p  # noqa: E731
    for axes, rate in (((0, None), 0.1), ((0, 0), rates)):
        assert ll.ensemble(step, in_axes=axes)(half, rate).dtype == jnp.bfloat16
    assert ll.ensemble(step, in_axes=(0, 0))(half, rates.astype(jnp.float32)).dtype == jnp.float32


def test_ensemble_keeps_its_budget_of_memory() -> None:
    """All members share a product of 64 MiB; each has one of 4 MiB of its own, and a number as result."""
    left, right = jnp.ones((4096, 2)), jnp.ones((2, 4096))

    def run(key: Any, left: Any, right: Any) -> Any:
        inward, outward = jax.random.normal(key, (1024, 2)), jax.random.normal(key, (4096,))
        own, shared = inward @ right[:, :1024], left @ right
        return jnp.tanh(own @ outward[:1024]).sum() + jnp.tanh(shared @ outward).sum()

    keys, mebi = jax.random.split(jax.random.key(0), 64), 2**20

    def used(budget: float) -> float:
        program = ll.ensemble(run, memory_budget=budget * mebi).compile(keys, left, right)
        memory: Any = program.memory_analysis()
        return memory.temp_size_in_bytes / mebi

    assert used(1000) > 160 and 68 < used(80) <= 80


# --- arguments, progress, grids


@pytest.mark.parametrize("batch_size", [None, 3])
def test_axes_of_a_pytree(batch_size: int | None) -> None:
    def run(key: Any, options: dict[str, Any], x: Any) -> Any:
        shifted = options["scale"] * draw(key) * x + options["shift"].sum()
        return {"shifted": shifted, "none": options["none"], "empty": jnp.zeros((0, 3))}

    options = {"scale": jnp.arange(4.0), "shift": jnp.arange(3.0), "none": None}
    axes = (0, {"scale": 0, "shift": None, "none": None}, None)
    right = jax.jit(jax.vmap(run, in_axes=axes))(KEYS, options, 2.0)
    found = ll.ensemble(run, in_axes=axes, batch_size=batch_size)(KEYS, options, 2.0)
    assert_close(found, right, ulps=4)


@pytest.mark.parametrize(("batch_size", "told"), [(3, [(3, 4), (4, 4)]), (None, [(4, 4)])])
def test_progress_is_told_and_changes_nothing(batch_size: int | None, told: list[tuple[int, int]]) -> None:
    calls: list[tuple[int, int]] = []
    options: Any = {"batch_size": batch_size, "devices": jax.devices()[:1]}
    telling = ll.ensemble(draw, progress=lambda *call: calls.append(call), **options)
    assert_close(telling(KEYS), ll.ensemble(draw, **options)(KEYS), ulps=4)
    assert calls == told


def test_grid_is_the_nested_loop() -> None:
    def run(x: Any, *, sigma: Any, seed: Any, learning_rate: Any) -> dict[str, Any]:
        return {"a": x + 100 * sigma + 10 * seed["s"] + learning_rate, "b": jnp.stack([sigma, seed["s"]])}

    axes = {  # not in the order of the alphabet
        "seed": {"s": jnp.arange(3)}, "sigma": jnp.array([1.0, 2.0]), "learning_rate": jnp.arange(4.0)
    }  # fmt: skip
    sizes, on_grid = {"seed": 3, "sigma": 2, "learning_rate": 4}, ll.grid(run)
    for names in (list(axes), list(axes)[::-1]):
        found = on_grid({name: axes[name] for name in names}, 0.5)
        assert list(found.axes) == names
        assert found.results["b"].shape == (*(sizes[name] for name in names), 2)
        at = dict(zip(names, np.indices([sizes[name] for name in names]), strict=True))
        right = 0.5 + 100 * (at["sigma"] + 1) + 10 * at["seed"] + at["learning_rate"]
        np.testing.assert_array_equal(found.results["a"], right)


ensemble, scaled = ll.ensemble(draw), ll.ensemble(lambda key, scale: scale * draw(key))
on_seeds: Any = ll.grid(lambda *, seed: seed)


test_refused = refusals(
    values={
        "^devices: expected .*, got ": each(partial(ll.ensemble, draw), devices=([], 2 * jax.devices()[:1])),
        r"^axes\['seed'\]: expected a leading axis of members, got a scalar": each(on_seeds, {"seed": 0.1}),
    },
    types={
        r"^args\S*: expected .*, got .* call it outside of jit, vmap and g": [
            lambda: jax.jit(ensemble)(KEYS),
            lambda: jax.vmap(ensemble)(KEYS[None]),
            lambda: jax.grad(lambda scale: scaled(KEYS, scale).sum())(2.0),
        ],
        "^ensemble: expected a call outside of jit, got one inside; an ensemble compiles itself": [
            lambda: jax.jit(lambda scale: ll.ensemble(lambda key: scale * draw(key))(KEYS))(2.0),
        ],
        "^axes: expected a dict of values by name, got ": each(on_seeds, [KEYS], {}, {0: KEYS}),
    },
)

"""Steps in place: their noise, precision and memory; on the zoo they are those of SGD on the estimate."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lax_learning import estimators
from tests.compare import normal
from tests.refusal import refusals

KEY = jax.random.key(11)
in_place: Any = estimators.in_place_step


def linear(listed: bool, params: Any, x: jax.Array) -> jax.Array:
    """A loss that is linear in every parameter while the others are 0."""
    if listed:
        return sum(jnp.sum(x @ w) for w in params["ws"]) + jnp.sum(params["b"])
    return jax.lax.scan(lambda s, w: (s + jnp.sum(x @ w), None), jnp.sum(params["b"]), params["ws"])[0]


@pytest.mark.parametrize(
    ("listed", "options"), [(True, {}), (False, {"noise": "rademacher"}), (False, {"rank": 1})],
    ids=["normal", "signs", "rank"],
)  # fmt: skip
def test_passes_and_update_use_the_same_noise(listed: bool, options: dict[str, Any]) -> None:
    # With L = <G, w> the step is -<G, s> s, so its product with G is -<G, s>^2.
    size, layers = 32, 3
    x = normal(0, 4, size)
    ws = jnp.zeros((layers, size, size))
    params = {"ws": list(ws) if listed else ws, "b": jnp.zeros(size)}
    loss = partial(linear, listed)
    step = in_place(loss, sigma=0.5, **options)

    @jax.jit
    def moved(key: Any) -> Any:
        after, gradient = step(key, params, x, learning_rate=1.0)[1], jax.grad(loss)(params, x)
        product = sum(jnp.vdot(g, m) for g, m in zip(*map(jax.tree.leaves, (gradient, after)), strict=True))
        noise = jax.tree.map(lambda m: m / jnp.sqrt(-product), after)
        return (jnp.stack(noise["ws"]) if listed else noise["ws"]).reshape(layers, -1), after["b"]

    flat, of_bias = map(np.asarray, moved(KEY))
    if "rank" not in options:
        # Squares of n normals have a mean of 1 with a standard error of sqrt(2 / n); those of signs are 1.
        number = flat.size
        error = 1e-4 if options else 5 * (2 / number) ** 0.5
        assert abs(float(np.mean(flat**2)) - 1) < error
        assert abs(float(np.mean(flat))) < 5 / number**0.5
    # Layers have draws of their own: correlations of size^2 numbers are 0 with an error of 1 / size.
    correlation = np.corrcoef(flat) - np.eye(layers)
    assert float(np.abs(correlation).max()) < 5 / size * (1 if "rank" not in options else 2)
    assert not np.allclose(of_bias, moved(jax.random.key(12))[1])


def test_several_draws_are_averaged() -> None:
    ones, x = jnp.ones((3, 4)), jnp.eye(3)

    def loss(w: Any, x: Any) -> Any:
        return jnp.sum((x @ w) ** 2)

    step = in_place(loss, sigma=0.1, num_samples=8192)
    value, after = step(KEY, jnp.array(ones), x, learning_rate=0.25)
    # The gradient is 2 w; relative variance of a draw n + 1 for n weights.
    error = 5 * 0.25 * 2 * (12 + 1) ** 0.5 / 8192**0.5
    np.testing.assert_allclose(after, ones - 0.25 * 2, atol=error)
    # The value is that at the noise: 12 + 12 sigma^2, with the standard deviation of the losses there.
    np.testing.assert_allclose(value, 12 * (1 + 0.1**2), atol=5 * 12 * 0.1 / 8192**0.5)


@pytest.mark.parametrize("options", [{"noise": "rademacher"}, {"rank": 2}], ids=["signs", "rank"])
def test_half_precision_keeps_the_signal(options: dict[str, Any]) -> None:
    # sigma is 1/80 of the spacing of bfloat16 around the weights, 2^-8 to 2^-7 at 1/2 to 1.
    w = jnp.asarray(np.random.default_rng(0).uniform(0.5, 0.99, (2, 16, 16)), jnp.bfloat16)
    x = normal(1, 4, 16) / 16

    def loss(ws: Any, x: Any) -> Any:
        return jnp.mean(jax.lax.scan(lambda h, w: (h @ w, None), x, ws)[0] ** 2, axis=1)

    step = in_place(loss, sigma=5e-5, **options)
    value, half = step(KEY, jnp.array(w), x, learning_rate=0.01)
    exact, full = step(KEY, w.astype(jnp.float32), x, learning_rate=0.01)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert half.dtype == jnp.bfloat16
    assert float(jnp.abs(full - w.astype(jnp.float32)).max()) > 1e-3
    # One of the two numbers next to the exact one.
    np.testing.assert_array_less(jnp.abs(half.astype(jnp.float32) - full), 2**-7)


def test_updates_below_the_spacing_are_made_in_the_mean() -> None:
    number, rate = 4096, 1e-4
    step = in_place(lambda w: jnp.sum(w), sigma=0.1, noise=lambda key, like: jnp.ones(like.shape))
    _, after = step(KEY, jnp.ones(number, jnp.bfloat16), learning_rate=rate / number)
    # Bernoulli steps of 2^-8 below 1.
    error = 5 * (rate * 2**-8 / number) ** 0.5
    np.testing.assert_allclose(1 - jnp.mean(after.astype(jnp.float32)), rate, atol=error)
    assert set(np.unique(after.astype(np.float32))) == {1.0, 1 - 2**-8}


@pytest.mark.parametrize("listed", [True, False], ids=["list", "scan"])
def test_temporaries_do_not_grow_with_depth(listed: bool) -> None:
    size, layers = (128, 6) if listed else (256, 8)
    ws = jnp.zeros((layers, size, size))
    params, x = list(ws) if listed else ws, jnp.ones((1, size))

    def loss(ws: Any, x: Any) -> Any:
        if listed:
            for w in ws:
                x = jnp.tanh(x @ w)
        else:
            x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]
        return jnp.mean(x**2)

    def temporaries(**options: Any) -> float:
        step = in_place(loss, sigma=0.1, **options)
        memory = step.lower(KEY, params, x, learning_rate=0.1).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= ws.nbytes
        return memory.temp_size_in_bytes / ws.nbytes

    # Two matrices, the noise and its sum with the weights, and words or keys.
    assert temporaries(noise="rademacher") < 4 / layers
    if not listed:  # one product of low rank, of the size of a matrix, and the copy that it is added to
        assert temporaries(noise="normal") < 4 / layers
        assert temporaries(rank=2) < 2.5 / layers


def test_params_are_donated() -> None:
    w = jnp.ones(3)
    in_place(jnp.sum, sigma=0.1)(KEY, w, learning_rate=0.1)
    assert w.is_deleted()


def loss_of_half(w: Any) -> Any:
    return jnp.sum(w.astype(jnp.bfloat16))


test_bad_input = refusals(
    values={
        "^sigma: ": lambda: in_place(jnp.sum, sigma=0.0),
        "^rank: ": lambda: in_place(jnp.sum, sigma=0.1, rank=0),
        "^num_samples: ": lambda: in_place(jnp.sum, sigma=0.1, num_samples=0),
        "^weight_decay: ": lambda: in_place(jnp.sum, sigma=0.1, weight_decay=-1.0),
        "^learning_rate: expected a real number": lambda: in_place(jnp.sum, sigma=0.1)(
            KEY, jnp.ones(2), learning_rate=jnp.ones(2)
        ),
    },
    types={
        "^loss_fn: expected a loss in float32 or wider": lambda: in_place(loss_of_half, sigma=0.1)(
            KEY, jnp.ones(2), learning_rate=0.1
        ),
        "^loss_fn: ": lambda: in_place(3, sigma=0.1),
    },
)

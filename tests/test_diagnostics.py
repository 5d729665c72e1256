"""Diagnostics against closed forms, brute force, identities, and gradients that are zero by construction."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import metrics
from tests.compare import assert_near, normal
from tests.refusal import each, refusals

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(7)


def test_scales_of_rotations() -> None:
    """Times a gain, as a list and as a scan of layers, which gives one scale a layer, under a vmap."""
    depth, gains = 3, np.array([3.0, 0.5])
    rotations = jnp.asarray(np.linalg.qr(normal(0, depth, 4, 4))[0])
    listed = ll.Model(lambda params, x: x @ params[0] @ params[1] @ params[2])
    stacked = ll.Model(lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    x, y = 1e20 * normal(1, 6, 4), jnp.zeros((6, 4))  # whose squares are beyond float32

    def loss(output: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(output, axis=1)  # the error is a vector of ones at the output

    @jax.jit
    @jax.vmap
    def found(gain: jax.Array) -> list[metrics.Scales]:
        models = (listed, list(gain * rotations)), (stacked, gain * rotations)
        return [metrics.depth_scales(m, ll.backprop(m, loss), KEY, w, (), x, y) for m, w in models]

    size, powers = np.sqrt(np.mean(np.square(x, dtype=float))), np.arange(depth)
    expected = size * gains[:, None] ** (powers + 1), gains[:, None] ** powers[::-1]
    of_list, of_stack = found(gains)
    for of_layers, of_scan, wanted in zip(of_list, of_stack, expected, strict=True):
        np.testing.assert_allclose(np.stack(list(of_layers.values()), axis=1), wanted, rtol=1e-5)
        np.testing.assert_allclose(of_scan[""], wanted, rtol=1e-5)


def test_rounding_error_is_one_rounding(x64: None) -> None:
    """In float64 the gradient `p^3` of a float32 parameter moves by `3 eps |p|^3`."""
    p, count = normal(4, 50).astype(jnp.float32), jnp.arange(3)

    @jax.jit
    def found(p: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = metrics.rounding_error(lambda p: p.astype(jnp.float64) ** 3, KEY, p)
        return error, metrics.rounding_error(lambda p: 1.0 * p["count"], KEY, {"w": p, "count": count})

    error, still = found(p)
    steps = np.asarray(error) / np.abs(np.asarray(p, np.float64)) ** 3 / float(jnp.finfo(jnp.float32).eps) / 3
    # The moved parameter is rounded once more: half of the spacing at most, which is up to eps |p|.
    assert np.all(np.abs(steps - 1) <= 0.51)
    assert not np.any(still)


def test_products_in_half_precision_round_as_it_does() -> None:
    """Parameters are float32; a move by one rounding of theirs would be lost in the cast."""
    x = normal(7, 20, 4).astype(jnp.bfloat16)

    def half(params: dict[str, jax.Array]) -> jax.Array:  # a shift of all units is taken out again
        h = x @ params["w"].astype(jnp.bfloat16) + params["shift"].astype(jnp.bfloat16)
        return jnp.sum(jnp.tanh(h - jnp.mean(h, axis=-1, keepdims=True)).astype(jnp.float32))

    @jax.jit
    def found(params: dict[str, jax.Array]) -> Any:
        grads, error = jax.grad(half)(params), metrics.rounding_error(jax.grad(half), KEY, params)
        cosines = metrics.by_path(metrics.resolved_cosine, grads, grads, error)
        return metrics.by_path(metrics.relative_norm, error, grads), cosines["shift"]

    shares, cosine = found({"w": normal(5, 4, 8), "shift": jnp.array(0.3)})
    # One rounding is 2^-7, and 4 terms are summed.
    assert 2**-10 < shares["w"] < 2**-3 and shares["shift"] > 0.5 and np.isnan(cosine)


def test_resolved_cosine_on_both_sides_of_the_limit() -> None:
    resolved, a, b = jax.jit(metrics.resolved_cosine), np.array([1.0, 1.0]), np.array([2.0, 0.0])
    found = [resolved(a, b, np.array([0, error])) for error in (0.99, 1.01, np.nan)]
    np.testing.assert_allclose([*found, resolved(b, 0 * b, 0 * b)], [0.5**0.5, *[np.nan] * 3], rtol=1e-6)


def test_pairwise_cosine_against_brute_force() -> None:
    scales = np.array([1, 1, 0, 1e-25, 1e25, 1])
    drawn = {"w": 0.4 + normal(12, 6, 3, 2), "b": normal(13, 6, 4)}
    gradients = {name: (scales * np.asarray(leaf).T).T.astype(np.float32) for name, leaf in drawn.items()}
    rows = np.concatenate([leaf.reshape(6, -1).astype(float) for leaf in gradients.values()], axis=1)

    def mean_cosine(rows: np.ndarray) -> Any:
        units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        return (units @ units.T)[~np.eye(len(rows), dtype=bool)].mean()

    value, error = jax.jit(metrics.pairwise_cosine)(gradients)
    np.testing.assert_allclose(value, mean_cosine(rows), rtol=1e-5)
    left_out = [mean_cosine(np.delete(rows, t, axis=0)) for t in range(6)]
    np.testing.assert_allclose(error, np.sqrt(5 * np.var(left_out)), rtol=1e-4)


def test_train_only_gives_the_rest_zero_gradients() -> None:
    model = ll.mlp((3, 5, 2), activation=jnp.tanh)
    x, y, frozen = normal(15, 6, 3), normal(16, 6, 2), metrics.train_only(model, "1/*")
    fewer = metrics.train_only(frozen, lambda path: path.endswith("w"))  # what is frozen stays so

    @jax.jit
    def found(key: jax.Array) -> Any:
        params, rules = model.init(key), [ll.backprop(m, ll.squared_error) for m in (model, frozen, fewer)]
        rules.append(ll.direct_feedback_alignment(frozen, ll.squared_error))
        return [r.value_and_grad(key, params, r.init(key, params, x), x, y)[1] for r in rules]

    exact, *of_frozen = found(KEY)
    of_frozen, last = [of_frozen[0], of_frozen[2]], of_frozen[1]
    for first, second in of_frozen:
        assert_near(second, exact[1])
        assert not first["w"].any() and not first["b"].any()
    np.testing.assert_allclose(last[1]["w"], exact[1]["w"], rtol=1e-5)
    assert not any(leaf.any() for leaf in (last[0]["w"], last[0]["b"], last[1]["b"]))


def test_steps_to_the_first_crossing() -> None:
    steps = jax.jit(metrics.steps_to_decrease)
    losses = np.array([4.0, 5.0, 3.0, 3.5, 1.0])
    with_nan, infinite = np.where(losses == 3.5, np.nan, losses), np.where(losses == 4, np.inf, losses)
    numbers = np.arange(5.0)
    for given, at, decreases, expected in (
        (losses, numbers, [0.5, 1.0, 2.0, 3.0, 3.1], [1.75, 2, 3.6, 4, np.inf]),
        (losses, numbers**2, [0.5, 1.0, 2.0, 3.0, 3.1], [3.25, 4, 13.2, 16, np.inf]),
        (with_nan, numbers, [1.0, 2.0, 9.0], [2, np.nan, np.nan]),
        (infinite, numbers, [0.5], [1]),
        ([2.3, 2.2, 2.1], np.arange(0, 30, 10), [1e-8], [0]),  # lost in rounding
        ([2.3, 2.3, 2.4], np.arange(3), [1e-8], [np.inf]),
    ):
        found = [steps(jnp.asarray(given), decrease, at) for decrease in decreases]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
    assert metrics.steps_to_decrease([4.0, 2.0], 1.0) == 0.5


MODEL = ll.mlp((3, 4, 2))
PARAMS = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(MODEL.init, KEY))
X, Y = jnp.ones((5, 3)), jnp.zeros((5, 2))
BACKPROP = ll.backprop(MODEL, ll.squared_error)
LESS = ll.backprop(metrics.train_only(MODEL, "1/*"), ll.squared_error)
WITHOUT = ll.weight_perturbation(MODEL, ll.squared_error, sigma=0.1)
NONE = ll.backprop(metrics.train_only(MODEL, "readout"), ll.squared_error)


def scales(rule: ll.Rule, y: jax.Array = Y) -> Any:
    return partial(metrics.depth_scales, MODEL, rule, KEY, PARAMS, (), X, y)


steps, m = metrics.steps_to_decrease, metrics
test_refused = refusals(
    values={
        "rule: expected a rule with teaching signals, got one without": scales(WITHOUT),
        r"rule: expected signals at the taps of model, .*, got \[": scales(LESS),
        r"y: expected a leading axis of 5 examples as in x, got shapes \[\[3, 2\]\]": scales(BACKPROP, Y[:3]),
        "error: expected the structure of b": partial(m.resolved_cosine, [X], [X], X),
        "a: expected the structure of b": partial(m.resolved_cosine, X, [X], [X]),
        "samples: number of gradients: expected at least 3, got 2": partial(m.pairwise_cosine, X[:2]),
        "samples: expected leaves with the same leading axis": each(m.pairwise_cosine, [X, X[:4]], 1.0),
        r"losses: expected shape \[n\] with n >= 2": [partial(steps, [2.0], 1.0), partial(steps, X, 1.0)],
        "steps: expected shape": partial(steps, [2.0, 1.0], 0.5, [0.0]),
        "trainable: expected to select a parameter": partial(NONE.value_and_grad, KEY, PARAMS, (), X, Y),
    },
)

"""Diagnostics against closed forms, brute force, identities, and gradients that are zero by construction."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import metrics
from tests.compare import assert_near, normal, update
from tests.refusal import refusals

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(7)


# Scales by depth.


def chain(gain: float, depth: int) -> tuple[ll.Model, list[jax.Array]]:
    """Rotations times a gain, which multiply every length by it."""
    rotations = [np.linalg.qr(np.asarray(normal(i, 4, 4)))[0] for i in range(depth)]

    def apply(params: list[jax.Array], x: jax.Array) -> jax.Array:
        for w in params:
            x = x @ w
        return x

    return ll.Model(apply), [jnp.asarray(gain * r, jnp.float32) for r in rotations]


def root_mean_square(values: jax.Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


def test_scales_of_rotations() -> None:
    model, params = chain(gain := 3.0, depth := 4)
    x, y = 1e20 * normal(1, 6, 4), jnp.zeros((6, 4))  # whose squares are beyond float32

    def loss(output: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(output, axis=1)

    rule = ll.backprop(model, loss)
    scales = jax.jit(lambda params: metrics.depth_scales(model, rule, KEY, params, (), x, y))(params)
    for i in range(depth):  # the error is a vector of ones at the output
        np.testing.assert_allclose(scales.activity[str(i)], root_mean_square(x) * gain ** (i + 1), rtol=1e-5)
        np.testing.assert_allclose(scales.signal[str(i)], gain ** (depth - 1 - i), rtol=1e-5)


def test_scales_of_stacked_layers_are_those_of_a_list() -> None:
    """A scan over layers gives one scale a layer, under any seed of a vmap."""
    listed, params = chain(2.0, 3)
    stacked = ll.Model(lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    x, y = normal(2, 5, 4), normal(3, 5, 4)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def found(gain: jax.Array, params: list[jax.Array]) -> tuple[metrics.Scales, metrics.Scales]:
        params = [gain * w for w in params]
        scales = partial(metrics.depth_scales, key=KEY, x=x, y=y)
        apart = ll.feedback_alignment(listed, ll.squared_error)
        together = ll.feedback_alignment(stacked, ll.squared_error)
        state = apart.init(KEY, params, x)._replace(feedback=[None, *params[1:]])
        of_list = scales(listed, apart, params=params, state=state)
        w = jnp.stack(params)
        state = together.init(KEY, w, x)._replace(feedback=w)
        return of_list, scales(stacked, together, params=w, state=state)

    of_list, of_stack = found(jnp.array([1.0, 0.5]), params)
    for of_layers, of_scan in zip(of_list, of_stack, strict=True):
        (rows,) = of_scan.values()
        np.testing.assert_allclose(rows, jnp.stack(list(of_layers.values()), axis=1), rtol=1e-5)


# Rounding.


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


def normed(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A shift of all units by one number is taken out again."""
    z = x @ params["w"] + params["shift"]
    z = z - jnp.mean(z, axis=1, keepdims=True)
    return z / jnp.sqrt(jnp.mean(jnp.square(z), axis=1, keepdims=True)) @ params["readout"]


def test_a_gradient_that_is_zero_by_construction_has_no_cosine() -> None:
    params = {"w": normal(5, 4, 8), "shift": jnp.array(0.3), "readout": normal(6, 8, 2)}
    model = ll.Model(normed)
    rule = ll.backprop(model, ll.squared_error)
    x, y = normal(7, 20, 4), normal(8, 20, 2)

    def gradient(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return rule.value_and_grad(KEY, params, (), x, y)[1]

    @jax.jit
    def found(params: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        grads, error = gradient(params), metrics.rounding_error(gradient, KEY, params)
        other = jax.tree.map(lambda leaf: leaf + 1, grads)
        cosines = metrics.by_path(metrics.cosine_similarity, other, grads)
        return metrics.by_path(metrics.resolved_cosine, other, grads, error), cosines

    resolved, cosines = found(params)
    assert np.isnan(resolved["shift"])
    for name in ("w", "readout"):
        assert resolved[name] == cosines[name]


def test_products_in_half_precision_round_as_it_does() -> None:
    """Parameters are float32; a move by one rounding of theirs would be lost in the cast."""

    x = normal(7, 20, 4).astype(jnp.bfloat16)

    def half(params: dict[str, jax.Array]) -> jax.Array:
        h = x @ params["w"].astype(jnp.bfloat16) + params["shift"].astype(jnp.bfloat16)
        return jnp.sum(jnp.tanh(h - jnp.mean(h, axis=-1, keepdims=True)).astype(jnp.float32))

    params, gradient = {"w": normal(5, 4, 8), "shift": jnp.array(0.3)}, jax.jit(jax.grad(half))
    grads = gradient(params)
    error = jax.jit(lambda params: metrics.rounding_error(gradient, KEY, params))(params)
    shares = metrics.by_path(metrics.relative_norm, error, grads)
    assert (
        2**-10 < shares["w"] < 2**-3 and shares["shift"] > 0.5
    )  # one rounding is 2^-7, and 4 terms are summed
    assert np.isnan(metrics.by_path(metrics.resolved_cosine, grads, grads, error)["shift"])


def test_a_sigma_below_the_precision_of_the_loss_is_found() -> None:
    """Losses near 4 are resolved to 2e-7: a tenth of the changes by a sigma of 1e-7."""
    rule = partial(ll.weight_perturbation, ll.Model(lambda w, x: x @ w), ll.squared_error)
    w, x, y = normal(9, 3, 2), normal(10, 8, 3), normal(11, 8, 2)

    def share(sigma: float) -> jax.Array:
        def gradient(w: jax.Array) -> jax.Array:
            return rule(sigma=sigma).value_and_grad(KEY, w, (), x, y)[1]

        return metrics.relative_norm(metrics.rounding_error(gradient, KEY, w), gradient(w))

    assert share(0.1) < 1e-3
    assert share(1e-7) > 0.1


def test_resolved_cosine_on_both_sides_of_the_limit() -> None:
    b = jnp.array([2.0, 0.0])
    for error, known in ((0.99, True), (1.01, False), (jnp.nan, False)):
        cosine = metrics.resolved_cosine(jnp.array([1.0, 1.0]), b, jnp.array([0.0, error]))
        assert bool(jnp.isnan(cosine)) is not known
        if known:
            np.testing.assert_allclose(cosine, 0.5**0.5, rtol=1e-6)
    assert jnp.isnan(metrics.resolved_cosine(b, 0 * b, 0 * b))


# Agreement of batches.


def test_pairwise_cosine_against_brute_force() -> None:
    drawn: Any = {"w": 0.4 + normal(12, 6, 3, 2), "b": normal(13, 6, 4)}
    scales = np.array([1, 1, 0, 1e-25, 1e25, 1], np.float32)
    gradients = {name: np.asarray(scales * np.asarray(leaf).T).T for name, leaf in drawn.items()}
    rows = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(6, -1) for leaf in gradients.values()], axis=1
    )

    def mean_cosine(rows: np.ndarray) -> float:
        units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        cosines = units @ units.T
        return float(cosines[~np.eye(len(rows), dtype=bool)].mean())

    value, error = jax.jit(metrics.pairwise_cosine)(gradients)
    np.testing.assert_allclose(value, mean_cosine(rows), rtol=1e-5)
    left_out = np.array([mean_cosine(np.delete(rows, t, axis=0)) for t in range(6)])
    np.testing.assert_allclose(error, np.sqrt(5 / 6 * np.sum((left_out - left_out.mean()) ** 2)), rtol=1e-4)


# Frozen blocks.


def test_train_only_gives_the_rest_zero_gradients() -> None:
    model = ll.mlp((3, 5, 2), activation=jnp.tanh)
    params, x, y = model.init(KEY), normal(15, 6, 3), normal(16, 6, 2)
    exact = update(ll.backprop(model, ll.squared_error), KEY, params, x, y)[2]
    frozen = metrics.train_only(model, "1/*")
    for make in (ll.backprop, ll.direct_feedback_alignment):
        grads = update(make(frozen, ll.squared_error), KEY, params, x, y)[2]
        assert_near(grads[1], exact[1])
        assert not any(leaf.any() for leaf in jax.tree.leaves(grads[0]))
    fewer = metrics.train_only(frozen, lambda path: path.endswith("w"))  # what is frozen stays so
    grads = update(ll.backprop(fewer, ll.squared_error), KEY, params, x, y)[2]
    np.testing.assert_allclose(grads[1]["w"], exact[1]["w"], rtol=1e-5)
    assert not any(leaf.any() for leaf in (grads[0]["w"], grads[0]["b"], grads[1]["b"]))


# Steps at equal decrease.


def test_steps_along_a_line_are_the_inverse_of_the_cosine() -> None:
    """A linear loss falls along `d` by `t g . d`: for an equal decrease lengths are as `1 / cos`."""
    g, d = normal(17, 9), normal(17, 9) + normal(18, 9)
    lengths = jnp.linspace(0, 5, 11)

    def length(direction: jax.Array) -> jax.Array:
        unit = direction / jnp.linalg.norm(direction)
        losses = jax.vmap(lambda t: 3.0 - t * jnp.dot(g, unit))(lengths)
        return metrics.steps_to_decrease(losses, 0.7, lengths)

    found, expected = jax.jit(lambda: (length(d) / length(g), 1 / metrics.cosine_similarity(d, g)))()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_steps_to_the_first_crossing() -> None:
    steps = jax.jit(jax.vmap(metrics.steps_to_decrease, in_axes=(None, 0)))
    losses = jnp.array([4.0, 5.0, 3.0, 3.5, 1.0])
    np.testing.assert_allclose(steps(losses, jnp.array([0.5, 1.0, 2.0, 3.0, 3.1])), [1.75, 2, 3.6, 4, np.inf])
    assert np.isnan(metrics.steps_to_decrease([4.0, np.nan, 3.5, 1.0], 2.0))
    assert metrics.steps_to_decrease([2.3, 2.2, 2.1], 1e-8, jnp.arange(0, 30, 10)) == pytest.approx(
        0, abs=1e-5
    )
    assert metrics.steps_to_decrease([2.3, 2.3, 2.4], 1e-8) == np.inf
    assert metrics.steps_to_decrease([np.inf, 2.0, 1.0], 0.5) == 1
    nan = losses.at[3].set(jnp.nan)
    np.testing.assert_allclose(steps(nan, jnp.array([1.0, 2.0, 9.0])), [2, np.nan, np.nan])


# Bad input.

MODEL = ll.mlp((3, 4, 2))
PARAMS, X, Y = MODEL.init(KEY), jnp.ones((5, 3)), jnp.zeros((5, 2))
BACKPROP = ll.backprop(MODEL, ll.squared_error)
LESS = ll.backprop(metrics.train_only(MODEL, "1/*"), ll.squared_error)
WITHOUT = ll.weight_perturbation(MODEL, ll.squared_error, sigma=0.1)

test_refused = refusals(
    values={
        "rule: expected one with teaching signals, got one without": lambda: metrics.depth_scales(
            MODEL, WITHOUT, KEY, PARAMS, (), X, Y
        ),
        r"rule: expected signals at the taps of model, .*, got \[": lambda: metrics.depth_scales(
            MODEL, LESS, KEY, PARAMS, (), X, Y
        ),
        r"y: expected a leading axis of 5 examples as in x, got shapes \[\[3, 2\]\]": lambda: (
            metrics.depth_scales(MODEL, BACKPROP, KEY, PARAMS, (), X, Y[:3])
        ),
        "error: expected the structure of b": lambda: metrics.resolved_cosine([X], [X], X),
        "a: expected the structure of b": lambda: metrics.resolved_cosine(X, [X], [X]),
        "samples: number of gradients: expected at least 3, got 2": lambda: metrics.pairwise_cosine(X[:2]),
        "samples: expected leaves with one leading axis of T": [
            lambda: metrics.pairwise_cosine([X, X[:4]]),
            lambda: metrics.pairwise_cosine(1.0),
        ],
        "decrease: expected a finite number > 0": lambda: metrics.steps_to_decrease([2.0, 1.0], 0.0),
        r"losses: expected shape \[n\] with n >= 2": [
            lambda: metrics.steps_to_decrease([2.0], 1.0),
            lambda: metrics.steps_to_decrease(X, 1.0),
        ],
        "steps: expected shape": lambda: metrics.steps_to_decrease([2.0, 1.0], 0.5, [0.0]),
        "trainable: expected to select a parameter": lambda: ll.backprop(
            metrics.train_only(MODEL, "readout"), ll.squared_error
        ).value_and_grad(KEY, PARAMS, (), X, Y),
    },
    types={
        "gradient: expected a function params -> gradients": lambda: metrics.rounding_error(X, KEY, PARAMS),  # pyright: ignore
        "key: expected": lambda: metrics.rounding_error(lambda p: p, 0, PARAMS),  # pyright: ignore
        "model: expected a Model": lambda: metrics.train_only(MODEL.apply, "1/*"),  # pyright: ignore
        "where: expected a glob": lambda: metrics.train_only(MODEL, 1),  # pyright: ignore
    },
)

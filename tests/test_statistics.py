"""Expectations and variances of the estimators, over thousands of draws in one program.

The tolerance is everywhere 5 standard errors, taken from the sample: a right estimator fails a given
coordinate with odds of 6e-7. Where sigma must be small, its bias is far below that: it is of the
order sigma^2 = 1e-4, relative to the gradient, against standard errors of a few hundredths.
"""

import contextlib
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from lax_learning import estimators
from tests.compare import assert_mean, draws_of, flat, update, updates
from tests.test_golden import in_order

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(20)
NUM_DRAWS = 5_000


def normals(seed, *shape):
    """Normal numbers in float32, as an array of NumPy."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Losses of any pytree.

PARAMS = [np.array([0.3, -1.2, 0.8, 0.5], np.float32), np.array([-0.4, 0.9], np.float32)]
SLOPES, CURVATURE = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -1.5], np.float32), normals(1, 6, 6)


def quadratic(params):
    w = jnp.concatenate(params)
    return w @ CURVATURE @ w + w @ SLOPES


def waves(params, damping: Any = 1.0):
    return jnp.sum(damping * jnp.sin(CURVATURE @ jnp.concatenate(params)))


# E sin(a.(w + s)) = sin(a.w) exp(-sigma^2 |a|^2 / 2) for normal noise with sigma = 0.5.
smoothed_waves = partial(waves, damping=np.exp(-(0.5**2) * np.sum(CURVATURE**2, axis=1) / 2))
wp, fg = partial(estimators.weight_perturbation, sigma=1.0), estimators.forward_gradient
spsa = partial(
    estimators.spsa(quadratic, perturbation=estimators.spall_gains(a=1.0, c=0.5).perturbation), count=7
)


def given(estimate, *losses):
    return lambda key: estimate(key, PARAMS)[1], PARAMS, *losses


# Rules on a model.

X, Y, SEQUENCES = normals(2, 3, 4), normals(3, 3, 2), normals(21, 3, 4, 2)
WEIGHTS: Any = tuple(
    {"w": 0.7 * normals(i, *s), "b": 0.7 * normals(9, s[1])} for i, s in ((4, (4, 3)), (5, (3, 2)))
)
RECURRENT = {"w": 0.7 * normals(6, 2, 3), "u": 0.7 * normals(7, 3, 3), "b": 0.7 * normals(8, 3)}
CURVED = ll.mlp((4, 3, 2), activation=jnp.tanh)
NETWORKS: dict[str, Any] = {
    "curved": (CURVED, WEIGHTS, X, Y),
    "straight": (ll.mlp((4, 3, 2), activation=lambda z: z), WEIGHTS, X, Y),
    "recurrent": (ll.rnn((2, 3, 2)), (RECURRENT, WEIGHTS[1]), SEQUENCES, Y),
    "one layer": (ll.mlp((4, 3)), WEIGHTS[:1], X, X[:, :3]),
}


def on(network, make, **options):
    model, params, x, y = NETWORKS[network]
    rule = make(model, ll.squared_error, **options)

    def loss(params):
        return ll.squared_error(model.apply(params, x), y).mean()

    return lambda key: rule.value_and_grad(key, params, (), x, y)[1], params, loss


np_: Any = partial(ll.node_perturbation, sigma=0.01)
activity: Any = partial(np_, variant="activity")
ALL: Any = {"antithetic": True, "layerwise": True, "share_noise": True, "num_samples": 2}
DRAWN: dict[str, Any] = {
    # At sigma = 1 no smallness helps.
    "central, rademacher": given(wp(quadratic, difference="central", noise="rademacher"), quadratic),
    "smoothed": given(wp(waves, sigma=0.5), smoothed_waves, waves),
    "spsa": given(spsa, quadratic),
    "forward gradient, rademacher, 3": given(fg(waves, noise="rademacher", num_samples=3), waves),
    # In a linear network the loss is a quadratic function of the noise, whose square term has no correlation
    # with the noise: no smallness helps here either.
    "np, linear, all options": on("straight", np_, sigma=1.0, **ALL),
    # In one layer the direction of the noise is isotropic, so that N E[(delta.u) u] = delta; in two the
    # change of the second contains that of the first.
    "np, activity, one layer": on("one layer", activity),
    "np, activity, biased": (*on("curved", activity)[:2], None, on("curved", activity)[2]),
    "np through time": on("recurrent", np_),
    "fg, activities": on("curved", ll.forward_gradient, perturb="activities", num_samples=2),
}
"""Draws, params, a loss whose gradient they have on average, and perhaps one whose gradient they have not."""


def test_draws_are_on_average_a_gradient():
    draws = draws_of(lambda key: {name: draw(key) for name, (draw, *_) in DRAWN.items()}, KEY, NUM_DRAWS)
    losses = {(name, i): loss for name, of in DRAWN.items() for i, loss in enumerate(of[2:]) if loss}
    exact = jax.jit(lambda: {at: jax.grad(loss)(DRAWN[at[0]][1]) for at, loss in losses.items()})()
    for (name, i), gradient in exact.items():
        assert all(np.asarray(leaf).std(axis=0).min() > 0 for leaf in jax.tree.leaves(draws[name])), name
        with contextlib.nullcontext() if i == 0 else pytest.raises(AssertionError, match="off by up to"):
            assert_mean(draws[name], gradient)


def test_redrawn_feedback_is_on_average_that_of_its_mean_magnitude():
    # E|B| = sd sqrt(2 / pi) of normal magnitudes, which have the standard deviation of the weights.
    gain, of = 0.5, (CURVED, ll.squared_error)
    rule = ll.sign_symmetry(*of, magnitude="redrawn", gain=gain)
    hidden, read_out = draws_of(lambda key: rule.value_and_grad(key, WEIGHTS, (), X, Y)[1], KEY, NUM_DRAWS)
    size = gain * WEIGHTS[1]["w"].std() * (2 / np.pi) ** 0.5
    expected, exact = update(ll.sign_symmetry(*of, gain=size), KEY, WEIGHTS, X, Y)[2]
    assert_mean(hidden, expected)
    for found, leaf in zip(*map(jax.tree.leaves, (read_out, exact)), strict=True):  # which gets its gradient
        np.testing.assert_allclose(found - leaf, 0, atol=1e-5 * np.abs(leaf).max())


def test_initial_feedback_has_the_scale_that_is_documented():
    widths, x = (40, 200, 100, 50), jnp.zeros((2, 40))
    shapes = enumerate(itertools.pairwise(widths))
    params = tuple({"w": 0.3 * normals(i, *s), "b": np.zeros(s[1], np.float32)} for i, s in shapes)
    of = ll.mlp(widths), ll.squared_error
    rules = [make(*of) for make in (ll.feedback_alignment, ll.direct_feedback_alignment, ll.pepita)]
    rules.append(ll.local_errors(*of, optimizer=optax.sgd(0.1)))

    @jax.jit
    def run(params):
        of_zeros = rules[0].init(KEY, jax.tree.map(jnp.zeros_like, params), x).feedback[1]["w"]
        return [of_zeros, *(rule.init(KEY, params, x).feedback for rule in rules)]

    of_zeros, (_, *aligned), direct, (of_errors,), readouts = run(params)
    expected = [(of_zeros, 200**-0.5), (of_errors, 0.05 * (6 / 40) ** 0.5 / 3**0.5)]  # normal, uniform
    expected += [(b["w"], layer["w"].std()) for b, layer in zip(aligned, params[1:], strict=True)]
    expected += [(b, 50**-0.5) for b in direct.values()]
    expected += [(b, len(b) ** -0.5) for b in readouts.values()]
    assert len(expected) == 8
    for feedback, spread in expected:  # a spread of n normal numbers has the relative error 1 / sqrt(2 n)
        assert abs(feedback.std() / spread - 1) < 5 / np.sqrt(2 * feedback.size)


def test_variances_of_perturbation():
    """Of a linear loss, at any sigma: a draw's coordinate has its own square twice, or not at all by signs.

    `Var[g_i] = +-g_i^2 + |g|^2` of weights; `Var[g_ij] = x_j^2 (+-delta_i^2 + sum_k delta_k^2)` of nodes, the
    sum over the units of all layers. Two equal examples halve that of nodes unless they share the noise.
    """
    w, x, y = [WEIGHTS[0]["w"], WEIGHTS[1]["w"]], X[[0, 0]], Y[[0, 0]]
    hidden = x @ w[0]
    deep, last = ll.Model(lambda p, x: (x @ p[0]) @ p[1]), ll.Model(lambda p, x: x @ p)

    def loss(output, y):
        return jnp.sum(output * y, axis=-1)

    wp_: Any = ll.weight_perturbation

    def draw(key):
        found = []
        for noise, share in (("normal", True), ("rademacher", False)):
            of_weights = wp_(last, loss, sigma=1.0, noise=noise)
            of_nodes = np_(deep, loss, sigma=1.0, noise=noise, share_noise=share)
            weights = of_weights.value_and_grad(key, w[1], (), hidden, y)[1]
            found.append((weights, of_nodes.value_and_grad(key, w, (), x, y)[1]))
        return found

    delta, inputs = [(y @ w[1].T)[0], y[0]], [x[0], hidden[0]]
    gradients, total = list(map(np.outer, inputs, delta)), sum(np.sum(d**2) for d in delta)
    found = zip((1, -1), (1, 2), draws_of(draw, KEY, NUM_DRAWS), strict=True)
    for sign, number, (of_weights, of_nodes) in found:
        g = gradients[1]
        assert_mean(np.square(of_weights - g), sign * g**2 + np.sum(g**2))
        for drawn, g, d, a in zip(of_nodes, gradients, delta, inputs, strict=True):
            assert_mean(np.square(drawn - g), np.outer(a**2, sign * d**2 + total) / number)


def test_rounding_of_a_step_in_place_does_not_depend_on_its_noise():
    # Float32 has the same noise, and moves by about half a spacing of bfloat16.
    step, x = estimators.in_place_step(lambda w, x: jnp.mean(x @ w), sigma=0.1), np.ones((1, 50), np.float32)
    exact, rounded = (
        np.asarray(step(KEY, jnp.ones((50, 100), dtype), x, learning_rate=0.003)[1], np.float64).ravel()
        for dtype in ("float32", "bfloat16")
    )
    assert set(rounded) <= {1 - 2**-7, 1 - 2**-8, 1, 1 + 2**-7} and 1e-4 < exact.std() < 4e-3
    assert abs(np.corrcoef(exact, rounded - exact)[0, 1]) < 5 / exact.size**0.5


# Forms with injected noise.


def test_activity_node_perturbation_against_numpy(x64):
    params, x, y = jax.tree.map(np.float64, (WEIGHTS, X, Y))
    (w1, b1), (w2, b2) = ((layer["w"], layer["b"]) for layer in params)
    noise, sigma = [np.float64(normals(10 + i, 3, n)) for i, n in enumerate((3, 2))], 0.1
    still = in_order([np.zeros_like(n) for n in noise])
    options: Any = [{"noise": in_order(noise), "antithetic": pairs} for pairs in (False, True)]
    rules = [activity(CURVED, ll.squared_error, sigma=sigma, **each) for each in (*options, {"noise": still})]
    forward, pairs, nothing = (grads for _, _, grads, _ in updates(rules, KEY, params, x, y))
    assert (flat(nothing) == 0).all()

    def passed(step):
        z1 = x @ w1 + b1 + step * noise[0]
        z2 = np.tanh(z1) @ w2 + b2 + step * noise[1]
        return np.concatenate([z1, z2], axis=1), ((z2 - y) ** 2).sum(1)

    (clean, loss), (up, more), (down, less) = map(passed, (0, sigma, -sigma))
    cases = (forward, up - clean, more - loss), (pairs, (up - down) / 2, (more - less) / 2)
    for grads, change, slope in cases:
        delta = 5 / 3 * slope[:, None] * change / (change**2).sum(1, keepdims=True)
        signals = (x, delta[:, :3]), (np.tanh(clean[:, :3]), delta[:, 3:])
        expected = [{"w": a.T @ signal, "b": signal.sum(0)} for a, signal in signals]
        # Loss differences of the order 0.1 lose one digit of 16.
        np.testing.assert_allclose(flat(grads), flat(expected), rtol=1e-12, atol=1e-13)

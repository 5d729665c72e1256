"""Expectations and variances of the estimators, over thousands of draws in one program.

The tolerance is everywhere 5 standard errors, taken from the sample: a right estimator fails a given
coordinate with odds of 6e-7. Where sigma must be small, its bias is far below that: it is of the
order sigma^2 = 1e-4, relative to the gradient, against standard errors of a few hundredths.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning import estimators
from tests.compare import assert_mean, draws_of, flat, normal, update
from tests.test_golden import in_order

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(20)
NUM_DRAWS = 5_000


def is_mean(draws, expected):
    """Returns whether the mean of draws is as expected; a coordinate that never varies has none."""
    assert all(np.asarray(leaf).std(axis=0).min() > 0 for leaf in jax.tree.leaves(draws))
    try:
        assert_mean(draws, expected)
    except AssertionError:
        return False
    return True


# Losses of any pytree.

PARAMS = [jnp.array([0.3, -1.2, 0.8, 0.5]), jnp.array([-0.4, 0.9])]
SLOPES, CURVATURE = jnp.array([1.0, -2.0, 0.5, 0.0, 3.0, -1.5]), normal(1, 6, 6)


def quadratic(params):
    w = jnp.concatenate(params)
    return w @ CURVATURE @ w + w @ SLOPES


def waves(params, damping: Any = 1.0):
    return jnp.sum(damping * jnp.sin(CURVATURE @ jnp.concatenate(params)))


# E sin(a.(w + s)) = sin(a.w) exp(-sigma^2 |a|^2 / 2) for normal noise with sigma = 0.5.
smoothed_waves = partial(waves, damping=np.exp(-(0.5**2) * np.sum(np.square(CURVATURE), axis=1) / 2))
wp, fg = partial(estimators.weight_perturbation, sigma=1.0), estimators.forward_gradient
spsa = partial(
    estimators.spsa(quadratic, perturbation=estimators.spall_gains(a=1.0, c=0.5).perturbation), count=7
)
FORMS = itertools.product(("forward", "central"), ("normal", "rademacher"), (1, 3))


def given(estimate, *losses):
    return lambda key: estimate(key, PARAMS)[1], PARAMS, *losses


DRAWN: dict[str, Any] = {
    # At sigma = 1 no smallness helps. Forward differences leave s^T A s s, whose mean vanishes by symmetry.
    **{
        f"{difference}, {noise}, {number}": given(
            wp(quadratic, difference=difference, noise=noise, num_samples=number), quadratic
        )
        for difference, noise, number in FORMS
    },
    "smoothed, forward": given(wp(waves, sigma=0.5), smoothed_waves, waves),
    "smoothed, central": given(wp(waves, sigma=0.5, difference="central"), smoothed_waves, waves),
    "spsa": given(spsa, quadratic),
    **{
        f"forward gradient, {noise}, {number}": given(fg(waves, noise=noise, num_samples=number), waves)
        for noise, number in itertools.product(("normal", "rademacher"), (1, 3))
    },
}  # fmt: skip
"""Draws, params, a loss whose gradient they have on average, and perhaps one whose gradient they have not."""

# Rules on a model.

X, Y, SEQUENCES = normal(2, 3, 4), normal(3, 3, 2), normal(21, 3, 4, 2)
WEIGHTS: Any = tuple(
    {"w": 0.7 * normal(i, *s), "b": 0.7 * normal(9, s[1])} for i, s in ((4, (4, 3)), (5, (3, 2)))
)
RECURRENT = {"w": 0.7 * normal(6, 2, 3), "u": 0.7 * normal(7, 3, 3), "b": 0.7 * normal(8, 3)}
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


np_, wp_ = partial(ll.node_perturbation, sigma=0.01), partial(ll.weight_perturbation, sigma=0.01)
fg_, activity = ll.forward_gradient, partial(np_, variant="activity")
ALL: Any = {"antithetic": True, "layerwise": True, "share_noise": True, "num_samples": 2}
DRAWN |= {
    # Weight perturbation is the estimator, above.
    "wp, 3 draws": on("curved", wp_, num_samples=3),
    "np": on("curved", np_),
    "np, rademacher": on("curved", np_, noise="rademacher"),
    "np, 3 draws": on("curved", np_, num_samples=3),
    "np, antithetic": on("curved", np_, antithetic=True),
    "np, layerwise": on("curved", np_, layerwise=True),
    "np, shared": on("curved", np_, share_noise=True),
    # In a linear network the loss is a quadratic function of the noise, whose square term has no correlation
    # with the noise: no smallness helps here either.
    "np, linear, rademacher": on("straight", np_, sigma=1.0, noise="rademacher"),
    "np, linear, all options": on("straight", np_, sigma=1.0, **ALL),
    # In one layer the direction of the noise is isotropic, so that N E[(delta.u) u] = delta; in two the
    # change of the second contains that of the first.
    "np, activity, one layer": on("one layer", activity),
    "np, activity, biased": (*on("curved", activity)[:2], None, on("curved", activity)[2]),
    "np through time": on("recurrent", np_),
    "wp through time": on("recurrent", wp_),
    "fg through time": on("recurrent", fg_, perturb="activities"),
    "fg": on("curved", fg_, num_samples=2),
    "fg, rademacher": on("curved", fg_, noise="rademacher"),
    "fg, activities": on("curved", fg_, perturb="activities"),
    "fg, activities, rademacher": on(
        "curved", fg_, perturb="activities", noise="rademacher", num_samples=2
    ),
}  # fmt: skip
FAST = (
    "central, rademacher, 1", "smoothed, forward", "forward gradient, rademacher, 3",
    "wp, 3 draws", "np, linear, all options", "np, activity, one layer", "np, activity, biased",
    "np through time", "fg", "fg, activities, rademacher",
)  # fmt: skip


@pytest.mark.parametrize("names", [FAST, pytest.param(tuple(DRAWN), marks=pytest.mark.slow)], ids=len)
def test_draws_are_on_average_a_gradient(names):
    draws = draws_of(lambda key: {name: DRAWN[name][0](key) for name in names}, KEY, NUM_DRAWS)
    losses = {(name, i): loss for name in names for i, loss in enumerate(DRAWN[name][2:]) if loss}
    exact = jax.jit(lambda: {at: jax.grad(loss)(DRAWN[at[0]][1]) for at, loss in losses.items()})()
    for (name, i), gradient in exact.items():
        assert is_mean(draws[name], gradient) == (i == 0), name


def test_redrawn_feedback_is_on_average_that_of_its_mean_magnitude():
    # E|B| = sd sqrt(2 / pi) of normal magnitudes, which have the standard deviation of the weights.
    gain, of = 0.5, (CURVED, ll.squared_error)
    rule = ll.sign_symmetry(*of, magnitude="redrawn", gain=gain)
    hidden, read_out = draws_of(lambda key: rule.value_and_grad(key, WEIGHTS, (), X, Y)[1], KEY, NUM_DRAWS)
    size = gain * float(WEIGHTS[1]["w"].std()) * (2 / np.pi) ** 0.5
    expected, exact = update(ll.sign_symmetry(*of, gain=size), KEY, WEIGHTS, X, Y)[2]
    assert_mean(hidden, expected)
    for found, leaf in zip(*map(jax.tree.leaves, (read_out, exact)), strict=True):  # which gets its gradient
        np.testing.assert_allclose(found - leaf, 0, atol=1e-5 * np.abs(leaf).max())


def test_initial_feedback_has_the_scale_that_is_documented():
    model = ll.mlp((4, 200, 100, 50))
    widths = itertools.pairwise((4, 200, 100, 50))
    params = tuple({"w": 0.3 * normal(i, *s), "b": jnp.zeros(s[1])} for i, s in enumerate(widths))
    rules = [make(model, ll.squared_error) for make in (ll.feedback_alignment, ll.direct_feedback_alignment)]

    @jax.jit
    def run(params):
        nothing = jax.tree.map(jnp.zeros_like, params)
        aligned, direct = (rule.init(KEY, params, X).feedback for rule in rules)
        return [layer["w"] for layer in aligned[1:]], rules[0].init(KEY, nothing, X).feedback[1]["w"], direct

    aligned, of_zeros, direct = run(params)
    expected = [(b, float(layer["w"].std())) for b, layer in zip(aligned, params[1:], strict=True)]
    expected += [(of_zeros, 200**-0.5), *((b, 50**-0.5) for b in direct.values())]
    assert len(expected) == 5
    for feedback, spread in expected:  # a spread of n normal numbers has the relative error 1 / sqrt(2 n)
        assert abs(feedback.std() / spread - 1) < 5 / np.sqrt(2 * feedback.size)


def test_variances_of_perturbation():
    """Of a linear loss, at any sigma: a draw's coordinate has its own square twice, or not at all by signs.

    `Var[g_i] = +-g_i^2 + |g|^2` of weights; `Var[g_ij] = x_j^2 (+-delta_i^2 + sum_k delta_k^2)` of nodes, the
    sum over the units of all layers.
    """
    w, x, y = [WEIGHTS[0]["w"], WEIGHTS[1]["w"]], X[:1], Y[:1]
    hidden = x @ w[0]
    deep, last = ll.Model(lambda p, x: (x @ p[0]) @ p[1]), ll.Model(lambda p, x: x @ p)

    def loss(output, y):
        return jnp.sum(output * y, axis=-1)

    def draw(key):
        return [
            (
                wp_(last, loss, sigma=1.0, noise=noise).value_and_grad(key, w[1], (), hidden, y)[1],
                np_(deep, loss, sigma=1.0, noise=noise).value_and_grad(key, w, (), x, y)[1],
            )
            for noise in ("normal", "rademacher")
        ]

    delta, inputs = [np.asarray(d)[0] for d in (y @ w[1].T, y)], [np.asarray(a)[0] for a in (x, hidden)]
    gradients, total = list(map(np.outer, inputs, delta)), sum(np.sum(d**2) for d in delta)
    for sign, (of_weights, of_nodes) in zip((1, -1), draws_of(draw, KEY, NUM_DRAWS), strict=True):
        g = gradients[1]
        assert_mean(np.square(of_weights - g), sign * g**2 + np.sum(g**2))
        for found, g, d, a in zip(of_nodes, gradients, delta, inputs, strict=True):
            assert_mean(np.square(found - g), np.outer(a**2, sign * d**2 + total))


# Forms with injected noise.


def test_activity_node_perturbation_against_numpy(x64):
    params, x, y = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (WEIGHTS, X, Y))
    noise, sigma = (normal(10, 3, 3), normal(11, 3, 2)), 0.1
    make = partial(np_, CURVED, ll.squared_error, sigma=sigma, variant="activity")
    grads = update(make(noise=in_order(noise)), KEY, params, x, y)[2]

    w1, b1, w2, b2 = (np.asarray(params[i][name]) for i in range(2) for name in ("w", "b"))
    x, y = np.asarray(x), np.asarray(y)
    z1 = x @ w1 + b1
    z2 = np.tanh(z1) @ w2 + b2
    noisy1 = z1 + sigma * noise[0]
    noisy2 = np.tanh(noisy1) @ w2 + b2 + sigma * noise[1]
    change = np.concatenate([noisy1 - z1, noisy2 - z2], axis=1)
    change_of_loss = ((noisy2 - y) ** 2).sum(1) - ((z2 - y) ** 2).sum(1)
    delta = 5 * change_of_loss[:, None] * change / (change**2).sum(1, keepdims=True)
    signals = (x, delta[:, :3] / 3), (np.tanh(z1), delta[:, 3:] / 3)
    expected = [{"w": a.T @ signal, "b": signal.sum(0)} for a, signal in signals]
    # Loss differences of the order 0.1 lose one digit of 16.
    np.testing.assert_allclose(flat(grads), flat(expected), rtol=1e-12, atol=1e-13)
    still = in_order(jax.tree.map(jnp.zeros_like, noise))
    assert (flat(update(make(noise=still), KEY, params, x, y)[2]) == 0).all()

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
from lax_learning import estimators, metrics
from tests.compare import assert_mean, draws_of, flat, normal, update
from tests.test_golden import in_order

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(20)
NUM_DRAWS, SIGMAS = 5_000, 5.0


def is_mean(draws, expected):
    """Returns whether the mean of draws is as expected; a coordinate that never varies has none."""
    assert all(np.asarray(leaf).std(axis=0).min() > 0 for leaf in jax.tree.leaves(draws))
    try:
        assert_mean(draws, expected)
    except AssertionError:
        return False
    return True


def check_variance(draws, expected):
    """`Var[s^2] = (m_4 - s^4) / N` to leading order."""
    samples = np.asarray(draws, np.float64)
    centred = samples - samples.mean(axis=0)
    variance = samples.var(axis=0, ddof=1)
    error = np.sqrt(((centred**4).mean(axis=0) - variance**2) / len(samples))
    assert (np.abs(variance - expected) < SIGMAS * error).all()


# Losses of any pytree.

PARAMS = {"a": jnp.array([0.3, -1.2, 0.8]), "b": [jnp.array([[0.5, -0.4]]), jnp.array(0.9)]}
SLOPES = {"a": jnp.array([1.0, -2.0, 0.5]), "b": [jnp.array([[0.0, 3.0]]), jnp.array(-1.5)]}
CURVATURE = normal(1, 6, 6)


def to_vector(params):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])


def quadratic(params):
    w = to_vector(params)
    return w @ CURVATURE @ w + metrics.inner_product(params, SLOPES)


def waves(params):
    return jnp.sum(jnp.sin(CURVATURE @ to_vector(params)))


def cubes(params):
    return jnp.sum(to_vector(params) ** 3)


def smoothed_waves(params):
    # E sin(a.(w + s)) = sin(a.w) exp(-sigma^2 |a|^2 / 2) for normal noise with sigma = 0.5.
    damping = jnp.exp(-(0.5**2) * jnp.sum(CURVATURE**2, axis=1) / 2)
    return jnp.sum(damping * jnp.sin(CURVATURE @ to_vector(params)))


def biased_cubes(fourth_moment):
    # ((w + s)^3 - w^3) s / sigma^2 has the mean 3 w^2 + E[s^4] / sigma^2; here sigma = 1.
    return lambda params: cubes(params) + fourth_moment * jnp.sum(to_vector(params))


wp, fg, gains = (
    estimators.weight_perturbation,
    estimators.forward_gradient,
    estimators.spall_gains(a=1.0, c=0.5),
)
FORMS = itertools.product(("forward", "central"), ("normal", "rademacher"), (1, 3))
ESTIMATES: dict[str, tuple[Any, Any, Any]] = {
    # At sigma = 1 no smallness helps. Forward differences leave s^T A s s, whose mean vanishes by symmetry.
    **{
        f"{difference}, {noise}, {number}": (
            wp(quadratic, sigma=1.0, difference=difference, noise=noise, num_samples=number), quadratic, None
        )
        for difference, noise, number in FORMS
    },
    "smoothed, forward": (wp(waves, sigma=0.5), smoothed_waves, waves),
    "smoothed, central": (wp(waves, sigma=0.5, difference="central"), smoothed_waves, waves),
    "cubes, normal": (wp(cubes, sigma=1.0), biased_cubes(3.0), cubes),
    "cubes, rademacher": (wp(cubes, sigma=1.0, noise="rademacher"), biased_cubes(1.0), cubes),
    "spsa": (
        partial(estimators.spsa(quadratic, perturbation=gains.perturbation), count=7), quadratic, None
    ),
    **{
        f"forward gradient, {noise}, {number}": (fg(waves, noise=noise, num_samples=number), waves, None)
        for noise, number in itertools.product(("normal", "rademacher"), (1, 3))
    },
}  # fmt: skip
"""An estimate, the loss whose gradient it has on average, and one whose gradient it has not."""
FAST = ("central, rademacher, 1", "smoothed, forward", "cubes, normal", "forward gradient, rademacher, 3")


@pytest.mark.parametrize("names", [FAST, pytest.param(tuple(ESTIMATES), marks=pytest.mark.slow)], ids=len)
def test_estimates_are_on_average_a_gradient(names):
    draws = draws_of(lambda key: {n: ESTIMATES[n][0](key, PARAMS)[1] for n in names}, KEY, NUM_DRAWS)
    losses = {(n, i): ESTIMATES[n][i] for n in names for i in (1, 2) if ESTIMATES[n][i]}
    exact = jax.jit(lambda params: {at: jax.grad(loss)(params) for at, loss in losses.items()})(PARAMS)
    for (name, i), gradient in exact.items():
        assert is_mean(draws[name], gradient) == (i == 1), name


# Rules on a model.

X, Y, SEQUENCES = normal(2, 3, 4), normal(3, 3, 2), normal(21, 3, 4, 2)
WEIGHTS: Any = tuple(
    {"w": 0.7 * normal(i, *s), "b": 0.7 * normal(9, s[1])} for i, s in ((4, (4, 3)), (5, (3, 2)))
)
NETWORKS = {
    "curved": ll.mlp((4, 3, 2), activation=jnp.tanh),
    "straight": ll.mlp((4, 3, 2), activation=lambda z: z),
    "recurrent": ll.rnn((2, 3, 2)),
    "one layer": ll.mlp((4, 3)),
}
CURVED = NETWORKS["curved"]
np_, wp_, fg_ = ll.node_perturbation, ll.weight_perturbation, ll.forward_gradient
ALL: Any = {"antithetic": True, "layerwise": True, "share_noise": True, "num_samples": 2}
RULES: dict[str, Any] = {
    # Weight perturbation is the estimator, above.
    "wp, 3 draws": ("curved", partial(wp_, sigma=0.01, num_samples=3)),
    "np": ("curved", partial(np_, sigma=0.01)),
    "np, rademacher": ("curved", partial(np_, sigma=0.01, noise="rademacher")),
    "np, 3 draws": ("curved", partial(np_, sigma=0.01, num_samples=3)),
    "np, antithetic": ("curved", partial(np_, sigma=0.01, antithetic=True)),
    "np, layerwise": ("curved", partial(np_, sigma=0.01, layerwise=True)),
    "np, shared": ("curved", partial(np_, sigma=0.01, share_noise=True)),
    # In a linear network the loss is a quadratic function of the noise, whose square term has no correlation
    # with the noise: no smallness helps here either.
    "np, linear, rademacher": ("straight", partial(np_, sigma=1.0, noise="rademacher")),
    "np, linear, all options": ("straight", partial(np_, sigma=1.0, **ALL)),
    # In one layer the direction of the noise is isotropic, so that N E[(delta.u) u] = delta; in two the
    # change of the second contains that of the first.
    "np, activity, one layer": ("one layer", partial(np_, sigma=0.01, variant="activity")),
    "np, activity, biased": ("curved", partial(np_, sigma=0.01, variant="activity")),
    "np through time": ("recurrent", partial(np_, sigma=0.01)),
    "wp through time": ("recurrent", partial(wp_, sigma=0.01)),
    "fg through time": ("recurrent", partial(fg_, perturb="activities")),
    "fg": ("curved", partial(fg_, num_samples=2)),
    "fg, rademacher": ("curved", partial(fg_, noise="rademacher")),
    "fg, activities": ("curved", partial(fg_, perturb="activities")),
    "fg, activities, rademacher": (
        "curved", partial(fg_, perturb="activities", noise="rademacher", num_samples=2)
    ),
}  # fmt: skip
FAST_RULES = (
    "wp, 3 draws", "np, linear, all options", "np, activity, one layer", "np, activity, biased",
    "np through time", "fg", "fg, activities, rademacher",
)  # fmt: skip


@pytest.mark.parametrize("names", [FAST_RULES, pytest.param(tuple(RULES), marks=pytest.mark.slow)], ids=len)
def test_rules_are_unbiased(names):
    recurrent = {"w": 0.7 * normal(6, 2, 3), "u": 0.7 * normal(7, 3, 3), "b": 0.7 * normal(8, 3)}
    params = dict.fromkeys(NETWORKS, WEIGHTS) | {
        "one layer": WEIGHTS[:1],
        "recurrent": (recurrent, WEIGHTS[1]),
    }
    data = dict.fromkeys(NETWORKS, (X, Y)) | {"one layer": (X, X[:, :3]), "recurrent": (SEQUENCES, Y)}

    def draw(key):
        found = {}
        for name in names:
            network, make = RULES[name]
            rule = make(NETWORKS[network], ll.squared_error)
            found[name] = rule.value_and_grad(key, params[network], (), *data[network])[1]
        return found

    def loss(params, name):
        return ll.squared_error(NETWORKS[name].apply(params, data[name][0]), data[name][1]).mean()

    exact = jax.jit(lambda params: {name: jax.grad(loss)(p, name) for name, p in params.items()})(params)
    for name, found in draws_of(draw, KEY, NUM_DRAWS).items():
        assert is_mean(found, exact[RULES[name][0]]) == (name != "np, activity, biased"), name


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
        assert abs(feedback.std() / spread - 1) < SIGMAS / np.sqrt(2 * feedback.size)


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

    delta, inputs = [np.asarray(y @ w[1].T)[0], np.asarray(y)[0]], [np.asarray(x)[0], np.asarray(hidden)[0]]
    total, gradient = sum(np.sum(d**2) for d in delta), np.outer(inputs[1], delta[1])
    for sign, (of_weights, of_nodes) in zip((1, -1), draws_of(draw, KEY, NUM_DRAWS), strict=True):
        check_variance(of_weights, sign * gradient**2 + np.sum(gradient**2))
        for found, d, a in zip(of_nodes, delta, inputs, strict=True):
            check_variance(found, np.outer(a**2, sign * d**2 + total))


# Forms with injected noise.


def test_activity_node_perturbation_against_numpy(x64):
    params, x, y = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (WEIGHTS, X, Y))
    noise, sigma = (normal(10, 3, 3), normal(11, 3, 2)), 0.1
    make = partial(np_, CURVED, ll.squared_error, sigma=sigma, variant="activity")
    grads = update(make(noise=in_order(noise)), KEY, params, x, y)[2]

    w1, b1, w2, b2 = (np.asarray(params[i][name]) for i in range(2) for name in ("w", "b"))
    inputs, targets = np.asarray(x), np.asarray(y)
    z1 = inputs @ w1 + b1
    z2 = np.tanh(z1) @ w2 + b2
    noisy1 = z1 + sigma * noise[0]
    noisy2 = np.tanh(noisy1) @ w2 + b2 + sigma * noise[1]
    change = np.concatenate([noisy1 - z1, noisy2 - z2], axis=1)
    change_of_loss = ((noisy2 - targets) ** 2).sum(1) - ((z2 - targets) ** 2).sum(1)
    delta = 5 * change_of_loss[:, None] * change / (change**2).sum(1, keepdims=True)
    hidden, output = delta[:, :3] / 3, delta[:, 3:] / 3
    expected = (
        {"w": inputs.T @ hidden, "b": hidden.sum(0)},
        {"w": np.tanh(z1).T @ output, "b": output.sum(0)},
    )
    # Loss differences of the order 0.1 lose one digit of 16.
    np.testing.assert_allclose(flat(grads), flat(expected), rtol=1e-12, atol=1e-13)
    still = in_order(jax.tree.map(jnp.zeros_like, noise))
    assert (flat(update(make(noise=still), KEY, params, x, y)[2]) == 0).all()

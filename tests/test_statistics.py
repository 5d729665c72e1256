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
from tests.compare import QUICK, flat, slow_but
from tests.test_golden import in_order

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(20)
NUM_DRAWS = 10_000
SIGMAS = 5.0


def drawn(seed, *shape):
    """Normal numbers, from NumPy, which compiles nothing."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def samples_of(value_and_grad, *args, num_draws=NUM_DRAWS):
    """Gradients of many draws, `[draws, parameters]` in float64."""
    keys = jax.random.split(KEY, num_draws)
    grads = jax.jit(jax.vmap(lambda key: value_and_grad(key, *args)[1]), compiler_options=QUICK)(keys)
    leaves = [np.asarray(leaf, np.float64).reshape(num_draws, -1) for leaf in jax.tree.leaves(grads)]
    return np.concatenate(leaves, axis=1)


def deviation(samples, expected):
    """Distance of the mean from what is expected, in standard errors of each coordinate."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert (error > 0).all(), "a coordinate never varies"
    return np.abs(samples.mean(axis=0) - expected) / error


def variance_deviation(samples, expected):
    """Distance of the sample variance from what is expected, in standard errors of each coordinate.

    `Var[s^2] = (m_4 - s^4) / N` to leading order.
    """
    centred = samples - samples.mean(axis=0)
    variance = samples.var(axis=0, ddof=1)
    error = np.sqrt(((centred**4).mean(axis=0) - variance**2) / len(samples))
    return np.abs(variance - expected) / error


# Losses of any pytree.

PARAMS = {"a": jnp.array([0.3, -1.2, 0.8]), "b": [jnp.array([[0.5, -0.4]]), jnp.array(0.9)]}
SLOPES = {"a": jnp.array([1.0, -2.0, 0.5]), "b": [jnp.array([[0.0, 3.0]]), jnp.array(-1.5)]}
CURVATURE = jnp.asarray(drawn(1, 6, 6))


def to_vector(params):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])


def linear(params):
    return metrics.inner_product(params, SLOPES)


def quadratic(params):
    w = to_vector(params)
    return w @ CURVATURE @ w + linear(params)


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


wp, gains = estimators.weight_perturbation, estimators.spall_gains(a=1.0, c=0.5)
ESTIMATES = {
    # At sigma = 1 no smallness helps. Forward differences leave s^T A s s, whose mean vanishes by symmetry.
    **{
        f"{difference}, {noise}, {number}": (
            wp(quadratic, sigma=1.0, difference=difference, noise=noise, num_samples=number),
            quadratic,
            None,
        )
        for difference, noise, number in itertools.product(
            ("forward", "central"), ("normal", "rademacher"), (1, 3)
        )
    },
    "smoothed, forward": (wp(waves, sigma=0.5), smoothed_waves, waves),
    "smoothed, central": (wp(waves, sigma=0.5, difference="central"), smoothed_waves, waves),
    "cubes, normal": (wp(cubes, sigma=1.0), biased_cubes(3.0), cubes),
    "cubes, rademacher": (wp(cubes, sigma=1.0, noise="rademacher"), biased_cubes(1.0), cubes),
    "spsa": (
        partial(estimators.spsa(quadratic, perturbation=gains.perturbation), count=7), quadratic, None
    ),
    **{
        f"forward gradient, {noise}, {number}": (
            estimators.forward_gradient(waves, noise=noise, num_samples=number), waves, None
        )
        for noise, number in itertools.product(("normal", "rademacher"), (1, 3))
    },
}  # fmt: skip
"""An estimate, the loss whose gradient it has on average, and one whose gradient it has not."""
FAST_ESTIMATES = (
    "central, rademacher, 1",
    "smoothed, forward",
    "cubes, normal",
    "spsa",
    "forward gradient, rademacher, 3",
)


@pytest.mark.parametrize("name", slow_but(FAST_ESTIMATES, ESTIMATES))
def test_estimates_are_on_average_a_gradient(name):
    estimate, loss, other = ESTIMATES[name]
    samples = samples_of(estimate, PARAMS)
    assert deviation(samples, flat(jax.jit(jax.grad(loss))(PARAMS))).max() < SIGMAS
    if other is not None:
        assert deviation(samples, flat(jax.jit(jax.grad(other))(PARAMS))).max() > SIGMAS


# Rules on a model.

X, Y, SEQUENCES = (
    jnp.asarray(drawn(seed, *shape)) for seed, shape in ((2, (3, 4)), (3, (3, 2)), (21, (3, 4, 2)))
)
NORMAL = jax.nn.initializers.normal(0.7)


def make_network(activation):
    return ll.mlp((4, 3, 2), activation=activation, w_init=NORMAL, b_init=NORMAL)


def linear_loss(output, y):
    return jnp.sum(output * y, axis=-1)


CURVED, STRAIGHT, ONE_LAYER = make_network(jnp.tanh), make_network(lambda z: z), ll.mlp((4, 2))
RECURRENT = ll.rnn((2, 3, 2), w_init=NORMAL, recurrent_init=NORMAL, b_init=NORMAL)
WEIGHTS = jax.jit(CURVED.init)(jax.random.key(4))


def exact(network, loss, params=WEIGHTS, x=X, y=Y):
    return flat(jax.jit(jax.grad(lambda p: jnp.mean(loss(network.apply(p, x), y))))(params))


np_, wp_, fg = ll.node_perturbation, ll.weight_perturbation, ll.forward_gradient
ALL: Any = {"antithetic": True, "layerwise": True, "share_noise": True, "num_samples": 2}
UNBIASED: dict[str, tuple[ll.Model, Any]] = {
    "wp": (CURVED, partial(wp_, sigma=0.01)),
    "wp, central": (CURVED, partial(wp_, sigma=0.01, difference="central")),
    "wp, rademacher": (CURVED, partial(wp_, sigma=0.01, noise="rademacher")),
    "wp, 3 draws": (CURVED, partial(wp_, sigma=0.01, num_samples=3)),
    "np": (CURVED, partial(np_, sigma=0.01)),
    "np, rademacher": (CURVED, partial(np_, sigma=0.01, noise="rademacher")),
    "np, 3 draws": (CURVED, partial(np_, sigma=0.01, num_samples=3)),
    "np, antithetic": (CURVED, partial(np_, sigma=0.01, antithetic=True)),
    "np, layerwise": (CURVED, partial(np_, sigma=0.01, layerwise=True)),
    "np, shared": (CURVED, partial(np_, sigma=0.01, share_noise=True)),
    "np, all options": (CURVED, partial(np_, sigma=0.01, **ALL)),
    # In a linear network the loss is a quadratic function of the noise, whose square term has no correlation
    # with the noise: no smallness helps here either.
    "np, linear": (STRAIGHT, partial(np_, sigma=1.0)),
    "np, linear, rademacher": (STRAIGHT, partial(np_, sigma=1.0, noise="rademacher")),
    "np, linear, all options": (STRAIGHT, partial(np_, sigma=1.0, **ALL)),
    # In one layer the direction of the noise is isotropic, so that N E[(delta.u) u] = delta.
    "np, activity, one layer": (ONE_LAYER, partial(np_, sigma=0.01, variant="activity")),
    "np through time": (RECURRENT, partial(np_, sigma=0.01)),
    "wp through time": (RECURRENT, partial(wp_, sigma=0.01)),
    "fg through time": (RECURRENT, partial(fg, perturb="activities")),
    "fg": (CURVED, partial(fg, num_samples=2)),
    "fg, rademacher": (CURVED, partial(fg, noise="rademacher")),
    "fg, activities": (CURVED, partial(fg, perturb="activities")),
    "fg, activities, rademacher": (
        CURVED, partial(fg, perturb="activities", noise="rademacher", num_samples=2)
    ),
}  # fmt: skip
FAST_RULES = (
    "wp, 3 draws",
    "np, linear, all options",
    "np, activity, one layer",
    "np through time",
    "fg",
    "fg, activities, rademacher",
)


@pytest.mark.parametrize("name", slow_but(FAST_RULES, UNBIASED))
def test_rules_are_unbiased(name):
    network, make = UNBIASED[name]
    params, x = jax.jit(network.init)(jax.random.key(4)), SEQUENCES if network is RECURRENT else X
    samples = samples_of(make(network, ll.squared_error).value_and_grad, params, (), x, Y)
    assert deviation(samples, exact(network, ll.squared_error, params, x)).max() < SIGMAS


def test_activity_node_perturbation_is_biased_in_two_layers():
    # The change of the second layer contains that of the first.
    rule = np_(CURVED, ll.squared_error, sigma=0.01, variant="activity")
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), X, Y)
    assert deviation(samples, exact(CURVED, ll.squared_error)).max() > SIGMAS


def test_redrawn_feedback_is_on_average_that_of_its_mean_magnitude():
    # E|B| = sd sqrt(2 / pi) of normal magnitudes, which have the standard deviation of the weights.
    gain = 0.5
    rule = ll.sign_symmetry(CURVED, ll.squared_error, magnitude="redrawn", gain=gain)
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), X, Y)
    size = gain * float(WEIGHTS[1]["w"].std()) * (2 / np.pi) ** 0.5
    mean = ll.sign_symmetry(CURVED, ll.squared_error, gain=size)
    expected = flat(jax.jit(mean.value_and_grad)(KEY, WEIGHTS, (), X, Y)[1])
    hidden = sum(leaf.size for leaf in WEIGHTS[0].values())
    assert deviation(samples[:, :hidden], expected[:hidden]).max() < SIGMAS
    read_out = exact(CURVED, ll.squared_error)[hidden:]  # which gets its exact gradient
    np.testing.assert_allclose(samples[:, hidden:] - read_out, 0, atol=1e-5 * np.abs(read_out).max())


def test_initial_feedback_has_the_scale_that_is_documented():
    normal = jax.nn.initializers.normal(0.3)
    model = ll.mlp((4, 200, 100, 50), w_init=normal)
    params = jax.jit(model.init)(KEY)
    rules = (
        ll.feedback_alignment(model, ll.squared_error),
        ll.direct_feedback_alignment(model, ll.squared_error),
    )

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


# Variances.


def test_variance_of_weight_perturbation():
    # Var[g_i] = g_i^2 + |g|^2: of a linear loss at any sigma.
    network = ll.mlp((4, 3))
    params = jax.jit(network.init)(jax.random.key(7))
    x, y = X[:1], jnp.array([[1.0, -0.5, 2.0]])
    make = ll.weight_perturbation
    rule = make(network, linear_loss, sigma=1.0)
    gradient = exact(network, linear_loss, params, x, y)
    samples = samples_of(rule.value_and_grad, params, (), x, y)
    assert variance_deviation(samples, gradient**2 + np.sum(gradient**2)).max() < SIGMAS

    signs = make(network, linear_loss, sigma=1.0, noise="rademacher")
    samples_of_signs = samples_of(signs.value_and_grad, params, (), x, y)
    expected = np.sum(gradient**2) - gradient**2
    assert variance_deviation(samples_of_signs, expected).max() < SIGMAS
    np.testing.assert_allclose(expected.sum(), (gradient.size - 1) * np.sum(gradient**2))  # in total D - 1


@pytest.mark.parametrize("noise", ["normal", "rademacher"])
def test_variance_of_node_perturbation(noise):
    # Var[g_ij] = +-delta_i^2 x_j^2 + x_j^2 sum_k delta_k^2, the sum over the units of all layers.
    x, y = X[:1], Y[:1]
    rule = ll.node_perturbation(STRAIGHT, linear_loss, sigma=1.0, noise=noise)
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), x, y)
    signals = ll.backprop(STRAIGHT, linear_loss).signals
    assert signals is not None
    deltas = jax.jit(lambda: signals(KEY, WEIGHTS, (), x, y).deltas)()
    inputs = jax.jit(lambda: ll.tapped(STRAIGHT).run(WEIGHTS, x).inputs)()
    total = sum(float(jnp.sum(delta**2)) for delta in deltas.values())
    own = 1.0 if noise == "normal" else -1.0
    expected = []
    for name, delta in deltas.items():
        of_unit = own * np.asarray(delta[0]) ** 2 + total
        expected += [of_unit, np.outer(np.asarray(inputs[name][0][0]) ** 2, of_unit).ravel()]  # b, then w
    assert variance_deviation(samples, np.concatenate(expected)).max() < SIGMAS


# The activity form against NumPy.


def test_activity_node_perturbation_against_numpy(x64):
    del x64
    network = ll.mlp((4, 3, 2), activation=jnp.tanh, dtype=jnp.float64)
    params = jax.jit(network.init)(jax.random.key(9))
    x, y = X.astype(jnp.float64), Y.astype(jnp.float64)
    generator = np.random.default_rng(0)
    noise = tuple(generator.normal(size=shape) for shape in [(3, 3), (3, 2)])
    sigma = 0.1
    rule = ll.node_perturbation(
        network,
        ll.squared_error,
        sigma=sigma,
        variant="activity",
        noise=in_order(tuple(jnp.asarray(n) for n in noise)),
    )
    _, grads, _ = jax.jit(rule.value_and_grad)(KEY, params, (), x, y)

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


def test_activity_node_perturbation_survives_zero_noise():
    rule = ll.node_perturbation(
        CURVED,
        ll.squared_error,
        sigma=0.1,
        variant="activity",
        noise=lambda key, like: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like),
    )
    assert (flat(jax.jit(rule.value_and_grad)(KEY, WEIGHTS, (), X, Y)[1]) == 0).all()


@pytest.mark.parametrize(("even", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("nodes", [True, False])
def test_limit_of_perturbation_is_the_forward_gradient(x64, nodes, even, order):
    # The error of a one-sided difference is of the order sigma, that of a two-sided one sigma^2: halving
    # sigma divides it by 2 or 4, up to the next order, a share of about sigma = 1e-3.
    del x64
    network = ll.mlp((4, 3, 2), activation=jnp.tanh, dtype=jnp.float64)
    params = jax.jit(network.init)(jax.random.key(8))
    x, y = X.astype(jnp.float64), Y.astype(jnp.float64)
    shapes = [(3, 3), (3, 2)]
    if nodes:
        noise = tuple(jnp.asarray(drawn(i, *s), jnp.float64) for i, s in enumerate(shapes))
        rule = ll.forward_gradient(network, ll.squared_error, perturb="activities", noise=in_order(noise))
    else:
        noise = jax.tree.map(lambda leaf: jnp.asarray(drawn(0, *leaf.shape), leaf.dtype), params)
        rule = ll.forward_gradient(network, ll.squared_error, noise=in_order(noise))
    limit = jax.jit(rule.value_and_grad)(KEY, params, (), x, y)[1]

    @jax.jit
    def gradient(sigma):
        if nodes:
            rule = ll.node_perturbation(
                network, ll.squared_error, sigma=sigma, antithetic=even, noise=in_order(noise)
            )
        else:
            difference = "central" if even else "forward"
            rule = ll.weight_perturbation(
                network, ll.squared_error, sigma=sigma, difference=difference, noise=in_order(noise)
            )
        return rule.value_and_grad(KEY, params, (), x, y)[1]

    def error(sigma):
        return np.linalg.norm(flat(gradient(sigma)) - flat(limit)) / np.linalg.norm(flat(limit))

    assert abs(error(1e-3) / error(5e-4) / 2**order - 1) < 0.02
    assert error(1e-6) < 1e-4

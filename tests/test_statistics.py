"""Expectations and variances of the estimators, over thousands of draws in one program.

The tolerance is everywhere 5 standard errors, taken from the sample: a right estimator fails a given
coordinate with odds of 6e-7. Where sigma must be small, its bias is far below that: it is of the
order sigma^2 = 1e-4, relative to the gradient, against standard errors of a few hundredths.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from experiments.microlearning import notebook
from lax_learning import estimators, metrics
from tests.compare import slow_but
from tests.test_golden import in_order

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it", "always_default_passes")

KEY = jax.random.key(20)
NUM_DRAWS = 20_000
SIGMAS = 5.0
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # each program runs once


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def drawn(seed, *shape):
    """Normal numbers, from NumPy, which compiles nothing."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def samples_of(value_and_grad, *args, num_draws=NUM_DRAWS):
    """Gradients of many draws, `[draws, parameters]` in float64."""
    keys = jax.random.split(KEY, num_draws)
    grads = jax.jit(jax.vmap(lambda key: value_and_grad(key, *args)[1]), compiler_options=FAST_COMPILE)(keys)
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


def slope_of(loss):
    return jax.jit(jax.grad(loss))(PARAMS)


OPTIONS = [
    {"difference": difference, "noise": noise, "num_samples": num_samples}
    for difference, num_samples in (("forward", 1), ("forward", 3), ("central", 1))
    for noise in ("normal", "rademacher")
]


@pytest.mark.parametrize(
    "options", slow_but(OPTIONS[::2], OPTIONS), ids=lambda o: "-".join(map(str, o.values()))
)
def test_weight_perturbation_is_exactly_unbiased_up_to_quadratic_losses(options):
    # At sigma = 1 no smallness helps. Forward differences leave s^T A s s, whose mean vanishes by symmetry.
    estimate = estimators.weight_perturbation(quadratic, sigma=1.0, **options)
    samples = samples_of(estimate, PARAMS)
    assert deviation(samples, flat(slope_of(quadratic))).max() < SIGMAS


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_weight_perturbation_is_unbiased_for_the_smoothed_loss(difference):
    # E sin(a.(w + s)) = sin(a.w) exp(-sigma^2 |a|^2 / 2) for normal noise.
    sigma = 0.5
    estimate = estimators.weight_perturbation(waves, sigma=sigma, difference=difference)
    samples = samples_of(estimate, PARAMS)

    def smoothed(params):
        damping = jnp.exp(-(sigma**2) * jnp.sum(CURVATURE**2, axis=1) / 2)
        return jnp.sum(damping * jnp.sin(CURVATURE @ to_vector(params)))

    assert deviation(samples, flat(slope_of(smoothed))).max() < SIGMAS
    assert deviation(samples, flat(slope_of(waves))).max() > SIGMAS


@pytest.mark.parametrize(("noise", "fourth_moment"), [("normal", 3.0), ("rademacher", 1.0)])
def test_bias_of_weight_perturbation_on_cubes(noise, fourth_moment):
    # ((w + s)^3 - w^3) s / sigma^2 has the mean 3 w^2 + E[s^4] / sigma^2.
    sigma = 1.0
    samples = samples_of(estimators.weight_perturbation(cubes, sigma=sigma, noise=noise), PARAMS)
    gradient = flat(slope_of(cubes))
    assert deviation(samples, gradient + fourth_moment * sigma**2).max() < SIGMAS
    assert deviation(samples, gradient).max() > SIGMAS


def test_spsa_is_unbiased_on_a_quadratic():
    gains = estimators.spall_gains(a=1.0, c=0.5)
    estimate = estimators.spsa(quadratic, perturbation=gains.perturbation)
    samples = samples_of(lambda key: estimate(key, PARAMS, count=7))
    assert deviation(samples, flat(slope_of(quadratic))).max() < SIGMAS


@pytest.mark.parametrize("noise", ["normal", "rademacher"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_forward_gradient_is_unbiased_on_any_loss(noise, num_samples):
    estimate = estimators.forward_gradient(waves, noise=noise, num_samples=num_samples)
    assert deviation(samples_of(estimate, PARAMS), flat(slope_of(waves))).max() < SIGMAS


# Rules on a model.

X, Y, SEQUENCES = (
    jnp.asarray(drawn(seed, *shape)) for seed, shape in ((2, (3, 4)), (3, (3, 2)), (21, (3, 4, 2)))
)


def make_network(activation):
    normal = jax.nn.initializers.normal(0.7)
    return ll.mlp((4, 3, 2), activation=activation, w_init=normal, b_init=normal)


def linear_loss(output, y):
    return jnp.sum(output * y, axis=-1)


CURVED, STRAIGHT = make_network(jnp.tanh), make_network(lambda z: z)
WEIGHTS = jax.jit(CURVED.init)(jax.random.key(4))


def exact(network, loss, params=WEIGHTS, x=X, y=Y):
    return flat(jax.jit(jax.grad(lambda p: jnp.mean(loss(network.apply(p, x), y))))(params))


PERTURBATIONS = {
    "wp": (ll.weight_perturbation, {}),
    "wp_central": (ll.weight_perturbation, {"difference": "central"}),
    "wp_rademacher": (ll.weight_perturbation, {"noise": "rademacher"}),
    "wp_draws": (ll.weight_perturbation, {"num_samples": 3}),
    "np": (ll.node_perturbation, {}),
    "np_rademacher": (ll.node_perturbation, {"noise": "rademacher"}),
    "np_draws": (ll.node_perturbation, {"num_samples": 3}),
    "np_antithetic": (ll.node_perturbation, {"antithetic": True}),
    "np_layerwise": (ll.node_perturbation, {"layerwise": True}),
    "np_shared": (ll.node_perturbation, {"share_noise": True}),
    "np_all": (
        ll.node_perturbation,
        {"antithetic": True, "layerwise": True, "share_noise": True, "num_samples": 2},
    ),
}


ALIKE = {"wp_rademacher", "np_rademacher", "np_draws"}


@pytest.mark.parametrize("name", slow_but(PERTURBATIONS.keys() - ALIKE, PERTURBATIONS))
def test_perturbation_rules_are_unbiased_for_small_sigma(name):
    make, options = PERTURBATIONS[name]
    rule = make(CURVED, ll.squared_error, sigma=0.01, **options)
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), X, Y)
    assert deviation(samples, exact(CURVED, ll.squared_error)).max() < SIGMAS


RECURRENT = ll.rnn(
    (2, 3, 2),
    w_init=jax.nn.initializers.normal(0.7),
    recurrent_init=jax.nn.initializers.normal(0.7),
    b_init=jax.nn.initializers.normal(0.7),
)


@pytest.mark.parametrize(
    "make",
    [
        partial(ll.node_perturbation, sigma=0.01),
        partial(ll.weight_perturbation, sigma=0.01),
        partial(ll.forward_gradient, perturb="activities"),
    ],
    ids=["np", "wp", "fg"],
)
def test_perturbation_through_time_estimates_the_gradient(make):
    params = jax.jit(RECURRENT.init)(jax.random.key(22))
    expected = exact(RECURRENT, ll.squared_error, params, SEQUENCES)
    samples = samples_of(make(RECURRENT, ll.squared_error).value_and_grad, params, (), SEQUENCES, Y)
    assert deviation(samples, expected).max() < SIGMAS
    # and no other quantity: not that of a network whose states are forgotten
    forgetful = jax.tree.map(jnp.array, params)
    forgetful[0]["u"] *= 0
    assert deviation(samples, exact(RECURRENT, ll.squared_error, forgetful, SEQUENCES)).max() > SIGMAS


@pytest.mark.parametrize(
    "name", slow_but(["np_rademacher", "np_all"], [name for name in PERTURBATIONS if name.startswith("np")])
)
def test_node_perturbation_is_exactly_unbiased_in_a_linear_network(name):
    # The loss is a quadratic function of the noise, whose square term has no correlation with the noise.
    make, options = PERTURBATIONS[name]
    rule = make(STRAIGHT, ll.squared_error, sigma=1.0, **options)
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), X, Y)
    assert deviation(samples, exact(STRAIGHT, ll.squared_error)).max() < SIGMAS


@pytest.mark.parametrize(
    ("num_samples", "noise", "perturb"),
    slow_but(
        [(2, "normal", "weights"), (2, "rademacher", "activities"), (1, "normal", "activities")],
        itertools.product((1, 2), ("normal", "rademacher"), ("weights", "activities")),
    ),
)
def test_forward_gradient_rules_are_unbiased(perturb, noise, num_samples):
    rule = ll.forward_gradient(
        CURVED, ll.squared_error, perturb=perturb, noise=noise, num_samples=num_samples
    )
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), X, Y)
    assert deviation(samples, exact(CURVED, ll.squared_error)).max() < SIGMAS


def test_tutorial_node_perturbation_estimates_another_quantity():
    network = make_network(jax.nn.sigmoid)
    rule = notebook.node_perturbation((jax.nn.sigmoid, lambda z: z), ll.squared_error, sigma=0.01)
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), X, Y)
    assert deviation(samples, exact(network, ll.squared_error)).max() > SIGMAS

    def loss_of_hidden(h):
        return jnp.mean(ll.squared_error(h @ WEIGHTS[1]["w"] + WEIGHTS[1]["b"], Y))

    hidden = jax.nn.sigmoid(X @ WEIGHTS[0]["w"] + WEIGHTS[0]["b"])
    signal = jax.grad(loss_of_hidden)(hidden)  # dL/dh, without the derivative of the activation
    expected = flat({"w": X.T @ signal, "b": signal.sum(axis=0)})
    assert deviation(samples[:, : expected.size], expected).max() < SIGMAS


def test_activity_node_perturbation_is_unbiased_in_one_layer_and_biased_in_two():
    # In one layer the direction of the noise is isotropic, so that N E[(delta.u) u] = delta. In two,
    # the change of the second layer contains that of the first.
    single = ll.mlp((4, 3))
    params, y = single.init(jax.random.key(5)), jnp.ones((3, 3))
    make = ll.node_perturbation
    rule = make(single, ll.squared_error, sigma=0.01, variant="activity")
    samples = samples_of(rule.value_and_grad, params, (), X, y)
    assert deviation(samples, exact(single, ll.squared_error, params, X, y)).max() < SIGMAS

    rule = make(CURVED, ll.squared_error, sigma=0.01, variant="activity")
    samples = samples_of(rule.value_and_grad, WEIGHTS, (), X, Y)
    assert deviation(samples, exact(CURVED, ll.squared_error)).max() > SIGMAS


FEEDBACK_RULES = {
    "feedback_alignment": lambda: ll.feedback_alignment(CURVED, ll.squared_error),
    "direct_feedback_alignment": lambda: ll.direct_feedback_alignment(CURVED, ll.squared_error),
    "unit": lambda: ll.sign_symmetry(CURVED, ll.squared_error, magnitude="unit"),
    "fixed": lambda: ll.sign_symmetry(CURVED, ll.squared_error, magnitude="fixed"),
    "redrawn": lambda: ll.sign_symmetry(CURVED, ll.squared_error, magnitude="redrawn"),
    "kolen_pollack": lambda: ll.kolen_pollack(CURVED, ll.squared_error, decay=0.0, optimizer=optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", FEEDBACK_RULES)
def test_feedback_rules_are_biased_below_the_output_and_exact_there(name):
    rule = FEEDBACK_RULES[name]()
    state = jax.jit(rule.init)(jax.random.key(6), WEIGHTS, X)
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(ll.squared_error(CURVED.apply(p, X), Y))))(WEIGHTS)
    keys = jax.random.split(KEY, 1000)
    grads = jax.jit(
        jax.vmap(lambda key: rule.value_and_grad(key, WEIGHTS, state, X, Y)[1]), compiler_options=FAST_COMPILE
    )(keys)
    hidden = np.asarray(grads[0]["w"], np.float64)
    error = hidden.std(axis=0, ddof=1) / np.sqrt(len(keys))
    # Far more than rounding, for the rules that draw nothing.
    threshold = SIGMAS * error + 1e-2 * np.abs(gradient[0]["w"]).max()
    assert (np.abs(hidden.mean(axis=0) - gradient[0]["w"]) > threshold).any()
    assert (error > 0).all() == (name == "redrawn")
    for entry in ("w", "b"):  # sums of three products of the size of the gradient
        np.testing.assert_allclose(grads[1][entry][0], gradient[1][entry], rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize(("noise", "own"), [("normal", 1), ("rademacher", -1)])
def test_snr_of_weight_perturbation_on_a_linear_loss(num_samples, noise, own):
    estimate = estimators.weight_perturbation(linear, sigma=1.0, num_samples=num_samples, noise=noise)
    samples = samples_of(estimate, PARAMS).astype(np.float32)
    value, error = jax.jit(lambda: metrics.snr(samples).total)()
    expected = num_samples / (6 + own)  # SNR = S / (n + 1) for normal noise, S / (n - 1) for signs
    assert abs(value - expected) < SIGMAS * error
    assert error < 0.1 * expected  # so that S/n would not pass


# Limits for sigma to 0, in float64.


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

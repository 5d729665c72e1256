"""Generators of curves: against loops written out, and the moments of what they draw."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike
from numpy.testing import assert_allclose, assert_array_equal

from lax_learning.symbolic import dsn_generator, gaussian_process_generator, mlp_generator
from tests.compare import slow_but

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
STANDARD_ERRORS = 5
ALPHA = np.array([[0.5, -2.0], [0.0, 1.5], [1.0, 0.2]])

GENERATORS = {
    "mlp": lambda **options: mlp_generator(2, 3, hidden=(4,), **options),
    "dsn": lambda **options: dsn_generator(2, 3, hidden=(4,), norm="softmax", bias=True, **options),
    "given alpha": lambda **options: dsn_generator(2, 3, hidden=(4,), alpha=ALPHA, **options),
    "gaussian process": lambda **options: gaussian_process_generator(2, 3, num_features=8, **options),
}


def points(number=7, dtype: DTypeLike = np.float32):
    return np.random.default_rng(1).normal(size=(number, 2)).astype(dtype)


def some_params(generator):
    """Params of the right structure from NumPy, which need no compiling."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), jax.eval_shape(generator.init, KEY)
    )


def draw(generator, x):
    """Some params and the latents."""
    params = some_params(generator)
    return params, np.asarray(jax.jit(generator.apply)(params, x))


def slopes_at(generator, params, x):
    """Derivatives of the latents by the input, `[points, latents, columns]`."""
    return jax.vmap(jax.jacobian(lambda point: generator.apply(params, point[None])[0]))(x)


def derivatives(generator, x):
    """Some params and the Jacobian of the latents, `[latents, points, columns]`."""
    params = some_params(generator)
    slopes = jax.jit(lambda params, x: slopes_at(generator, params, x))(params, x)
    return params, np.asarray(slopes).swapaxes(0, 1)


def relu_by_loops(layers, x):
    """One point through ReLU layers and a linear one, number by number, in float64."""
    a = [float(v) for v in x]
    for i, layer in enumerate(layers):
        w = np.asarray(layer["w"], np.float64)
        z = []
        for n in range(w.shape[1]):
            total = float(layer["b"][n]) if "b" in layer else 0.0
            for m in range(w.shape[0]):
                total += a[m] * w[m, n]
            z.append(total if i == len(layers) - 1 else max(total, 0.0))
        a = z
    return a


def mask_by_loops(alpha, norm, prune):
    mask = np.array(alpha, np.float64)
    for row in mask:
        if norm == "softmax":
            powers = [math.exp(abs(v)) for v in row]
            row[:] = [p / sum(powers) for p in powers]
        for j, v in enumerate(row):
            if prune and v < prune:
                row[j] = 0.0
    return mask


def dsn_by_loops(params, x, alpha, norm, prune):
    mask = mask_by_loops(alpha, norm, prune)
    latents = np.zeros((len(x), len(mask)))
    for i, row in enumerate(mask):
        own = [{name: v[i] for name, v in layer.items()} for layer in params["networks"]]
        for p, point in enumerate(np.asarray(x, np.float64)):
            (latents[p, i],) = relu_by_loops(own, point * row)
    return latents


# Values.


@pytest.mark.parametrize("hidden", slow_but([[4, 5]], [[4, 5], []]))
def test_mlp(x64, hidden):
    x = points(dtype=np.float64)
    params, latents = draw(mlp_generator(2, 3, hidden=hidden, dtype=jnp.float64), x)
    assert_allclose(latents, [relu_by_loops(params, point) for point in x], rtol=1e-12, atol=1e-14)


MASKS = [
    (False, "none", 0.3, True),
    (True, "none", 0.0, True),
    (True, "none", 0.3, False),
    (False, "softmax", 0.4, "zeros"),
    (True, "softmax", 0.0, True),
]


@pytest.mark.parametrize(("given", "norm", "prune", "bias"), MASKS)
def test_dsn(x64, given, norm, prune, bias):
    """And its gradient by alpha, against differences."""
    options = {"norm": norm, "prune": prune, "bias": bias, "alpha": ALPHA if given else None}
    x = points(3, dtype=np.float64)
    generator = dsn_generator(2, 3, hidden=(4, 5), dtype=jnp.float64, **options)
    params = some_params(generator)
    assert given == ("alpha" not in params)
    alpha = ALPHA if given else params["alpha"]
    if prune:
        assert 0 < np.sum(mask_by_loops(alpha, norm, prune) != mask_by_loops(alpha, norm, 0)) < 6

    def total(params, x):
        latents = generator.apply(params, x)
        return jnp.sum(latents**2), latents

    (_, latents), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params, x)
    by_loops = partial(dsn_by_loops, params, x, norm=norm, prune=prune)
    assert_allclose(latents, by_loops(alpha), rtol=1e-12, atol=1e-14)
    # The squares of piecewise linear functions: what is left are third derivatives of the softmax.
    step = 1e-5
    for i, j in np.ndindex(*([0, 0] if given else [3, 2])):
        change = np.zeros((3, 2))
        change[i, j] = step
        slope = (np.sum(by_loops(alpha + change) ** 2) - np.sum(by_loops(alpha - change) ** 2)) / (2 * step)
        assert_allclose(np.asarray(gradient["alpha"])[i, j], slope, rtol=1e-6, atol=1e-7)


def test_gaussian_process_by_loops(x64):
    options = {"length_scale": 0.7, "scale": 1.3, "num_features": 6, "dtype": jnp.float64}
    x = points(dtype=np.float64)
    params, latents = draw(gaussian_process_generator(2, 3, **options), x)
    expected = np.zeros((len(x), 3))
    for p, i, m in np.ndindex(len(x), 3, 6):
        phase = sum(x[p, j] * params["w"][j, m] for j in range(2)) / 0.7 + params["b"][m]
        expected[p, i] += 1.3 * math.sqrt(2 / 6) * params["a"][m, i] * math.cos(phase)
    assert_allclose(latents, expected, rtol=1e-12, atol=1e-14)


# What is drawn.


def assert_mean(samples, expected, variance):
    """The mean of independent samples of a known variance (a bound of it) is the expected one."""
    samples = np.asarray(samples, np.float64)
    assert abs(samples.mean() - expected) < STANDARD_ERRORS * math.sqrt(variance / samples.size)


def assert_uniform(samples, bound):
    samples = np.asarray(samples, np.float64)
    assert np.abs(samples).max() <= bound
    # None of n lies in the outermost share of 20/n with a probability of exp(-20).
    assert np.abs(samples).max() > bound * (1 - 20 / samples.size)
    assert_mean(samples, 0, bound**2 / 3)
    assert_mean(samples**2, bound**2 / 3, bound**4 * (1 / 5 - 1 / 9))


def assert_normal(samples, deviation):
    samples = np.asarray(samples, np.float64)
    assert_mean(samples, 0, deviation**2)
    assert_mean(samples**2, deviation**2, 2 * deviation**4)
    assert_mean(samples**4, 3 * deviation**4, (105 - 9) * deviation**8)


def draws(generator, number=200):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(generator.init))(jax.random.split(KEY, number)))


def assert_no_two_are_the_same(params):
    numbers = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert len(np.unique(numbers)) > 0.99 * len(numbers)


def test_mlp_starts_as_torch_does():
    params = draws(mlp_generator(2, 3, hidden=(6,)))
    for layer, fan_in in zip(params, (2, 6), strict=True):
        assert_uniform(layer["w"], 1 / math.sqrt(fan_in))
        assert_uniform(layer["b"], 1 / math.sqrt(fan_in))
    assert_no_two_are_the_same(params)


def test_dsn_starts_as_published():
    generators = {bias: dsn_generator(2, 3, hidden=(6,), bias=bias) for bias in (False, True, "zeros")}
    params = draws(generators[True])
    for layer, (n, m) in zip(params["networks"], [(2, 6), (6, 1)], strict=True):
        assert layer["w"].shape == (200, 3, n, m)
        assert_normal(layer["w"], math.sqrt(6 / (n + m)))
        assert_uniform(layer["b"], 1 / math.sqrt(n))
    assert_normal(params["alpha"], 1.0)
    assert_no_two_are_the_same(params)
    zeros = jax.jit(generators["zeros"].init)(KEY)
    assert all(not np.any(layer["b"]) for layer in zeros["networks"])
    without = jax.eval_shape(generators[False].init, KEY)
    assert [sorted(layer) for layer in without["networks"]] == [["w"], ["w"]]


def test_features_of_the_gaussian_process():
    params = draws(gaussian_process_generator(2, 3, num_features=8))
    assert_normal(params["a"], 1.0)
    assert_normal(params["w"], 1.0)
    # Covariances would be the same with phases in 0..pi.
    assert_uniform(params["b"].astype(np.float64) - math.pi, math.pi + 1e-6)


@pytest.mark.slow
def test_a_given_alpha_leaves_the_weights_as_they_are():
    given, drawn = (draws(dsn_generator(2, 3, hidden=(), alpha=alpha), 2) for alpha in (ALPHA, None))
    jax.tree.map(assert_array_equal, given["networks"], drawn["networks"])


# The mask.


def test_a_masked_column_has_no_influence():
    generator, x = dsn_generator(2, 3, alpha=ALPHA, bias=True), points()
    _, jacobian = derivatives(generator, x)
    assert_array_equal(jacobian[1, :, 0], np.zeros(7))
    assert_array_equal(np.any(jacobian != 0, axis=1), ALPHA != 0)


# The Gaussian process.

PLACES = np.array([[0.0, 0.0], [0.3, 0.0], [0.5, -0.4], [2.0, 1.0]], np.float32)
NUM_FEATURES = 64


@pytest.fixture(scope="module")
def process():
    """Values `[draws, places, latents]` and slopes `[draws, columns]` at one place, in units of theirs."""
    generator = gaussian_process_generator(2, 2, length_scale=0.8, scale=1.5, num_features=NUM_FEATURES)

    def one(key):
        params = generator.init(key)
        slopes = slopes_at(generator, params, PLACES[1:2])
        return generator.apply(params, PLACES) / 1.5, slopes[0, 0] * 0.8 / 1.5

    values, slopes = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    assert values.shape == (4000, 4, 2) and slopes.shape == (4000, 2)
    return np.asarray(values, np.float64), np.asarray(slopes, np.float64)


def test_covariance(process):
    # Given w and b, f is Gaussian with a covariance k_M that has mean k (scale 1) and, as a mean of M
    # products 2 cos cos, variance of at most 1/M. So the variance of f f' is
    # E[k_M(x, x) k_M(x', x') + 2 k_M(x, x')^2] - k^2 <= 1 + 1/M + k^2 + 2/M.
    f = process[0][..., 0]
    for i in range(4):
        assert_mean(f[:, i], 0, 1.0)
        for j in range(4):
            distance = np.linalg.norm(PLACES[i] - PLACES[j])
            k = math.exp(-(distance**2) / (2 * 0.8**2))
            assert_mean(f[:, i] * f[:, j], k, 1 + k**2 + 3 / NUM_FEATURES)


def test_latents_are_uncorrelated(process):
    # Given w and b they are independent: the variance of f_1 f_2 is E[k_M^2] <= 1 + 1/M.
    f = process[0][:, 0]
    assert_mean(f[:, 0] * f[:, 1], 0, 1 + 1 / NUM_FEATURES)


def test_slopes(process):
    # Given w and b a slope is Gaussian, with variance v = mean of 2 w^2 sin^2 (scale and length 1). One of
    # these M has the variance 4 * 3 * 3/8 - 1 = 3.5, so the slope squared has 3 (1 + 3.5/M) - 1.
    slopes = process[1]
    for j in range(2):
        assert_mean(slopes[:, j] ** 2, 1.0, 3 * (1 + 3.5 / NUM_FEATURES) - 1)
    # Their product has E[v_1 v_2 + 2 c^2], where c, the mean of 2 w_1 w_2 sin^2, has variance 1.5/M.
    assert_mean(slopes[:, 0] * slopes[:, 1], 0.0, 1 + (3.5 + 3) / NUM_FEATURES)


def test_traced_options():
    params = {name: some_params(make()) for name, make in GENERATORS.items()}

    def latents(scale, prune):
        process = gaussian_process_generator(2, 3, length_scale=scale, scale=prune + 1, num_features=8)
        masked = dsn_generator(2, 3, hidden=(4,), alpha=ALPHA, prune=prune)
        return process.apply(params["gaussian process"], PLACES), masked.apply(params["given alpha"], PLACES)

    options = ((0.5, 0.0), (2.0, 0.3))
    several = jax.jit(jax.vmap(latents))(*np.array(options, np.float32).T)
    for i, pair in enumerate(options):
        for found, expected in zip(several, jax.jit(partial(latents, *pair))(), strict=True):
            assert_allclose(found[i], expected, rtol=1e-5, atol=1e-5)
    assert np.any(several[1][0] != several[1][1])


# How they are called.


@pytest.mark.parametrize("name", slow_but(["dsn"], GENERATORS))
def test_compiled_and_many_at_once(name):
    generator, x = GENERATORS[name](), points()
    params = jax.tree.map(jnp.asarray, some_params(generator))
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, -2 * leaf]), params)
    several = jax.jit(jax.vmap(generator.apply, (0, None)))(both, x)
    assert_allclose(several[0], generator.apply(params, x), rtol=1e-5, atol=1e-5)
    other = jax.tree.map(lambda leaf: leaf[1], both)
    assert_allclose(several[1], jax.jit(generator.apply)(other, x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dsn", "gaussian process"])
def test_many_draws_at_once(name):
    generator, keys = GENERATORS[name](), jax.random.split(KEY, 2)
    several, alone = jax.jit(jax.vmap(generator.init))(keys), jax.jit(generator.init)
    for i, key in enumerate(keys):
        found = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], several)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), found, alone(key))


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS.keys())
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype(x64, make, dtype):
    generator, x = make(dtype=dtype), jax.ShapeDtypeStruct((7, 2), dtype)

    def one(key, x):
        params = generator.init(key)
        return params, generator.apply(params, x)

    params, latents = jax.eval_shape(one, KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, latents))} == {jnp.dtype(dtype)}
    assert latents.shape == (7, 3)

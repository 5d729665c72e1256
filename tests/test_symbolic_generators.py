"""Generators of curves: against NumPy, and the moments of what they draw."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lax_learning.symbolic import dsn_generator, gaussian_process_generator, mlp_generator
from tests.compare import slow_but

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
STANDARD_ERRORS = 5
ALPHA = np.array([[0.5, -2.0], [0.0, 1.5], [1.0, 0.2]])
POINTS = np.random.default_rng(1).normal(size=(5, 2))


def some_params(generator):
    """Params of the right structure from NumPy, which need no compiling."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), jax.eval_shape(generator.init, KEY)
    )


# Values.


def relu_by_numpy(layers, x):
    *hidden, last = (np.asarray(layer["w"]) for layer in layers)
    *biases, shift = (np.asarray(layer.get("b", 0.0)) for layer in layers)
    for w, b in zip(hidden, biases, strict=True):
        x = np.maximum(x @ w + b, 0)
    return x @ last + shift


def mask_by_numpy(alpha, norm, prune):
    powers = np.exp(np.abs(alpha))
    mask = powers / powers.sum(axis=1, keepdims=True) if norm == "softmax" else np.asarray(alpha)
    return np.where(mask < prune, 0, mask) if prune else mask


def dsn_by_numpy(params, alpha, norm, prune):
    rows = enumerate(mask_by_numpy(alpha, norm, prune))
    own = [(jax.tree.map(lambda leaf, i=i: leaf[i], params["networks"]), row) for i, row in rows]
    return np.concatenate([relu_by_numpy(layers, POINTS * row) for layers, row in own], axis=1)


@pytest.mark.parametrize("hidden", slow_but([[4, 5]], [[4, 5], []]))
def test_mlp(x64, hidden):
    generator = mlp_generator(2, 3, hidden=hidden, dtype=jnp.float64)
    params = some_params(generator)
    latents = jax.jit(generator.apply)(params, POINTS)
    assert_allclose(latents, relu_by_numpy(params, POINTS), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("given", "norm", "prune", "bias"),
    [
        (False, "none", 0.3, True),
        (True, "none", 0.0, True),
        (True, "none", 0.3, False),
        (False, "softmax", 0.4, "zeros"),
        (True, "softmax", 0.0, True),
    ],
)
def test_dsn(x64, given, norm, prune, bias):
    """And its gradient by alpha, against differences."""
    options = {"norm": norm, "prune": prune, "bias": bias, "alpha": ALPHA if given else None}
    generator = dsn_generator(2, 3, hidden=(4, 5), dtype=jnp.float64, **options)
    params = some_params(generator)
    assert given == ("alpha" not in params)
    alpha = ALPHA if given else params["alpha"]
    if prune:
        assert 0 < np.sum(mask_by_numpy(alpha, norm, prune) != mask_by_numpy(alpha, norm, 0)) < 6

    def total(params, x):
        latents = generator.apply(params, x)
        return jnp.sum(latents**2), latents

    (_, latents), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params, POINTS)
    by_numpy = partial(dsn_by_numpy, params, norm=norm, prune=prune)
    assert_allclose(latents, by_numpy(alpha), rtol=1e-12, atol=1e-14)
    # The squares of piecewise linear functions: what is left are third derivatives of the softmax.
    step = 1e-5
    for i, j in np.ndindex(*([0, 0] if given else [3, 2])):
        change = np.zeros((3, 2))
        change[i, j] = step
        slope = (np.sum(by_numpy(alpha + change) ** 2) - np.sum(by_numpy(alpha - change) ** 2)) / (2 * step)
        assert_allclose(np.asarray(gradient["alpha"])[i, j], slope, rtol=1e-6, atol=1e-7)


def test_gaussian_process(x64):
    generator = gaussian_process_generator(
        2, 3, length_scale=0.7, scale=1.3, num_features=6, dtype=jnp.float64
    )
    params = some_params(generator)
    expected = 1.3 * math.sqrt(2 / 6) * np.cos(POINTS / 0.7 @ params["w"] + params["b"]) @ params["a"]
    assert_allclose(jax.jit(generator.apply)(params, POINTS), expected, rtol=1e-12, atol=1e-14)


def test_traced_options():
    process = some_params(gaussian_process_generator(2, 3, num_features=8))
    masked = some_params(dsn_generator(2, 3, hidden=(4,), alpha=ALPHA))

    def latents(scale, prune):
        options = {"length_scale": scale, "scale": prune + 1, "num_features": 8}
        return (
            gaussian_process_generator(2, 3, **options).apply(process, np.float32(POINTS)),
            dsn_generator(2, 3, hidden=(4,), alpha=ALPHA, prune=prune).apply(masked, np.float32(POINTS)),
        )

    options = ((0.5, 0.0), (2.0, 0.3))
    several = jax.jit(jax.vmap(latents))(*np.array(options, np.float32).T)
    for i, pair in enumerate(options):
        for found, expected in zip(several, jax.jit(partial(latents, *pair))(), strict=True):
            assert_allclose(found[i], expected, rtol=1e-5, atol=1e-5)
    assert np.any(several[1][0] != several[1][1])


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


def draws(generator):
    """200 draws; no two numbers are the same."""
    params = jax.tree.map(np.asarray, jax.jit(jax.vmap(generator.init))(jax.random.split(KEY, 200)))
    numbers = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    return params


def test_mlp_starts_as_torch_does():
    for layer, fan_in in zip(draws(mlp_generator(2, 3, hidden=(6,))), (2, 6), strict=True):
        assert_uniform(layer["w"], 1 / math.sqrt(fan_in))
        assert_uniform(layer["b"], 1 / math.sqrt(fan_in))


def test_dsn_starts_as_published():
    make = partial(dsn_generator, 2, 3, hidden=(6,))
    params = draws(make(bias=True))
    for layer, (n, m) in zip(params["networks"], [(2, 6), (6, 1)], strict=True):
        assert layer["w"].shape == (200, 3, n, m)
        assert_normal(layer["w"], math.sqrt(6 / (n + m)))
        assert_uniform(layer["b"], 1 / math.sqrt(n))
    assert_normal(params["alpha"], 1.0)
    zeros = dsn_generator(1, 1, hidden=(), bias="zeros")
    assert all(not np.any(layer["b"]) for layer in jax.jit(zeros.init)(KEY)["networks"])
    without = jax.eval_shape(make(bias=False).init, KEY)
    assert [sorted(layer) for layer in without["networks"]] == [["w"], ["w"]]


def test_features_of_the_gaussian_process():
    params = draws(gaussian_process_generator(2, 3, num_features=8))
    assert_normal(params["a"], 1.0)
    assert_normal(params["w"], 1.0)
    # Covariances would be the same with phases in 0..pi.
    assert_uniform(params["b"].astype(np.float64) - math.pi, math.pi + 1e-6)


def test_covariance_of_the_gaussian_process():
    # Given w and b, f is Gaussian with a covariance k_M that has mean k (scale 1) and, as a mean of M
    # products 2 cos cos, variance of at most 1/M. So the variance of f f' is
    # E[k_M(x, x) k_M(x', x') + 2 k_M(x, x')^2] - k^2 <= 1 + 1/M + k^2 + 2/M.
    places, count = np.array([[0.0, 0.0], [0.3, 0.0], [0.5, -0.4], [2.0, 1.0]], np.float32), 64
    generator = gaussian_process_generator(2, 2, length_scale=0.8, scale=1.5, num_features=count)
    run = jax.jit(jax.vmap(lambda key: generator.apply(generator.init(key), places) / 1.5))
    values = np.asarray(run(jax.random.split(KEY, 4000)), np.float64)
    f = values[..., 0]
    for i in range(4):
        assert_mean(f[:, i], 0, 1.0)
        for j in range(4):
            k = math.exp(-(np.linalg.norm(places[i] - places[j]) ** 2) / (2 * 0.8**2))
            assert_mean(f[:, i] * f[:, j], k, 1 + k**2 + 3 / count)
    # Given w and b the latents are independent: the variance of f_1 f_2 is E[k_M^2] <= 1 + 1/M.
    assert_mean(values[:, 0, 0] * values[:, 0, 1], 0, 1 + 1 / count)

"""Generators of curves: against NumPy, and the moments of what they draw."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lax_learning.symbolic import dsn_generator, gaussian_process_generator, mlp_generator
from tests.compare import assert_mean, draws_of, member

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
ALPHA = np.array([[0.5, -2.0], [0.0, 1.5], [1.0, 0.2]])
POINTS = np.random.default_rng(1).normal(size=(5, 2))


def some_params(generator):
    """Params of the right structure from NumPy, which need no compiling."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), jax.eval_shape(generator.init, KEY)
    )


def relu_by_numpy(layers, x):
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["w"] + layer.get("b", 0), 0)
    return x @ layers[-1]["w"] + layers[-1].get("b", 0)


def test_mlp(x64):
    generator = mlp_generator(2, 3, hidden=[4, 5], dtype=jnp.float64)
    params = some_params(generator)
    latents = jax.jit(generator.apply)(params, POINTS)
    assert_allclose(latents, relu_by_numpy(params, POINTS), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("given", "norm", "prune", "bias"),
    [(False, "none", 0.5, True), (True, "none", 0.0, False), (False, "softmax", 0.4, "zeros")],
)
def test_dsn(x64, given, norm, prune, bias):
    """With a traced threshold, which an entry may equal; nothing is learned where alpha is pruned."""
    options = {"alpha": ALPHA if given else None, "norm": norm, "bias": bias, "dtype": jnp.float64}
    make = partial(dsn_generator, 2, 3, hidden=(4, 5), **options)

    def total(params, prune):
        latents = make(prune=prune).apply(params, POINTS)
        return jnp.sum(latents**2), latents

    params = some_params(make())
    assert given == ("alpha" not in params)
    params |= {} if given else {"alpha": ALPHA}
    powers = np.exp(np.abs(ALPHA))
    mask = powers / powers.sum(axis=1, keepdims=True) if norm == "softmax" else ALPHA
    pruned = (mask < prune) & (prune > 0)
    assert np.any(pruned) == (prune > 0) and not np.all(pruned)
    (_, latents), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params, prune)
    inputs = [POINTS * row for row in np.where(pruned, 0, mask)]
    each = [relu_by_numpy(member(params["networks"], i), x) for i, x in enumerate(inputs)]
    assert_allclose(latents, np.concatenate(each, axis=1), rtol=1e-12, atol=1e-14)
    if norm == "none" and not given:
        assert not np.any(gradient["alpha"][pruned]) and np.any(gradient["alpha"])


def test_gaussian_process(x64):
    """With scales that are traced."""
    make = partial(gaussian_process_generator, 2, 3, num_features=6, dtype=jnp.float64)
    params, scales = some_params(make()), np.array([[0.7, 1.3], [2.0, 0.5]])

    def latents(scales):
        return make(length_scale=scales[0], scale=scales[1]).apply(params, POINTS)

    for found, (length, scale) in zip(jax.jit(jax.vmap(latents))(scales), scales, strict=True):
        expected = scale * math.sqrt(2 / 6) * np.cos(POINTS / length @ params["w"] + params["b"])
        assert_allclose(found, expected @ params["a"], rtol=1e-12, atol=1e-14)


def assert_uniform(samples, bound):
    samples = np.ravel(samples) / np.float64(bound)
    # None of n lies in the outermost share of 20/n with a probability of exp(-20).
    assert 1 - 20 / samples.size < np.abs(samples).max() <= 1
    assert_mean(samples, 0)
    assert_mean(samples**2, 1 / 3)


def assert_normal(samples, deviation):
    samples = np.ravel(samples) / np.float64(deviation)
    for power, mean in ((1, 0), (2, 1), (4, 3)):
        assert_mean(samples**power, mean)


def draws(generator):
    """200 draws; no two numbers are the same."""
    params = jax.tree.map(np.asarray, draws_of(generator.init, KEY, 200))
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
    """From which, and from the formula, the kernel follows."""
    params = draws(gaussian_process_generator(2, 3, num_features=8))
    assert_normal(params["a"], 1.0)
    assert_normal(params["w"], 1.0)
    assert_uniform(params["b"].astype(np.float64) - math.pi, math.pi + 1e-6)

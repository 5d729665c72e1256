"""The contract of the estimators on any loss of any pytree, their noise, and what they cost."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

from lax_learning import estimators, noise
from lax_learning._sites._equations import all_equations
from lax_learning.noise import words
from tests.compare import assert_near, draws_of, slow_but

KEY = jax.random.key(30)


def with_count(estimate):
    return lambda key, params, *args: estimate(key, params, *args, count=3)


FACTORIES = {
    "backprop": estimators.backprop,
    "weight_perturbation": lambda loss_fn, **kwargs: estimators.weight_perturbation(
        loss_fn, sigma=0.1, **kwargs
    ),
    "central": lambda loss_fn, **kwargs: estimators.weight_perturbation(
        loss_fn, sigma=0.1, difference="central", noise="rademacher", **kwargs
    ),
    "forward_gradient": estimators.forward_gradient,
    "spsa": lambda loss_fn, **kwargs: with_count(
        estimators.spsa(loss_fn, perturbation=lambda count: 0.1 / (count + 1), **kwargs)
    ),
}
DRAWING = [name for name in FACTORIES if name != "backprop"]

PARAMS = {
    "layers": [
        {"w": jnp.array([[0.5, -1.0, 0.2], [0.1, 0.7, -0.3]]), "b": jnp.array([0.1, 0.2, 0.3])},
        (jnp.array([[1.0], [-0.5], [0.8]]), jnp.array(0.4)),
    ],
    "scale": jnp.array(1.5),
}
X = jnp.array([[0.2, -0.4], [1.0, 0.3], [-0.7, 0.9], [0.1, 0.1]])
Y = jnp.array([0.5, -0.2, 0.1, 0.9])


def losses(params, x, y):
    first, (w, b) = params["layers"]
    hidden = jnp.tanh(x @ first["w"] + first["b"])
    return jnp.square((hidden @ w)[:, 0] + b * params["scale"] - y)


def mean_loss(params, x, y):
    return jnp.mean(losses(params, x, y))


def loss_with_aux(params, x, y):
    each = losses(params, x, y)
    return jnp.mean(each), {"each": each, "count": jnp.array(len(x))}


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


# Contract.


@pytest.mark.parametrize("name", slow_but(["backprop", "central", "spsa"], FACTORIES))
def test_values_and_gradients_are_those_of_a_mean_of_losses(name):
    make = FACTORIES[name]

    @jax.jit
    def measured(params, x, y):
        single = make(mean_loss)
        return {
            "mean": single(KEY, params, x, y),
            "each": make(losses)(KEY, params, x, y),
            "aux": make(loss_with_aux, has_aux=True)(KEY, params, x, y),
            "draws": jax.vmap(lambda key: single(key, params, x, y)[1])(jax.random.split(KEY, 3)),
            "averaged": () if name == "backprop" else make(mean_loss, num_samples=3)(KEY, params, x, y)[1],
            "exact": jax.value_and_grad(mean_loss)(params, x, y),
        }

    found = measured(PARAMS, X, Y)
    (loss, exact), (value, grads) = found["exact"], found["mean"]
    (value_beside_aux, aux), beside_aux = found["aux"]
    assert shapes_of(grads) == shapes_of(exact) == shapes_of(PARAMS)
    np.testing.assert_allclose([value, found["each"][0], value_beside_aux], loss, rtol=1e-6)
    assert aux["count"] == 4
    np.testing.assert_allclose(aux["each"], losses(PARAMS, X, Y), rtol=1e-6)  # of the unperturbed params
    # Losses of the order 1 have a rounding of 6e-8; over sigma = 0.025 that is 2e-6 of a slope.
    tolerance: Any = {"rtol": 1e-4, "atol": 1e-5}
    assert_near(found["each"][1], grads, **tolerance)
    assert_near(beside_aux, grads, **tolerance)
    if name == "backprop":
        assert_near(grads, exact)
    else:
        mean = jax.tree.map(lambda g: g.mean(0), found["draws"])
        assert_near(found["averaged"], mean, **tolerance)


def test_differences_of_examples_survive_a_large_common_loss():
    # The rounding of a mean of the order 1e6 swamps the change that one example sees in full.
    def offset(params):
        return params * jnp.array([1.0, 2.0]) + jnp.array([0.0, 2.0**20])

    def grad_of(loss_fn):
        unit = lambda key, like: jnp.ones_like(like)  # noqa: E731
        return estimators.weight_perturbation(loss_fn, sigma=2.0**-6, noise=unit)(KEY, jnp.array(0.0))[1]

    assert grad_of(lambda p: offset(p) * jnp.array([1.0, 0.0])) == 0.5
    # 2^20 + 2^-5 is not a float32: only the example without the offset keeps its digits.
    assert grad_of(offset) == 0.5
    assert grad_of(lambda p: jnp.mean(offset(p))) == 0.0


@jax.tree_util.register_dataclass
@dataclass
class Node:
    w: Any
    rest: Any


def test_gradients_have_the_structure_of_params():
    w = jnp.ones(2)

    def loss(params):
        return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    for params, name in itertools.product(
        ([w, (w, 1.0)], FrozenDict(a=w, b=[0.5, 2.0]), Node(w, None), Node(np.ones(2, np.float32), {}), {}),
        FACTORIES,
    ):
        exact = jax.eval_shape(jax.grad(loss), params)
        grads = jax.eval_shape(FACTORIES[name](loss), KEY, params)[1]
        assert jax.tree.structure(grads) == jax.tree.structure(exact)
        assert shapes_of(grads) == shapes_of(exact)


def test_a_variable_that_stands_in_two_places_of_an_nnx_model_is_refused():
    model = nnx.Dict(a=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), b=nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    estimate = estimators.backprop(lambda model: jnp.sum(model.a(model.b(jnp.ones((1, 2))))))
    model.b.kernel = model.a.kernel
    with pytest.raises(
        ValueError, match=r"^params: expected each variable once, got one at .*a.*kernel.* and"
    ):
        estimate(KEY, model)


# Cost.


@pytest.mark.parametrize("name", slow_but(["weight_perturbation"], DRAWING))
def test_memory_does_not_grow_with_the_number_of_draws(name):
    params = jnp.zeros(10_000)

    def temporaries(num_samples):
        estimate = FACTORIES[name](lambda w: jnp.sum(jnp.sin(w)), num_samples=num_samples)
        memory = jax.jit(estimate).lower(KEY, params).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    # 62 more draws may cost 62 more keys (8 bytes each, with a few copies), not 62 x 40,000 bytes.
    assert temporaries(64) - temporaries(2) < 62 * 8 * 10


def test_central_difference_skips_the_clean_pass_if_the_value_is_not_used():
    estimate = estimators.weight_perturbation(
        lambda w: jnp.sum(jnp.tanh(w @ w)), sigma=0.1, difference="central"
    )

    def products(function):
        """Operations in units of one matrix product."""
        cost = jax.jit(function).lower(KEY, jnp.zeros((64, 64))).compile().cost_analysis()
        assert cost is not None
        return cost["flops"] / (2 * 64**3)

    used, not_used = products(estimate), products(lambda key, w: estimate(key, w)[1])
    assert used >= 3
    assert abs(used - not_used - 1) < 0.1  # and 64^2 tanh and additions, 1/64 of a product


# Noise.


def test_signs_are_plus_and_minus_one_in_every_dtype():
    like = {
        "a": jnp.zeros((5, 13)),
        "b": jnp.zeros(64, jnp.bfloat16),
        "c": jnp.zeros(()),
        "d": jnp.zeros((0, 3)),
    }
    drawn = noise.rademacher(KEY, like)
    assert shapes_of(drawn) == shapes_of(like)
    values = np.concatenate([np.ravel(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(drawn)])
    assert set(values.tolist()) == {-1.0, 1.0}
    ones = noise.as_noise(lambda key, like: jax.tree.map(lambda leaf: jnp.ones(leaf.shape, int), like))
    assert shapes_of(ones(KEY, like)) == shapes_of(like)  # noise of another dtype is cast


def test_signs_are_fair_and_independent():
    # 10,000 draws of 70 signs, over three words: means, and correlations of all pairs, have variance 1/N.
    # 2,485 statistics at 5 standard errors: odds of 0.0014 that a fair source fails one.
    count = 10_000
    like = (jnp.zeros(40), jnp.zeros((5, 6)))
    drawn = draws_of(lambda key: [leaf.ravel() for leaf in noise.rademacher(key, like)], KEY, count)
    drawn = np.concatenate([np.asarray(leaf, np.float64) for leaf in drawn], axis=1)
    assert np.abs(drawn.mean(axis=0)).max() < 5 / math.sqrt(count)
    correlations = drawn.T @ drawn / count
    np.testing.assert_array_equal(np.diag(correlations), 1.0)
    assert np.abs(correlations - np.eye(70)).max() < 5 / math.sqrt(count)


def test_normal_noise_has_the_right_moments():
    # Over 100,000 entries the variances of mean, square and fourth power are 1, 2 and 96 by N.
    count = 100_000
    drawn = np.asarray(noise.normal(KEY, jnp.zeros(count)), np.float64)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs((drawn**power).mean() - expected) < 5 * math.sqrt(variance / count)


@pytest.mark.parametrize("draw", [noise.normal, noise.rademacher])
def test_leaves_draw_noise_of_their_own(draw):
    a, b = draw(KEY, (jnp.zeros(200), jnp.zeros(200)))
    # 200 equal signs have odds of 2^-200.
    assert (a != b).any() and (a != -b).any()


def random_words(function, like):
    """Number of words of every draw of random bits."""
    program = jax.make_jaxpr(function)(KEY, like)
    draws = [each for each in all_equations(program.jaxpr) if each.primitive.name == "random_bits"]
    return [math.prod(each.params["shape"]) for each in draws]


@pytest.mark.parametrize(("size", "words"), [(1, [1, 1]), (32, [1, 2]), (33, [2, 4]), (1000, [32, 64])])
def test_signs_take_one_word_for_32(size, words):
    like = {"a": jnp.zeros(size), "b": jnp.zeros((size, 2))}
    assert random_words(noise.rademacher, like) == words  # whole rows of words for rows of signs
    assert random_words(noise.normal, like["a"]) == [size]


@pytest.mark.parametrize("by_index", [True, False])
def test_random_words_are_those_of_jax(by_index):
    with jax.threefry_partitionable(by_index):
        for key in (KEY, jax.random.key_data(KEY), jax.random.key(1, impl="rbg")):
            for shape in ((), (0,), (33, 97)):
                np.testing.assert_array_equal(words(key, shape), jax.random.bits(key, shape, jnp.uint32))


@pytest.mark.parametrize("shape", [(500, 40), (20_000,), (7, 500, 5)])
def test_no_two_signs_are_the_same_bit(shape):
    # Products with themselves, shifted in a circle by any lag, have standard deviation size^0.5: of 12,000
    # lags one beyond 6.5 of them has odds of 1e-6.
    signs = np.asarray(noise.rademacher(KEY, jnp.zeros(shape)), np.float64).reshape(-1)
    products = np.fft.irfft(np.abs(np.fft.rfft(signs)) ** 2, signs.size)
    assert np.abs(products[1:]).max() < 6.5 * math.sqrt(signs.size)


# SPSA.


def test_gains_are_spalls():
    gains = estimators.spall_gains(a=2.0, c=0.3, A=50.0)
    for count in (0, 17, 1000):
        np.testing.assert_allclose(gains.learning_rate(count), 2.0 / (count + 1 + 50.0) ** 0.602, rtol=1e-6)
        np.testing.assert_allclose(gains.perturbation(count), 0.3 / (count + 1) ** 0.101, rtol=1e-6)
    other = estimators.spall_gains(a=1.0, c=1.0, A=0.0, alpha=1.0, gamma=1 / 6)
    np.testing.assert_allclose(other.learning_rate(9), 0.1, rtol=1e-6)
    np.testing.assert_allclose(other.perturbation(63), 0.5, rtol=1e-6)


def test_perturbation_schedule_is_used():
    # On w^3 at 0 a central difference returns c^2.
    estimate = estimators.spsa(lambda w: w**3, perturbation=lambda count: 0.5**count)
    for count in (0, 1, 3):
        np.testing.assert_allclose(estimate(KEY, jnp.array(0.0), count=count)[1], 0.25**count)

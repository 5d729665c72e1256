"""Estimators on any loss of any pytree: their contract, noise, rounding, cost, and closed forms."""

import itertools
import math
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

from lax_learning import estimators, noise
from lax_learning._sites._equations import all_equations
from lax_learning.noise import words
from tests.compare import assert_near, draws_of

KEY = jax.random.key(30)
wp = estimators.weight_perturbation


def spsa(loss_fn, **options):
    estimate = estimators.spsa(loss_fn, perturbation=lambda count: 0.1 / (count + 1), **options)
    return lambda key, params, *args: estimate(key, params, *args, count=3)


FACTORIES = {
    "backprop": estimators.backprop,
    "weight_perturbation": partial(wp, sigma=0.1),
    "central": partial(wp, sigma=0.1, difference="central", noise="rademacher"),
    "forward_gradient": estimators.forward_gradient,
    "spsa": spsa,
}
PARAMS = {
    "w": np.array([[0.5, -1.0, 0.2], [0.1, 0.7, -0.3]], np.float32),
    "last": (np.array([1.0, -0.5, 0.8], np.float32), np.float32(0.4)),
}
X = np.array([[0.2, -0.4], [1.0, 0.3], [-0.7, 0.9], [0.1, 0.1]], np.float32)
Y = np.array([0.5, -0.2, 0.1, 0.9], np.float32)


def losses(params, x, y):
    w, b = params["last"]
    return jnp.square(jnp.tanh(x @ params["w"]) @ w + b - y)


def mean_loss(params, x, y):
    return jnp.mean(losses(params, x, y))


def loss_with_aux(params, x, y):
    return mean_loss(params, x, y), {"each": losses(params, x, y), "count": jnp.array(len(x))}


# Contract.


@pytest.mark.parametrize("name", ["backprop", "central", "forward_gradient"])
def test_values_and_gradients_are_those_of_a_mean_of_losses(name):
    make, is_drawn = FACTORIES[name], name != "backprop"

    @jax.jit
    def measured(params, x, y):
        single, args = make(mean_loss), (params, x, y)
        return {
            "mean": single(KEY, *args),
            "each": make(losses)(KEY, *args),
            "aux": make(loss_with_aux, has_aux=True)(KEY, *args),
            "draws": jax.vmap(lambda key: single(key, *args)[1])(jax.random.split(KEY, 3)),
            "averaged": make(mean_loss, num_samples=3)(KEY, *args)[1] if is_drawn else (),
            "exact": (jax.value_and_grad(mean_loss)(*args), losses(*args)),
        }

    found = measured(PARAMS, X, Y)
    (loss, exact), of_examples = found["exact"]
    (value, grads), ((value_beside_aux, aux), beside_aux) = found["mean"], found["aux"]
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, PARAMS)
    np.testing.assert_allclose([value, found["each"][0], value_beside_aux], loss, rtol=1e-6)
    assert aux["count"] == 4
    np.testing.assert_allclose(aux["each"], of_examples, rtol=1e-6)  # of the unperturbed params
    # Losses of the order 1 have a rounding of 6e-8; over sigma = 0.025 that is 2e-6 of a slope.
    near = partial(assert_near, rtol=1e-4, atol=1e-5)
    near(found["each"][1], grads)
    near(beside_aux, grads)
    if is_drawn:
        near(found["averaged"], jax.tree.map(lambda g: np.mean(g, 0), found["draws"]))
    else:
        assert_near(grads, exact)


def test_differences_of_examples_survive_a_large_common_loss():
    # The rounding of a mean of the order 1e6 swamps the change that one example sees in full.
    def offset(params):
        return params * jnp.array([1.0, 2.0]) + jnp.array([0.0, 2.0**20])

    @jax.jit
    def grads():
        each = (lambda p: offset(p) * jnp.array([1.0, 0.0])), offset, (lambda p: jnp.mean(offset(p)))
        ones = {"sigma": 2.0**-6, "noise": lambda key, like: jnp.ones_like(like)}
        return [wp(loss, **ones)(KEY, 0.0)[1] for loss in each]

    # 2^20 + 2^-5 is not a float32: only the example without the offset keeps its digits.
    assert grads() == [0.5, 0.5, 0.0]


def test_gradients_have_the_structure_of_params():
    def loss(params):
        return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    trees = [np.ones(2, np.float32), (jnp.ones(2), 1.0)], FrozenDict(a=jnp.ones(2), b=[0.5, None]), {}
    for params, make in itertools.product(trees, FACTORIES.values()):
        grads = jax.eval_shape(make(loss), KEY, params)[1]
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, jax.eval_shape(jax.grad(loss), params))


def test_a_variable_that_stands_in_two_places_of_an_nnx_model_is_refused():
    model = nnx.Dict(a=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), b=nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    model.b.kernel = model.a.kernel
    pattern = r"^params: expected each variable once, got one at .*a.*kernel.* and"
    with pytest.raises(ValueError, match=pattern):
        estimators.backprop(lambda model: jnp.sum(model.a(model.b(jnp.ones((1, 2))))))(KEY, model)


# Cost.


def test_memory_does_not_grow_with_the_number_of_draws():
    def temporaries(num_samples):
        estimate = wp(lambda w: jnp.sum(jnp.sin(w)), sigma=0.1, num_samples=num_samples)
        memory = jax.jit(estimate).lower(KEY, jnp.zeros(10_000)).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    # 62 more draws may cost 62 more keys (8 bytes each, with a few copies), not 62 x 40,000 bytes.
    assert temporaries(64) - temporaries(2) < 62 * 8 * 10


def test_central_difference_skips_the_clean_pass_if_the_value_is_not_used():
    estimate = wp(lambda w: jnp.sum(jnp.tanh(w @ w)), sigma=0.1, difference="central")
    functions = estimate, lambda key, w: estimate(key, w)[1]
    compiled: Any = [jax.jit(each).lower(KEY, jnp.zeros((64, 64))).compile() for each in functions]
    used, not_used = (each.cost_analysis()["flops"] / (2 * 64**3) for each in compiled)  # in products
    assert used >= 3
    assert abs(used - not_used - 1) < 0.1  # and 64^2 tanh and additions, 1/64 of a product


# Noise.


def test_noise_has_the_dtypes_of_what_it_is_added_to():
    like = [jnp.zeros((5, 13)), jnp.zeros(64, jnp.bfloat16), jnp.zeros(()), jnp.zeros((0, 3))]
    ones = noise.as_noise(lambda key, like: [np.ones(leaf.shape, int) for leaf in like])
    drawn, cast = jax.jit(lambda like: (noise.rademacher(KEY, like), ones(KEY, like)))(like)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, cast, like)
    assert set(np.concatenate([np.asarray(leaf, float).ravel() for leaf in drawn])) == {-1.0, 1.0}


def test_signs_are_fair_and_independent():
    # 10,000 draws of 70 signs, over three words: means, and correlations of all pairs, have variance 1/N.
    # 2,485 statistics at 5 standard errors: odds of 0.0014 that a fair source fails one.
    count, like = 10_000, (jnp.zeros(40), jnp.zeros((5, 6)))
    drawn = draws_of(lambda key: [leaf.ravel() for leaf in noise.rademacher(key, like)], KEY, count)
    drawn = np.concatenate(drawn, axis=1, dtype=np.float64)
    assert np.abs(drawn.mean(axis=0)).max() < 5 / math.sqrt(count)
    correlations = drawn.T @ drawn / count
    np.testing.assert_array_equal(np.diag(correlations), 1.0)
    assert np.abs(correlations - np.eye(70)).max() < 5 / math.sqrt(count)
    # No two are the same bit: products with themselves, shifted in a circle by any lag, have the standard
    # deviation size^0.5; of 12,000 lags one beyond 6.5 of them has odds of 1e-6.
    for signs in jax.jit(noise.rademacher)(KEY, [jnp.zeros(s) for s in ((500, 40), (20_000,), (7, 500, 5))]):
        signs = np.asarray(signs, np.float64).reshape(-1)
        of_bits = signs[: signs.size // 32 * 32].reshape(32, -1)  # those of each bit of the words
        assert np.abs(of_bits.mean(axis=1)).max() < 6.5 / math.sqrt(signs.size // 32)
        products = np.fft.irfft(np.abs(np.fft.rfft(signs)) ** 2, signs.size)
        assert np.abs(products[1:]).max() < 6.5 * math.sqrt(signs.size)


def test_signs_take_one_word_for_32():
    def random_words(function, like):
        """Number of words of every draw of random bits."""
        equations = all_equations(jax.make_jaxpr(function)(KEY, like).jaxpr)
        return [math.prod(e.params["shape"]) for e in equations if e.primitive.name == "random_bits"]

    for size, expected in ((1, [1, 1]), (33, [2, 4]), (1000, [32, 64])):
        like = {"a": jnp.zeros(size), "b": jnp.zeros((size, 2))}
        assert random_words(noise.rademacher, like) == expected  # whole rows of words for rows of signs
        assert random_words(noise.normal, like["a"]) == [size]


@pytest.mark.parametrize("by_index", [True, False])
def test_random_words_are_those_of_jax(by_index):
    @jax.jit
    def both(key):
        return [(words(key, of), jax.random.bits(key, of, jnp.uint32)) for of in ((), (0,), (33, 97))]

    with jax.threefry_partitionable(by_index):
        for key in (KEY, jax.random.key_data(KEY), jax.random.key(1, impl="rbg")):
            for pair in both(key):
                np.testing.assert_array_equal(*pair)


# Noise that half precision can hold.


def test_credit_is_that_of_the_step_that_was_made():
    """One weight of a linear loss, so that the estimate is the gradient, 1, for any step."""
    sizes = [0.0, *(m * 10.0**e for e in range(-3, 4) for m in (1.0, 1.7)), 1.0, 2.0, 0.25, 1024.0]
    grid = itertools.product(
        [s * w for w in sizes for s in (1, -1)], [1e-1, 1e-2, 1e-3, 1e-4], [1.0, -1.0, 0.37]
    )
    kinds = list(itertools.product((jnp.float16, jnp.bfloat16), ("central", "forward")))

    def slope(dtype, difference, w, sigma, noise):
        options = {"difference": difference, "noise": lambda key, like: noise.astype(like.dtype)}
        estimate = wp(lambda w: w.astype(jnp.float32), sigma=sigma, **options)
        unit = noise.astype(dtype).astype(jnp.float32)
        return estimate(KEY, w.astype(dtype))[1].astype(jnp.float32) / unit**2

    every = jax.jit(jax.vmap(lambda *at: [slope(*kind, *at) for kind in kinds]))
    # The gradient comes back in half precision, noise^2 with it: one rounding. Where the step is larger than
    # the weight, w + e and w - e are rounded apart, each by half a spacing: their mean differs from either
    # by half a spacing of the sum, at most eps of the step.
    for (dtype, difference), found in zip(kinds, every(*np.array(list(grid), np.float32).T), strict=True):
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(found, 1, rtol=eps if difference == "central" else 3 * eps)


def test_reverse_mode_sees_the_step_through_its_rounding():
    def slope(w, sigma):
        ones = {"sigma": sigma, "noise": lambda key, like: jnp.ones_like(like)}
        estimate = wp(lambda w: jnp.square(w.astype(float)), **ones)
        return estimate(KEY, w)[1].astype(jnp.float32)

    # ((w + sigma)^2 - w^2) / sigma = 2 w + sigma
    assert jax.jit(jax.grad(slope, (0, 1)))(jnp.bfloat16(1.5), 0.25) == (2.0, 1.0)


# SPSA.


def test_gains_are_spalls_and_used():
    gains = estimators.spall_gains(a=2.0, c=0.3, A=50.0)
    other = estimators.spall_gains(a=1.0, c=1.0, A=0.0, alpha=1.0, gamma=1 / 6)
    for count in (0, 17, 1000):
        np.testing.assert_allclose(gains.learning_rate(count), 2.0 / (count + 1 + 50.0) ** 0.602, rtol=1e-6)
        np.testing.assert_allclose(gains.perturbation(count), 0.3 / (count + 1) ** 0.101, rtol=1e-6)
        np.testing.assert_allclose(other.learning_rate(count), 1 / (count + 1), rtol=1e-6)
        np.testing.assert_allclose(other.perturbation(count), (count + 1) ** (-1 / 6), rtol=1e-6)
    # On w^3 at 0 a central difference returns c^2.
    estimate = estimators.spsa(lambda w: w**3, perturbation=lambda count: 0.5**count)
    estimates = jax.jit(lambda w: [estimate(KEY, w, count=count)[1] for count in (0, 1, 3)])
    np.testing.assert_allclose(estimates(0.0), [1, 0.25, 0.25**3])

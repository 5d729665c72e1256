"""The benchmarks' loops in NumPy, code by hand and evosax do what the library does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lax_learning as ll
from benchmarks import cost_of_rules
from benchmarks.cases import Sizes, microlearning
from benchmarks.reference import jax_by_hand as by_hand
from benchmarks.reference import microlearning as loops
from tests.compare import assert_close, slow_but

pytestmark = pytest.mark.usefixtures("x64", "as_a_user_sees_it")

KEY = jax.random.key(3)
SIZES = Sizes(hidden=4, examples=5)
TUTORIAL = microlearning.RULES


def close(got: Any, expected: Any) -> None:
    """Equal in float64, whose roundings are 1e-16: sums have at most 785 terms of size 10, over sigma^2."""
    assert np.asarray(got).dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", slow_but(["backprop", "node perturbation"], TUTORIAL))
def test_updates_and_snr_agree(name: str) -> None:
    """With the same noise: for each unit and example, or for each weight."""
    model, compared, sigma = microlearning.network_of(SIZES), TUTORIAL[name], microlearning.SIGMA

    def unit_noise(key: Any, like: Any) -> Any:  # as the library has it
        hidden, output = (each / sigma for each in noise)
        if name.startswith("weight"):
            both = {f"{i}/w": n[:, :-1].T for i, n in enumerate((hidden, output))}
            return {**both, "0/b": hidden[:, -1], "1/b": output[:, -1]}
        return jnp.asarray(hidden.T), jnp.asarray(output.T)

    with_noise = compared._replace(noise=unit_noise)
    rule, signal_to_noise = with_noise.make(model), with_noise.snr(model)
    drawn = microlearning.weights_of(model, rule, 1), microlearning.examples(SIZES.examples)
    ours, (x, y) = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), drawn)
    weights = microlearning.as_reference(ours)
    noise: Any = loops.draw(compared.name, np.random.default_rng(0), weights, len(x), sigma)
    if compared.noise == "rademacher":
        noise = tuple(sigma * np.sign(each) for each in noise)

    @jax.jit
    def found(*given: Any) -> Any:
        return microlearning.update(rule, KEY, *given), signal_to_noise(KEY, *given)

    def of_example(i: int) -> Any:
        return tuple(each[:, [i]] for each in noise) if name.startswith("node") else noise

    (after, loss), snr = found(ours, x, y)
    close(snr, loops.snr(compared.name, weights, x.T, y.T, of_example, sigma))
    close(loss, np.mean(loops.losses(loops.forward(weights, x.T)[1], y.T)))
    before, change = weights.hidden.copy(), loops.RULES[compared.name](weights, x.T, y.T, noise, sigma)
    loops.add(weights, change, microlearning.LEARNING_RATE)
    jax.tree.map(close, microlearning.as_reference(after), weights)
    assert np.abs(weights.hidden - before).max() > 1e-7  # it does something, visibly


RATE, SIGMA = 0.1, 0.01
NETWORK = ll.mlp((7, 5, 3), activation=jax.nn.sigmoid, output_activation=jax.nn.sigmoid)


def noise_of(key: Any, shape: tuple[int, ...]) -> jax.Array:
    """Numbers that depend on the shape alone: both sides draw the same whatever their keys."""
    return jnp.asarray(np.random.default_rng(shape[-1]).normal(size=shape))


def problem() -> tuple[Any, jax.Array, jax.Array]:
    """Weights, inputs and targets in float64."""
    params = [{"w": noise_of(None, (a, b)), "b": noise_of(None, (b,))} for a, b in ((7, 5), (5, 3))]
    return params, noise_of(None, (6, 7)), noise_of(None, (6, 3))


@pytest.mark.parametrize("name", slow_but(["feedback_alignment", "node_perturbation"], by_hand.RULES))
def test_code_by_hand_agrees(name: str) -> None:
    def noise(key: Any, like: Any) -> Any:  # the library's has an axis for the batch of one of every example
        def one(leaf: Any) -> jax.Array:
            return noise_of(key, tuple(n for n in leaf.shape if n > 1)).reshape(leaf.shape)

        return jax.tree.map(one, like)

    params, x, y = problem()
    feedback = jax.tree.map(np.cos, params)
    options = {"noise": noise} if "perturbation" in name else {}
    rule = cost_of_rules.RULES[name](NETWORK, ll.squared_error, **options)
    state = jax.jit(rule.init)(KEY, params, x)
    if name == "feedback_alignment":
        state = state._replace(feedback=[{"w": None, "b": None}, {"w": feedback[1]["w"], "b": None}])
    if name == "direct_feedback_alignment":
        state = state._replace(feedback={read: feedback[1]["w"] for read in state.feedback})
    loss, grads, _ = jax.jit(rule.value_and_grad)(KEY, params, state, x, y)
    expected = jax.jit(by_hand.RULES[name], static_argnums=5)(KEY, params, feedback, x, y, noise_of)
    # Sums of at most 35 terms, and of the perturbations a difference of losses over sigma^2.
    assert_close((loss, grads), expected, ulps=1e4)


def test_by_hand_averages_its_draws() -> None:
    params, x, y = problem()
    three, one = (
        by_hand.training(by_hand.weight_perturbation, jax.random.uniform, draws, RATE) for draws in (3, 1)
    )

    @jax.jit
    def both(key: jax.Array) -> Any:
        steps = jax.vmap(lambda key: one(key[None], params, params, x, y)[0])(jax.random.split(key, 3))
        return three(key[None], params, params, x, y)[0], jax.tree.map(lambda w: w.mean(axis=0), steps)

    jax.tree.map(close, *both(KEY))


def test_a_generation_of_evosax_is_a_mirrored_step() -> None:
    """Along the mean of central differences in the directions that it draws."""
    pytest.importorskip("evosax", reason="the peer is optional: make peers")
    from benchmarks.reference import open_es

    params, *batch = problem()
    flat, unravel = ravel_pytree(params)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return ll.squared_error(NETWORK.apply(params, x), y).mean()

    def difference(draw: jax.Array) -> jax.Array:
        above, below = (loss(unravel(flat + sigma * draw), *batch) for sigma in (SIGMA, -SIGMA))
        return (above - below) / (2 * SIGMA) * draw

    after = jax.jit(open_es.training(loss, params, 4, SIGMA, RATE))(KEY[None], params, *batch)
    draws = jax.random.normal(jax.random.split(KEY)[0], (2, flat.size))
    close(ravel_pytree(after)[0], flat - RATE * jax.jit(jax.vmap(difference))(draws).mean(axis=0))

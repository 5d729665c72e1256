"""Guided gradients are the projection of the gradient on the span of the guesses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from lax_learning.metrics import cosine_similarity, inner_product
from tests.compare import assert_close, jitted, normal
from tests.refusal import refusals

KEY = jax.random.key(5)
MODEL = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
PARAMS = {"a": normal(0, 2, 1), "b": normal(1, 1, 2)}
X, Y = normal(2, 6, 2), jnp.ones((6, 2))
EXACT = jax.jit(jax.grad(lambda p: ll.squared_error(MODEL.apply(p, X), Y).mean()))(PARAMS)
FORWARD = ll.forward_gradient(MODEL, ll.squared_error)


def guided(*guesses: ll.Rule) -> Any:
    rule = jitted(ll.guided_gradient(MODEL, ll.squared_error, guesses))
    return rule.value_and_grad(KEY, PARAMS, rule.init(KEY, PARAMS, X), X, Y)


def test_exact_if_the_gradient_is_in_the_span() -> None:
    # Roundings of 6e-8 are multiplied by the length of a guess over what it adds, about 1e3 at most here.
    for guesses in ([ll.backprop(MODEL, ll.squared_error)], [FORWARD] * 4):  # of 4 parameters
        loss, grads, _ = guided(*guesses)
        np.testing.assert_allclose(loss, ll.squared_error(MODEL.apply(PARAMS, X), Y).mean(), rtol=1e-6)
        for found, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(EXACT), strict=True):
            np.testing.assert_allclose(found, exact, atol=1e-3 * float(jnp.abs(exact).max()))


def test_one_guess_by_hand() -> None:
    """`(dL/dw . u) u / |u|^2`; guesses that say the same, or nothing, change nothing."""
    rule = ll.feedback_alignment(MODEL, ll.squared_error)
    _, grads, (state,) = guided(rule)
    u = jitted(rule).value_and_grad(KEY, PARAMS, state, X, Y)[1]
    share = inner_product(u, EXACT) / inner_product(u, u)
    expected = jax.tree.map(lambda leaf: share * leaf, u)
    assert_close(grads, expected, ulps=100)

    def nothing(key: Any, params: Any, state: Any, x: Any, y: Any) -> Any:
        return 0.0, jax.tree.map(jnp.zeros_like, params), state

    def again_of(key: Any, params: Any, _: Any, x: Any, y: Any) -> Any:
        return *rule.value_and_grad(key, params, state, x, y)[:2], ()

    again = ll.Rule(lambda key, params, x: (), again_of)
    for found in (guided(again, again)[1], guided(again, ll.Rule(again.init, nothing))[1]):
        assert_close(found, expected, ulps=1000)


def test_never_uphill_and_better_with_every_guess() -> None:
    uphill = ll.Rule(
        lambda key, params, x: (),
        lambda key, params, state, x, y: (0.0, jax.tree.map(jnp.negative, EXACT), state),
    )
    assert cosine_similarity(guided(uphill)[1], EXACT) > 0.999
    directions = [jax.tree.map(lambda leaf, i=i: normal(10 + i, *leaf.shape), PARAMS) for i in range(3)]
    rules = [ll.Rule(uphill.init, lambda key, params, state, x, y, u=u: (0.0, u, state)) for u in directions]
    cosines = [float(cosine_similarity(guided(*rules[:number])[1], EXACT)) for number in (1, 3)]
    assert cosines[0] >= 0 and (np.diff(cosines) > -1e-4).all() and cosines[-1] > cosines[0]


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_guesses_of_any_length_and_nearly_alike(scale: float) -> None:
    """Two guesses 0.01 apart, one of them many times, still span the gradient between them."""

    def of(share: float) -> ll.Rule:
        other = jax.tree.map(jnp.ones_like, EXACT)

        def value_and_grad(key: Any, params: Any, state: Any, x: Any, y: Any) -> Any:
            guess = jax.tree.map(lambda g, o: scale * (o + share * g), EXACT, other)
            return 0.0, guess, state

        return ll.Rule(lambda key, params, x: (), value_and_grad)

    _, grads, _ = guided(*[of(0.0)] * 20, of(0.01))
    # Of the difference of the guesses, 1 % of them, roundings are 1e-5.
    assert cosine_similarity(grads, EXACT) > 1 - 1e-6


test_bad_input = refusals(
    values={"guesses: expected at least one rule": lambda: ll.guided_gradient(MODEL, ll.squared_error, [])},
    types={
        r"guesses\[1\]: expected a Rule, got": lambda: ll.guided_gradient(
            MODEL,
            ll.squared_error,
            [FORWARD, ll.backprop],  # type: ignore[list-item]
        ),
    },
)

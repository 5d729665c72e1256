"""Losses against closed forms, at the ends of their range."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

INF = jnp.inf
LOGITS = jnp.array([[-INF, 0.0, 1.0], [2.0, -INF, -INF], [0.5, -1.0, 3.0]])
LABELS = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.25, 0.75]])


def test_cross_entropy_of_masked_classes():
    # Two classes are left in the first row, one in the second.
    normaliser = math.log(math.exp(0.5) + math.exp(-1) + math.exp(3))
    expected = [math.log(1 + math.e), 0.0, normaliser - 0.25 * -1 - 0.75 * 3]
    np.testing.assert_allclose(ll.softmax_cross_entropy(LOGITS, LABELS), expected, rtol=1e-6)
    assert ll.softmax_cross_entropy(LOGITS[:1], LABELS[1:2]) == INF  # a label on a masked class


def test_derivatives_of_cross_entropy_of_masked_classes():
    def loss(logits, y):
        return jnp.sum(ll.softmax_cross_entropy(logits, y))

    of_logits, of_targets = jax.jit(jax.grad(loss, (0, 1)))(LOGITS, LABELS)
    np.testing.assert_allclose(of_logits, jax.nn.softmax(LOGITS) - LABELS, atol=1e-6)
    # Of the targets it is -log softmax, but of a masked class the constant 0.
    logs = jax.nn.log_softmax(LOGITS)
    np.testing.assert_allclose(of_targets, jnp.where(logs == -INF, 0, -logs), rtol=1e-6)


def test_cross_entropy_of_logits_far_apart():
    # The difference of these logits has no float32; the probability of the second class is 0.
    logits = jnp.array([[3e38, -3e38]])
    assert ll.softmax_cross_entropy(logits, jnp.array([[1.0, 0.0]])) == 0
    assert jnp.isnan(ll.softmax_cross_entropy(jnp.full((1, 2), -INF), jnp.array([[1.0, 0.0]])))


@pytest.mark.parametrize("score", [ll.accuracy, ll.balanced_accuracy])
def test_rows_without_a_label_or_with_several_have_no_accuracy(score):
    output = jnp.eye(3)
    assert score(output, output) == 1
    for row in (jnp.zeros(3), jnp.array([0.5, 0.5, 0.0]), jnp.full(3, jnp.nan)):
        assert jnp.isnan(score(output, output.at[0].set(row)))


@pytest.mark.parametrize("score", [ll.accuracy, ll.balanced_accuracy])
def test_infinite_outputs_are_compared(score):
    output = jnp.array([[INF, 0.0], [-INF, 0.0]])
    assert score(output, jnp.eye(2)) == 1
    assert score(output, 1 - jnp.eye(2)) == 0
    assert score(jnp.array([[7, 3], [2**24, 2**24 + 1]]), jnp.eye(2)) == 1  # not equal, as in float32


def test_integers_that_float32_holds_are_converted():
    images = np.array([[200, 255]], np.uint8)
    assert ll.squared_error(images, images - 1) == 2
    numbers: Any = [[1, 2]]
    assert ll.squared_error(numbers, np.array([[0.5, 2.0]])) == 0.25
    assert ll.softmax_cross_entropy(jnp.zeros((1, 2)), np.array([[0, 1]])) == jnp.log(2.0)


def test_float64_targets_keep_their_digits(x64):
    del x64
    loss = ll.squared_error(np.zeros((1, 1), np.float32), np.full((1, 1), 1 + 1e-12))
    assert loss == (1 + 1e-12) ** 2 and loss.dtype == jnp.float64

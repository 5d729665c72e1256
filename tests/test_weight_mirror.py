"""Feedback of a weight mirror follows the weights, whatever reads them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from tests.compare import slow_but
from tests.refusal import refusals
from tests.zoo import ZOO

KEY = jax.random.key(5)
X = jax.random.normal(KEY, (8, 4, 4, 2))


def apply(p: Any, x: Any) -> Any:
    """A model in which parameters are read as they are, stacked, transposed, normalised and as vectors."""
    x = jnp.tanh(jax.lax.conv_general_dilated(x, p["first"], (1, 1), "SAME", dimension_numbers=NUMBERS))
    x = jnp.tanh(jax.lax.conv_general_dilated(x, p["kernel"], (2, 2), "SAME", dimension_numbers=NUMBERS))
    x = x.reshape(len(x), -1)
    x = x * (x @ p["vector"])[:, None]
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stacked"])[0]
    x = jnp.tanh(x @ (p["normalised"] / jnp.linalg.norm(p["normalised"])))
    return jnp.einsum("bi,oi->bo", x, p["transposed"])


NUMBERS = ("NHWC", "HWIO", "NHWC")
SHAPES = {
    "first": (3, 3, 2, 2), "kernel": (2, 2, 2, 3), "vector": (12,), "stacked": (2, 12, 12),
    "normalised": (12, 5), "transposed": (3, 5),
}  # fmt: skip
MODEL = ll.Model(apply)
PARAMS = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(SHAPES.items())}


def squares(output: Any, y: Any) -> jax.Array:
    return jnp.sum(jnp.square(output - y).reshape(len(output), -1), axis=1)


def test_expected_feedback_is_the_parameter() -> None:
    # After a step of SGD with rate 1 the feedback is (1 - decay) B + the mean response, whose mean is w.
    decay = 0.25
    rule = ll.weight_mirror(MODEL, squares, optimizer=optax.sgd(1.0), decay=decay)
    state = rule.init(KEY, PARAMS, X)
    assert state.feedback["first"] is None  # no error passes
    y = jnp.zeros((8, 3))
    keys = jax.random.split(KEY, 2_000)
    after = jax.jit(jax.vmap(lambda key: rule.value_and_grad(key, PARAMS, state, X, y)[2].feedback))(keys)
    for name, w in PARAMS.items():
        if name == "first":
            continue
        drawn = np.asarray(after[name], np.float64) - (1 - decay) * np.asarray(state.feedback[name])
        error = drawn.std(axis=0) / len(keys) ** 0.5
        np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - w), 5 * error, err_msg=name)
        # By hand: the columns that a product sums over have a variance of (|column|^2 + w^2) / N.
        rows = {"kernel": (0, 1, 2), "stacked": (1,), "normalised": (0,), "transposed": (1,), "vector": ()}
        variance = (np.sum(w**2, axis=rows[name], keepdims=True) + w**2) / len(X)
        ratio = drawn.var(axis=0) / variance
        # A variance of 2,000 draws with a kurtosis below 12 has an error below sqrt(11 / 2,000) of it.
        np.testing.assert_array_less(np.abs(ratio - 1), 5 * (11 / len(keys)) ** 0.5, err_msg=name)


def test_draws_of_matrices_are_their_own() -> None:
    rule = ll.weight_mirror(MODEL, squares, optimizer=optax.sgd(1.0))
    params = PARAMS | {"stacked": jnp.broadcast_to(PARAMS["stacked"][:1], SHAPES["stacked"])}
    state = rule.init(KEY, params, X)
    after = rule.value_and_grad(KEY, params, state, X, jnp.zeros((8, 3)))[2].feedback
    assert not np.allclose(after["stacked"][0], after["stacked"][1])


@pytest.mark.parametrize("name", slow_but(("linen_attention_block", "equinox_gru"), ZOO))
def test_on_models_of_other_libraries(name: str) -> None:
    """The gradient is that of feedback alignment with the same feedback, which then moves."""
    case = ZOO[name]()
    output = jax.eval_shape(case.apply, case.params, case.x)
    y = jax.random.uniform(KEY, output.shape, output.dtype)
    model = ll.Model(case.apply)
    rule = ll.weight_mirror(model, squares, optimizer=optax.sgd(0.1))
    fixed = ll.feedback_alignment(model, squares)

    @jax.jit
    def run() -> Any:
        state = rule.init(KEY, case.params, case.x)
        grads = fixed.value_and_grad(KEY, case.params, fixed.init(KEY, case.params, case.x), case.x, y)[1]
        return state, grads, rule.value_and_grad(KEY, case.params, state, case.x, y)

    state, expected, (_, grads, after) = run()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, expected)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.feedback, after.feedback)
    assert all(jax.tree.leaves(moved))


test_bad_input = refusals(
    values={
        "^decay: expected a finite number >= 0, got -1": lambda: ll.weight_mirror(
            MODEL, squares, optimizer=optax.sgd(0.1), decay=-1
        ),
    },
    types={
        "optimizer: expected an optimizer of optax": lambda: ll.weight_mirror(MODEL, squares, optimizer=0.1),
    },
)

"""Feedback of a weight mirror follows the weights, whatever reads them; other models are among the zoo."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lax_learning as ll
from tests.compare import assert_mean, draws_of, normal, squares
from tests.refusal import refusals

KEY = jax.random.key(5)
X, Y = normal(9, 8, 4, 4, 2), jnp.zeros((8, 3))
NUMBERS = ("NHWC", "HWIO", "NHWC")
SHAPES = {
    "first": (3, 3, 2, 2), "kernel": (2, 2, 2, 3), "vector": (12,), "stacked": (2, 12, 12),
    "normalised": (12, 5), "transposed": (3, 5),
}  # fmt: skip
PARAMS = {name: normal(i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


def apply(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A model in which parameters are read as they are, stacked, transposed, normalised and as vectors."""
    x = jnp.tanh(jax.lax.conv_general_dilated(x, p["first"], (1, 1), "SAME", dimension_numbers=NUMBERS))
    x = jnp.tanh(jax.lax.conv_general_dilated(x, p["kernel"], (2, 2), "SAME", dimension_numbers=NUMBERS))
    x = x.reshape(len(x), -1)
    x = x * (x @ p["vector"])[:, None]
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stacked"])[0]
    x = jnp.tanh(x @ (p["normalised"] / jnp.linalg.norm(p["normalised"])))
    return jnp.einsum("bi,oi->bo", x, p["transposed"])


MODEL = ll.Model(apply)


def test_expected_feedback_is_the_parameter() -> None:
    # After a step of SGD with rate 1 the feedback is (1 - decay) B + the mean response, whose mean is w.
    decay, number = 0.25, 1_000
    rule = ll.weight_mirror(MODEL, squares, optimizer=optax.sgd(1.0), decay=decay)
    state = jax.jit(rule.init)(KEY, PARAMS, X)
    assert state.feedback["first"] is None  # no error passes
    after = draws_of(lambda key: rule.value_and_grad(key, PARAMS, state, X, Y)[2].feedback, KEY, number)
    for name in list(SHAPES)[1:]:
        w, drawn = PARAMS[name], np.asarray(after[name]) - (1 - decay) * np.asarray(state.feedback[name])
        assert_mean(drawn, w)
        # By hand: the columns that a product sums over have a variance of (|column|^2 + w^2) / N.
        rows = {"kernel": (0, 1, 2), "stacked": (1,), "normalised": (0,), "transposed": (1,), "vector": ()}
        variance = (np.sum(w**2, axis=rows[name], keepdims=True) + w**2) / len(X)
        # A sample variance with a kurtosis below 12 has an error below sqrt(11 / number) of it.
        ratio = drawn.var(axis=0) / variance
        np.testing.assert_array_less(np.abs(ratio - 1), 5 * (11 / number) ** 0.5, err_msg=name)
    # Matrices of a stack have draws of their own: correlations are 0 with an error of 1 / sqrt(number).
    apart = after["stacked"] - after["stacked"].mean(axis=0)
    correlations = jnp.mean(apart[:, 0] * apart[:, 1], axis=0) / jnp.prod(apart.std(axis=0), axis=0)
    assert jnp.abs(correlations).max() < 5 / number**0.5


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

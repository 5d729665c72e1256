"""Weight mirror for any model: feedback learns from the response of products to noise."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from lax_learning._checks import check_not_negative
from lax_learning._precision import raised
from lax_learning._sites._batch import as_batch
from lax_learning._sites._equations import vary_as
from lax_learning._sites._matrices import Matrix, direct_matrices
from lax_learning._sites._program import Program
from lax_learning.estimators._draws import as_gradient
from lax_learning.models import Model
from lax_learning.rules._feedback import FeedbackInit, same_scale
from lax_learning.rules._feedback_rule import by_feedback, feedback_rule
from lax_learning.types import Key, Loss, Params, Rule, Where


def weight_mirror(
    model: Model,
    loss: Loss,
    *,
    optimizer: Any,
    decay: ArrayLike = 1.0,
    feedback_init: FeedbackInit = same_scale,
    where: Where = None,
) -> Rule:
    """Feedback alignment whose feedback learns the weights from the response of products to injected noise.

    `g_feedback = decay feedback - 1/N sum_n xi_n^T (xi_n w)`, `xi_n ~ N(0, 1)` on the inputs of the product

    `E[xi^T (xi w)] = w`, so under SGD with rate beta the feedback is a running mean that tracks `w / decay`.
    One entry of a sample has variance `(|w_column|^2 + w^2) / N`, so beta should be small compared with
    `N / rows`. N is the batch size; the examples themselves are not used. The paper has a separate mirror
    phase; here mirroring is part of every call, and the response is taken before the nonlinearity.

    Every matrix has its own noise. A parameter that products do not read directly (normalised, reshaped, used
    twice) is mirrored as a matrix whose columns are its last axis, and a vector entry by entry; its feedback
    tracks the parameter and passes through the same operations of the model. Gains and biases, which no
    product reads, have no feedback.

    Args:
      optimizer: updates the feedback at every call of `value_and_grad`: `optax.sgd(beta)` for the form above.
      decay: decay of the feedback, >= 0; may be traced. With 1, feedback tracks the weights themselves.
      feedback_init, where: as in `feedback_alignment`.

    Returns:
      The rule, with a `LearnedState`. The feedback changes only if you use the returned state.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = weight_mirror(model, ll.squared_error, optimizer=optax.sgd(0.1))
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((500, 3))
      >>> state = rule.init(key, params, x)
      >>> step = jax.jit(rule.value_and_grad)
      >>> for i in range(50):
      ...     loss, grads, state = step(jax.random.key(i), params, state, x, x)
      >>> bool(jnp.abs(state.feedback["b"] - params["b"]).max() < 0.1)
      True

    References:
      Akrout et al., Deep learning without weight transport, https://arxiv.org/abs/1904.05391, 2019.
    """
    check_not_negative("decay", decay)

    def learn(key: Key, feedback: PyTree, grads: Params, params: Params, x: Any) -> PyTree:
        x, size = as_batch(x)
        program = Program(model, params, x)
        found, number = direct_matrices(program), len(program.split.leaves)
        keys, matrices = list(jax.random.split(key, number)), [found.get(i) for i in range(number)]

        def gradient(b: Array, key: Key, matrix: Matrix | None, w: Array) -> Array:
            wide, w = vary_as((b.astype(raised(b)), w), key)
            mean = _response(key, w.astype(wide.dtype), matrix, size)
            return (jnp.asarray(decay, wide.dtype) * wide - mean).astype(b.dtype)

        trees = map(program.split.structure.unflatten, (keys, matrices))
        return as_gradient(by_feedback(gradient, feedback, *trees, params), feedback)

    return feedback_rule(model, loss, where, feedback_init, learn=learn, optimizer=optimizer)


def _response(key: Key, w: Array, matrix: Matrix | None, number: int) -> Array:
    """Returns the mean of `xi^T (xi w)` over noise vectors, in the shape of the parameter."""
    matrix = matrix or Matrix(0, tuple(range(w.ndim - 1)), (w.ndim - 1,))
    if not matrix.rows:
        xi = jax.random.normal(key, (number, *w.shape), w.dtype)
        return jnp.mean(xi**2, axis=0) * w
    ws, back = jax.vjp(matrix.rows_of, w)
    xi = jax.random.normal(key, (len(ws), number, ws.shape[1]), w.dtype)
    (found,) = back(jnp.swapaxes(xi, 1, 2) @ (xi @ ws) / number)
    return found

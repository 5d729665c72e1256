"""Guided gradients for any model: projections of the gradient onto the span of guesses."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lax_learning._checks import check_instance, check_key, check_sequence
from lax_learning._precision import raised
from lax_learning._sites._batch import as_batch
from lax_learning._sites._equations import vary_as
from lax_learning.estimators._autodiff import directional_derivative
from lax_learning.estimators._draws import as_gradient
from lax_learning.models import Model, Split
from lax_learning.rules._common import Result, check_parts, losses_of, value_of
from lax_learning.rules._feedback import check_state
from lax_learning.types import Key, Loss, Params, Rule


def guided_gradient(model: Model, loss: Loss, guesses: Rule | Sequence[Rule]) -> Rule:
    """Projects the gradient onto the updates of other rules, by forward-mode differentiation along them.

    `g = U (U^T U)^-1 U^T dL/dw` with the K guesses as columns of U; for one, `g = (dL/dw . u) u / |u|^2`.

    A forward pass with a tangent measures each slope `u_k . dL/dw`, so no error is propagated back. The
    update never increases the loss to first order, `g . dL/dw >= 0`, for any guesses. It is exact if the
    gradient lies in their span, and another guess never lowers its cosine to the gradient; guesses that are
    zero or linearly dependent add nothing. The cost is that of the guesses, plus one forward pass and K
    passes with a tangent, and memory for K gradients.

    Args:
      model: any model that supports forward-mode differentiation; others raise a TypeError at trace time.
      guesses: one or more rules for the same model, each with its own key; repeat a rule for several draws.

    Returns:
      The rule; its state contains the states of the guesses, in order.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = guided_gradient(model, ll.squared_error, ll.feedback_alignment(model, ll.squared_error))
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> y, state = jnp.zeros((5, 3)), rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, y)
      >>> jax.tree.map(jnp.shape, grads)
      {'a': (3, 3), 'b': (3, 3)}

    References:
      Fournier et al., Can forward gradient match backpropagation?, https://arxiv.org/abs/2306.06968, 2023
      (one guess; projecting onto several is the natural extension).
    """
    check_parts(model, loss)
    rules = (guesses,) if isinstance(guesses, Rule) else guesses
    check_sequence("guesses", rules, "a rule, or a sequence of rules")
    if not rules:
        raise ValueError("guesses: expected at least one rule, got none")
    for i, rule in enumerate(rules):
        check_instance(f"guesses[{i}]", rule, Rule, "a Rule")

    def init(key: Key, params: Params, x: Any) -> tuple[Any, ...]:
        check_key("key", key)
        keys = jax.random.split(key, len(rules))
        return tuple(rule.init(k, params, x) for k, rule in zip(keys, rules, strict=True))

    def value_and_grad(key: Key, params: Params, state: tuple[Any, ...], x: Any, y: Any) -> Result:
        check_key("key", key)
        check_state(state, tuple)
        keys = jax.random.split(key, len(rules))
        found = [r.value_and_grad(k, params, s, x, y) for r, k, s in zip(rules, keys, state, strict=True)]
        x, size = as_batch(x)
        split = Split(model, params)
        own = [Split(model, grads).parameters for _, grads, _ in found]
        directions = _orthonormal([jnp.stack(leaves) for leaves in zip(*own, strict=True)])

        def mean_loss(parameters: list[Array]) -> Array:
            output, _ = model(split.merge(parameters), x)
            return jnp.mean(losses_of(loss, output, y, size))

        at = vary_as(split.parameters, directions)
        slopes = jax.vmap(lambda u: directional_derivative(mean_loss, at, u)[1])(directions)
        grads = [jnp.tensordot(slopes.astype(u.dtype), u, 1) for u in directions]
        grads = split.gradients(as_gradient(grads, split.parameters))
        value = value_of(mean_loss(split.parameters), model, params, x)
        return value, grads, tuple(after for _, _, after in found)

    return Rule(init, value_and_grad, model.trainable)


def _orthonormal(guesses: list[Array]) -> list[Array]:
    """Returns orthonormal directions that span guesses `[K, ...]`, and zeros for those that add nothing."""
    dtype = raised(*guesses)
    rows = jnp.concatenate([u.reshape(len(u), -1).astype(dtype) for u in guesses], axis=1)

    def unit(row: Array) -> Array:
        largest = jnp.max(jnp.abs(row))  # so that squares neither overflow nor underflow
        row = row / jnp.where(largest > 0, largest, 1)
        norm = jnp.linalg.norm(row)
        return row / jnp.where(norm > 0, norm, 1)

    def add(k: Array, basis: Array) -> Array:
        row = unit(basis[k])
        others = jnp.where(jnp.arange(len(basis))[:, None] < k, basis, 0)
        rest = row
        for _ in range(2):  # a single projection would leave rounding errors
            rest = rest - (others @ rest) @ others
        # Guesses have length 1, so a remainder this short is rounding error.
        return basis.at[k].set(jnp.where(jnp.linalg.norm(rest) > 1e3 * jnp.finfo(dtype).eps, unit(rest), 0))

    rows = jax.lax.fori_loop(0, len(rows), add, rows)
    ends = np.cumsum([u[0].size for u in guesses])[:-1]
    pieces = jnp.split(rows, ends, axis=1)
    return [piece.reshape(u.shape).astype(u.dtype) for piece, u in zip(pieces, guesses, strict=True)]

"""PEPITA for any model: a second pass on the input plus the projected error of the first pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lax_learning._checks import check_key
from lax_learning._sites._activities import mark_activities
from lax_learning._sites._batch import as_batch, one_example
from lax_learning._sites._coupling import check_uncoupled
from lax_learning._sites._equations import vary_as
from lax_learning._sites._plan import Tap
from lax_learning._sites._program import Program
from lax_learning._sites._run import Feeds, Hooks
from lax_learning.models import Model, check_where
from lax_learning.rules import _common as common
from lax_learning.rules._direct import REMEDY
from lax_learning.rules._feedback import FeedbackState, check_feedback_init, check_state, drawn_like
from lax_learning.types import Key, Loss, Params, Rule, Where


def small_uniform(key: Key, like: jax.ShapeDtypeStruct) -> Array:
    """Draws uniform feedback within 0.05 times the limits of He initialisation, `sqrt(6 / inputs)`."""
    limit = 0.05 * (6 / np.prod(like.shape[1:], initial=1)) ** 0.5
    return jax.random.uniform(key, like.shape, like.dtype, -limit, limit)


def pepita(
    model: Model,
    loss: Loss,
    *,
    feedback_init: Callable[[Key, jax.ShapeDtypeStruct], Array] = small_uniform,
    where: Where = None,
) -> Rule:
    """Compares the activities of two forward passes; the second adds the error of the first to the input.

    `x'' = x + e F`, `delta_l = a_l - a''_l`, `delta_L = e''`, `dW_l = a''_{l-1}^T delta_l`

    `e = dL/doutput` is the error of the first pass, which enters at the input through fixed random weights F,
    and `e''` that of the second. No error passes back through any layer. The update is not the gradient of
    any function and weakens with depth. F must be small, so that the second pass resembles the first. The use
    of e'' follows the authors' code.

    The activity of a site is the value that the model computes from its sum alone, after the nonlinearity and
    before the next product. If no such value has the shape of the sum (gates, sums that are read twice), the
    sum itself is compared. Sites followed by no other product before the output get its true error. Values
    that depend on no input, such as a learned initial state, are equal in both passes and do not learn.
    Leaves of x that are not floating-point are unchanged.

    Args:
      feedback_init: `(key, like) -> F` with the shape of `like`, `[outputs, *shape of an input]`; by default
        uniform within 0.05 times the limits of He initialisation.
      where: which parameters are trained; the gradients of the others are zero.

    Returns:
      The rule, with a `FeedbackState` whose feedback is F, a list with one array for every floating-point
      leaf of x. It has no signals: these pair with inputs of the first pass, but updates use those of the
      second.

    Raises:
      ValueError: at trace time, for a model that couples examples, or an x without floating-point leaves.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = pepita(model, ll.squared_error)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.ones((3, 2))}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, jnp.zeros((5, 2)))
      >>> [f.shape for f in state.feedback], grads["a"].shape
      ([(2, 3)], (3, 3))

    References:
      Dellaferrera, Kreiman, Error-driven input modulation: solving the credit assignment problem without a
      backward pass, https://proceedings.mlr.press/v162/dellaferrera22a.html, 2022.
    """
    common.check_parts(model, loss)
    check_feedback_init(feedback_init)
    check_where("where", where)

    def init(key: Key, params: Params, x: Any) -> FeedbackState:
        check_key("key", key)
        one = one_example(as_batch(x, only_shapes=True)[0])
        outputs = Program(model, params, one).outputs
        likes = _likes(one, int(sum(np.prod(out.shape) for out in outputs if _is_float(out))))
        if not likes:
            raise ValueError("x: expected a floating-point leaf to add the error to, got none")
        pairs = zip(jax.random.split(key, len(likes)), likes, strict=True)
        return FeedbackState([drawn_like(feedback_init, k, like) for k, like in pairs])

    def value_and_grad(key: Key, params: Params, state: Any, x: Any, y: Any) -> common.Result:
        check_state(state)
        check_key("key", key)
        x, size = as_batch(x)
        x = vary_as(x, state)
        check_uncoupled(model, params, x, REMEDY)
        program = Program(model, params, x, by_example=True)
        sites = common.select(program, where)
        activities = mark_activities(program.plan, len(program.outputs))

        def end(tap: Tap, z: Array, feed: Any) -> tuple[Array, Array]:
            return z if tap.index in activities.last else jax.lax.stop_gradient(z), z

        run = program.runner(Hooks(end=end, activities=True))
        output, _, first = run(program.split.parameters, x)
        losses, error = common.error_of(loss, output, y, size, 1.0)
        moved_x = _moved(x, error, state.feedback)

        def again(parameters: list[Any]) -> tuple[Any, Feeds]:
            output, _, second = run(parameters, moved_x)
            return output, second

        (output, second), pull_back = jax.vjp(again, program.split.parameters)
        _, error = common.error_of(loss, output, y, size, 1 / size)
        deltas = {index: jnp.zeros_like(value) for index, value in second.items()}
        for tap in program.plan.all_taps:
            at = activities.of_taps.get(tap.index, tap.index)
            at = at if first[at].shape == first[tap.index].shape else tap.index
            if tap.index not in activities.last:
                deltas[tap.index] = (first[at] - second[at]) / size
        (found,) = pull_back((error, deltas))
        return common.value_of(losses, model, params, x), common.result(program, False, found, sites), state

    return Rule(init, value_and_grad, model.trainable)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _likes(x: Any, outputs: int) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of F, one for every floating-point leaf of x."""
    leaves = filter(_is_float, jax.tree.leaves(x))
    return [jax.ShapeDtypeStruct((outputs, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]


def _moved(x: Any, error: Any, feedback: Any) -> Any:
    """Returns `x + e F`."""
    errors = filter(_is_float, jax.tree.leaves(error))
    e = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in errors], axis=1)
    expected = [like.shape for like in _likes(x, e.shape[1])]
    got = [jnp.shape(f) for f in feedback] if isinstance(feedback, list) else type(feedback).__name__
    if got != expected:
        raise ValueError(f"state.feedback: expected the shapes {expected}, got {got}")
    moves = (jnp.tensordot(e.astype(f.dtype), f, 1) for f in feedback)
    return jax.tree.map(lambda a: a + next(moves).astype(a.dtype) if _is_float(a) else a, x)

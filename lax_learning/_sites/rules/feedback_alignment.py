"""Feedback alignment on any model: errors pass through fixed random weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import check_instance, check_key
from lax_learning._sites._plan import Site
from lax_learning._sites._program import Program
from lax_learning._sites._run import Bilinear, Hooks
from lax_learning._sites.rules._common import (
    ModelRule,
    Sites,
    as_batch,
    check_loss,
    is_selected,
    joined,
    losses_of,
    select,
)
from lax_learning.models import Model, Where, check_where
from lax_learning.types import Key, Loss, Params

FeedbackInit = Callable[[Key, Array], Array]
"""`(key, operand) -> feedback` of the shape and dtype of the operand."""


class FeedbackState(NamedTuple):
    """State of a feedback rule.

    Fields:
      feedback: a pytree with the structure of params, None where no error passes.
    """

    feedback: PyTree


def check_state(state: Any) -> None:
    """Raises TypeError unless a rule gets the state that its init made."""
    check_instance("state", state, FeedbackState, "the state of the rule's init(key, params, x)")


def same_scale(key: Key, operand: Array) -> Array:
    """Normal feedback with the standard deviation of the operand.

    An operand of zeros gets `1 / sqrt(rows)`, so that errors pass; another constant, such as a gain of ones,
    is its own feedback.
    """
    wide = operand.astype(jnp.promote_types(operand.dtype, jnp.float32))
    spread = jnp.std(wide)
    rows = operand.shape[0] if operand.ndim else 1
    drawn = jax.random.normal(key, operand.shape, wide.dtype)
    constant = jnp.where(jnp.all(wide == 0), drawn * rows**-0.5, wide)
    return jnp.where(spread > 0, drawn * spread, constant).astype(operand.dtype)


def feedback_alignment(
    model: Model, loss: Loss, *, feedback_init: FeedbackInit = same_scale, where: Where = None
) -> ModelRule:
    """Backprop with independent, fixed weights in place of the transposed ones.

    `delta_l = (delta_{l+1} feedback_{l+1}^T) phi'(z_l)`, `dw_l = x_l^T delta_l / batch`

    Every matrix product and convolution of a parameter with data that depend on parameters passes its error
    through the feedback, reshaped, normalised, sliced and shared as the parameter is. All else (norms, gains,
    attention scores) passes its true derivative.

    Args:
      model: any model.
      loss: per-example loss `(output, y) -> [batch]`.
      feedback_init: `(key, parameter) -> feedback`; by default normal with the standard deviation of the
        parameter.
      where: which parameters have feedback of their own; the others pass errors through themselves.

    Returns:
      The rule, with a `FeedbackState`. `state._replace(feedback=params)` gives backprop.

    Raises:
      ValueError: at trace time, for feedback of other shapes than params, or a `cond` or a function with a
        derivative of its own around several products.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> from lax_learning.models import Model
      >>> model = Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = feedback_alignment(model, ll.squared_error)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> jax.tree.map(jnp.shape, state.feedback)
      {'a': None, 'b': (3, 3)}
      >>> loss, grads, state = rule.value_and_grad(key, params, state, x, x)

    References:
      Lillicrap et al., Random synaptic feedback weights support error backpropagation for deep learning,
      https://doi.org/10.1038/ncomms13276, 2016.
    """
    check_loss(loss)
    check_where("where", where)

    def init(key: Key, params: Params, x: Any) -> FeedbackState:
        check_key("key", key)
        program = Program(model, params, as_batch(x, only_shapes=True)[0])
        sites = select(program, where)
        needed = frozenset().union(
            *(site.leaves for site in program.plan.all_sites if _has_feedback(site, sites))
        )
        split = program.split
        keys = jax.random.split(key, len(split.leaves))
        leaves = [feedback_init(k, leaf) if i in needed else None
                  for i, (k, leaf) in enumerate(zip(keys, split.leaves, strict=True))]  # fmt: skip
        return FeedbackState(jax.tree.unflatten(split.structure, leaves))

    def value_and_grad(
        key: Key, params: Params, state: FeedbackState, x: Any, y: Any
    ) -> tuple[Any, Params, FeedbackState]:
        check_state(state)
        check_key("key", key)
        x, size = as_batch(x)
        program = Program(model, params, x)
        sites = select(program, where)
        feedback = partners(program, state.feedback)
        check_products(program, sites)

        def product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any) -> Any:
            return linked(op, w, x, partner) if _has_feedback(site, sites) else op(w, x)

        def mean_loss(parameters: list[Any]) -> tuple[Any, Any]:
            output, aux, _ = program.run(parameters, x, Hooks(product=product), feedback=feedback)
            return jnp.mean(losses_of(loss, output, y, size)), aux

        (value, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(program.split.parameters)
        return joined(value, aux, model), program.split.gradients(grads), state

    return ModelRule(init, value_and_grad, model.trainable)


def _has_feedback(site: Site, sites: Sites) -> bool:
    return bool(site.products) and site.passes_error and is_selected(site, sites)


def linked(op: Bilinear, w: Any, x: Any, partner: Any) -> Any:
    """Returns `op(w, x)`, whose error travels to x as that of `op(partner, x)` and to w as it is.

    The gradient of w is ordinary differentiation of `op(w, stop_gradient(x))`, so that it stays one product
    under `vmap`.
    """

    @jax.custom_vjp
    def link(z: Any, x: Any, partner: Any) -> Any:
        return z

    def forward(z: Any, x: Any, partner: Any) -> tuple[Any, Any]:
        return z, (x, partner)

    def backward(residuals: Any, delta: Any) -> tuple[Any, Any, Any]:
        x, partner = residuals
        (error,) = jax.vjp(lambda x: op(partner, x), x)[1](delta)
        return delta, error, jax.tree.map(jnp.zeros_like, partner)

    link.defvjp(forward, backward)
    return link(op(w, jax.tree.map(jax.lax.stop_gradient, x)), x, partner)


def partners(program: Program, feedback: PyTree) -> list[Any]:
    """Returns the feedback of every parameter, or None, checked against params.

    Raises:
      ValueError: for another structure or other shapes.
    """
    split = program.split
    leaves, structure = jax.tree.flatten(feedback, is_leaf=lambda leaf: leaf is None)
    expected = jax.tree.unflatten(split.structure, range(len(split.leaves)))
    if structure != jax.tree.structure(expected, is_leaf=lambda leaf: leaf is None):
        raise ValueError(
            f"state.feedback: expected the structure of params, {split.structure}, "
            f"got {jax.tree.structure(feedback)}"
        )
    places = jax.tree.leaves(expected, is_leaf=lambda leaf: leaf is None)
    found = {place: leaf for place, leaf in zip(places, leaves, strict=True) if place is not None}
    for place, leaf in found.items():
        own = split.leaves[place]
        if leaf is not None and jnp.shape(leaf) != jnp.shape(own):
            raise ValueError(
                f"state.feedback: expected shape {list(jnp.shape(own))} at {split.paths[place]!r}, "
                f"got {list(jnp.shape(leaf))}"
            )
    return [found[i] for i, trained in enumerate(split.trained) if trained]


def check_products(program: Program, sites: Sites) -> None:
    """Raises ValueError where an error would have to pass through several products at once."""
    for site in program.plan.all_sites:
        if site.products > 1 and is_selected(site, sites):
            names = ", ".join(program.split.paths[i] for i in sorted(site.leaves))
            raise ValueError(
                f"apply: expected at most one product of parameters inside a {site.operation!r}, so that its "
                f"error can pass through the feedback, got {site.products} with the parameters {names}"
                + (f" at {site.source}" if site.source else "")
            )

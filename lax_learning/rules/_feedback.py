"""Feedback for any model: weights that errors pass through, transformed by the model like the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from lax_learning._checks import as_floating, check_callable, check_instance, check_key, check_shapes
from lax_learning._precision import raised
from lax_learning._sites._batch import as_batch
from lax_learning._sites._equations import vary_as
from lax_learning._sites._plan import Site
from lax_learning._sites._products import Bilinear
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.models import Model, Split
from lax_learning.rules._common import Sites, add, joined, losses_of, result, select, starting
from lax_learning.types import Key, Loss, Params, Signals, Where

FeedbackInit = Callable[[Key, Array], Array]
"""`(key, operand) -> feedback` with the shape and dtype of the operand."""


class FeedbackState(NamedTuple):
    """State of a feedback rule.

    Fields:
      feedback: feedback weights: a pytree with the structure of params, None where no error passes.
    """

    feedback: PyTree


class LearnedState(NamedTuple):
    """State of a rule whose feedback learns.

    Fields:
      feedback: feedback weights, as returned by the rule's init.
      optimizer_state: state of the optimiser that updates the feedback.
    """

    feedback: PyTree
    optimizer_state: optax.OptState


def moved_feedback(
    optimizer: optax.GradientTransformationExtraArgs, state: LearnedState, moves: PyTree, loss: Any
) -> LearnedState:
    """Returns the state after an update of the feedback."""
    updates, optimizer_state = optimizer.update(
        moves, state.optimizer_state, state.feedback, value=loss, grad=moves
    )
    return LearnedState(optax.apply_updates(state.feedback, updates), optimizer_state)


def check_state(state: Any, kind: type = FeedbackState) -> None:
    """Raises TypeError unless a rule is given the kind of state that its init returns."""
    check_instance("state", state, kind, "the state of the rule's init(key, params, x)")


def check_feedback_init(feedback_init: Any) -> None:
    """Raises TypeError unless a rule is given an initialiser of feedback."""
    expected = "a function (key, like) -> feedback"
    check_callable("feedback_init", feedback_init, expected, num_arguments=2)


def drawn_like(feedback_init: Callable[[Key, Any], Any], key: Key, like: Any) -> Array:
    """Returns `feedback_init(key, like)`, checked to have the shape of `like`."""
    drawn = as_floating("feedback_init", feedback_init(key, like))
    check_shapes(["feedback_init"], [drawn], [like.shape])
    return drawn


def same_scale(key: Key, operand: Array) -> Array:
    """Draws normal feedback with the standard deviation of the operand.

    If the operand is zero, the standard deviation is `1 / sqrt(rows)`, so that errors pass. Any other
    constant operand, such as a gain of ones, is its own feedback.
    """
    wide = operand.astype(raised(operand))
    spread = jnp.std(wide)
    rows = operand.shape[0] if operand.ndim else 1
    drawn = jax.random.normal(key, operand.shape, wide.dtype)
    constant = jnp.where(jnp.all(wide == 0), drawn * rows**-0.5, wide)
    return jnp.where(spread > 0, drawn * spread, constant).astype(operand.dtype)


def draw_feedback(feedback_init: FeedbackInit, key: Key, sites: Sites) -> PyTree:
    """Returns feedback with the structure of params, None where no error passes."""
    needed, leaves = _needed(sites), sites.program.split.leaves
    pairs = enumerate(zip(jax.random.split(key, len(leaves)), leaves, strict=True))
    feedback = [drawn_like(feedback_init, k, leaf) if i in needed else None for i, (k, leaf) in pairs]
    return sites.program.split.structure.unflatten(feedback)


def _needed(sites: Sites) -> frozenset[int]:
    """Returns the parameters whose feedback is used."""
    passed = (site.leaves for site in sites.program.plan.all_sites if _has_feedback(site, sites))
    return frozenset().union(*passed)


def initial_feedback(
    model: Model, where: Where, feedback_init: FeedbackInit, key: Key, params: Params, x: Any
) -> PyTree:
    """Returns feedback for a model at its params, see `draw_feedback`."""
    check_key("key", key)
    program = Program(model, params, as_batch(x, only_shapes=True)[0])
    return draw_feedback(feedback_init, key, select(program, where))


Operand = Any
"""Operand of a product: an array, or a tuple of arrays for a function with a custom derivative."""

WEIGHTS = object()
"""Marker in place of feedback, for errors that pass through the weights themselves."""


def through_feedback(
    model: Model,
    loss: Loss,
    where: Where,
    params: Params,
    x: Any,
    y: Any,
    *,
    varying: Any,
    feedback: Callable[[Sites], PyTree],
    transport: Callable[[Operand, Operand], Operand] = lambda w, feedback: feedback,
    opened: bool = False,
) -> tuple[Any, Params | Signals]:
    """Returns the value, and the gradient (or signals if `opened`) when errors pass through other weights.

    Args:
      varying: values that feedback depends on; inside `jax.shard_map`, they may differ between devices.
      feedback: `sites -> feedback`, a pytree with the structure of params, or `WEIGHTS`.
      transport: `(w, feedback) -> weights` that the error of a product passes through, from the product's
        operand and its feedback.
    """
    x, size = as_batch(x)
    split, x = Split(model, params), vary_as(x, varying)
    program = Program(model, vary_as(split.merge(split.parameters), varying), x)
    sites = select(program, where)
    tree = feedback(sites)
    mates = None if tree is WEIGHTS else vary_as(partners(program, sites, tree), varying)
    check_products(sites)

    def product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
        if not _has_feedback(site, sites):
            return op(w, x)
        # The gradient of w comes from ordinary differentiation, so it stays one product under `vmap`.
        z = op(w, jax.tree.map(jax.lax.stop_gradient, x))
        return linked(op, z, x, transport(w, partner))

    def mean_loss(moved: Any) -> tuple[Any, Any]:
        parameters, feeds = (split.parameters, moved) if opened else (moved, {})
        hooks = Hooks(product=product, end=add)
        output, aux, _ = program.run(vary_as(parameters, varying), x, hooks, feeds=feeds, feedback=mates)
        return jnp.mean(losses_of(loss, output, y, size)), aux

    at = starting(program, True) if opened else split.parameters
    (value, aux), found = jax.value_and_grad(mean_loss, has_aux=True)(at)
    return joined(value, aux, model), result(program, opened, found)


def _has_feedback(site: Site, sites: Sites) -> bool:
    return bool(site.products and site.passes_error and site.leaves & sites.leaves)


def linked(op: Bilinear, z: Any, x: Any, partner: Any) -> Any:
    """Returns z; errors pass on to z unchanged, and to x as if z were `op(partner, x)`."""

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
    return link(z, x, partner)


def partners(program: Program, sites: Sites, feedback: PyTree) -> list[Any]:
    """Returns the feedback of every parameter, or None; raises ValueError unless it fits params."""
    split, needed, got = program.split, _needed(sites), jax.tree.structure(feedback)
    try:
        leaves = split.structure.flatten_up_to(feedback)
        fits = jax.tree_util.all_leaves([leaf for leaf in leaves if leaf is not None])
    except ValueError:
        leaves, fits = [], False
    if not fits:
        raise ValueError(f"state.feedback: expected the structure of params, {split.structure}, got {got}")
    for i, (path, own, leaf) in enumerate(zip(split.paths, split.leaves, leaves, strict=True)):
        if leaf is None and i in needed:
            expected = f"an array at {path!r}, through which errors pass"
            raise ValueError(f"state.feedback: expected {expected}, got None")
        if leaf is not None:
            check_shapes([f"state.feedback at {path!r}"], [leaf], [own.shape])
    return [leaf for leaf, trained in zip(leaves, split.trained, strict=True) if trained]


def check_products(sites: Sites) -> None:
    """Raises ValueError where an error would have to pass through several products at once."""
    for site in sites.program.plan.all_sites:
        if site.products > 1 and site.leaves & sites.leaves:
            raise ValueError(
                f"apply: expected at most one product of parameters inside a {site.operation!r}, so that its "
                f"error can pass through the feedback, got {site.products} with the parameters "
                f"{sites.program.names(site)}{site.at_source}"
            )

"""Direct feedback alignment on any model: the output error goes straight to the data that sites read."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_key
from lax_learning._sites._batch import as_batch, one_example
from lax_learning._sites._equations import vary_as
from lax_learning._sites._plan import Read, Site, Tap
from lax_learning._sites._program import Program
from lax_learning._sites._run import Bilinear, Hooks
from lax_learning.models import Model, check_where
from lax_learning.rules._common import (
    check_parts,
    delta_rule,
    joined,
    losses_of,
    masked,
    named,
    select,
    zeros_at,
)
from lax_learning.rules._feedback import (
    FeedbackState,
    check_feedback_init,
    check_products,
    check_state,
    drawn_like,
)
from lax_learning.rules._runs import by_example, check_uncoupled
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where

_REMEDY = (
    "use feedback_alignment, backprop or weight_perturbation, which take the batch as it is, "
    "node_perturbation with batch=True, or running statistics in the place of those of the batch"
)

DirectInit = Callable[[Key, jax.ShapeDtypeStruct], Array]
"""`(key, like) -> feedback` of the shape `[..., units, outputs]` and dtype of `like`."""


def keeps_variance(key: Key, like: jax.ShapeDtypeStruct) -> Array:
    """Normal feedback with variance `1 / outputs`: signals have the variance of the errors."""
    return (jax.random.normal(key, like.shape) * like.shape[-1] ** -0.5).astype(like.dtype)


class _Route(NamedTuple):
    """The way from an output to a data value that sites read, both of one example.

    Fields:
      read: the data value, `[steps of its scans, ...]`.
      layers: its leading axes that stand for stacked layers; they come first after `_in_order`.
      order: its axes, those of layers first.
      by_position: whether errors go position by position.
      repeats: number of time steps that share a signal.
      units: units a position.
      outputs: outputs a position.
    """

    read: Read
    order: tuple[int, ...]
    layers: tuple[int, ...]
    by_position: bool
    repeats: int
    units: int
    outputs: int

    @property
    def like(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*self.layers, self.units, self.outputs), self.read.dtype)

    def signal(self, feedback: Array, error: Array) -> Array:
        """`e B^T` in the shape of the data value."""
        errors = error.reshape(-1, self.outputs)  # a row a position, or one
        errors = errors if self.by_position else jnp.sum(errors, axis=0, keepdims=True)
        sent = jnp.einsum("po,...uo->...pu", errors.astype(feedback.dtype), feedback)
        sent = jnp.broadcast_to(sent[..., None, :, :], (*self.layers, self.repeats, *sent.shape[-2:]))
        shape = [self.read.shape[axis] for axis in self.order]
        return jnp.transpose(sent.reshape(shape), _inverse(self.order)).astype(self.read.dtype)


def _inverse(order: tuple[int, ...]) -> list[int]:
    return sorted(range(len(order)), key=lambda axis: order[axis])


def _route(read: Read, output: Any) -> _Route:
    """Pairs positions: steps of a scan over time, or the first axis within an example."""
    depth = len(read.stacked)
    stacked = [axis for axis in range(depth) if read.stacked[axis]]
    times = [axis for axis in range(depth) if not read.stacked[axis]]
    inside = list(range(depth, len(read.shape)))
    layers = tuple(read.shape[axis] for axis in stacked)
    output_positions = output.shape[1] if len(output.shape) >= 3 else None
    # The axis of examples, of length 1 here, is the first of a value outside of scans, or behind its steps.
    candidates = times
    if not times and len(inside) >= 3:
        candidates = inside[1:2] if read.shape[inside[0]] == 1 else inside[:1]
    place = [axis for axis in candidates if output_positions and read.shape[axis] == output_positions][:1]
    times, inside = ([axis for axis in axes if axis not in place] for axes in (times, inside))

    def number(axes: list[int]) -> int:
        return math.prod(read.shape[axis] for axis in axes)

    outputs = math.prod(output.shape) // (output_positions or 1)
    order = (*stacked, *times, *place, *inside)
    return _Route(read, order, layers, bool(place), number(times), number(inside), outputs)


def direct_feedback_alignment(
    model: Model, loss: Loss, *, feedback_init: DirectInit = keeps_variance, where: Where = None
) -> Rule:
    """Sends the output error through fixed random weights to every data value that sites read.

    `x_l` receives `e B_l^T` with `e = dL/doutput`, in the place of the error that would come back through
    the product that reads it; the rest is differentiated as it is, `delta = (e B_l^T) phi'(z)`. The read-out
    gets its exact gradient.

    Several products that read one value, such as query, key and value, share one B. If the output and `x_l`
    both have positions (the first axis within an example, or the steps of a scan, of equal length), the
    error goes position by position; if only the output has them, it is summed over positions. B is shared
    over time steps; stacked layers have one B each. With several outputs there is one B for each, and their
    signals add up, as do those of later layers in a residual stream.

    Args:
      model: any model whose examples do not depend on each other.
      loss: per-example loss `(output, y) -> [batch]`.
      feedback_init: `(key, like) -> feedback` of shape `[units, outputs]`, with leading axes of stacked
        layers.
      where: which parameters are trained; the gradients of the others are zero.

    Returns:
      The rule, with a `FeedbackState` whose feedback is a dict `"read/output" -> B`.

    Raises:
      ValueError: at trace time, for a model that couples examples, or a `cond` or a function with a
        derivative of its own around several products.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = direct_feedback_alignment(model, ll.squared_error)
      >>> key, params, x = jax.random.key(0), {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> [feedback.shape for feedback in state.feedback.values()]
      [(4, 2)]
      >>> loss, grads, state = rule.value_and_grad(key, params, state, x, jnp.ones((5, 2)))

    References:
      Nokland, Direct feedback alignment provides learning in deep neural networks,
      https://arxiv.org/abs/1609.01596, 2016.
    """
    check_parts(model, loss)
    check_feedback_init(feedback_init)
    check_where("where", where)

    def routes(program: Program) -> dict[str, tuple[int, int, _Route]]:
        return {
            f"{i}/{j}": (read.index, j, _route(read, output))
            for i, read in enumerate(program.plan.all_reads)
            for j, output in enumerate(program.outputs)
            if read.passes_error and jnp.issubdtype(output.dtype, jnp.floating)
        }

    def init(key: Key, params: Params, x: Any) -> FeedbackState:
        check_key("key", key)
        one = one_example(as_batch(x, only_shapes=True)[0])
        ways = routes(Program(model, params, one))
        keys = jax.random.split(key, max(len(ways), 1))
        feedback = {
            name: drawn_like(feedback_init, k, route.like)
            for k, (name, (_, _, route)) in zip(keys, ways.items(), strict=False)
        }
        return FeedbackState(feedback)

    def assign(
        key: Key, params: Params, state: FeedbackState, x: Any, y: Any, *, opened: bool = False
    ) -> tuple[Any, Params | Signals, FeedbackState]:
        check_state(state)
        check_key("key", key)
        x, size = as_batch(x)
        x = vary_as(x, state)
        check_uncoupled(model, params, x, _REMEDY)
        program, run = by_example(model, params, x)
        sites, ways = select(program, where), routes(program)
        check_products(program, sites)
        _check_feedback(state.feedback, ways)

        def blocked(site: Site, op: Bilinear, w: Any, x: Any, *_: Any) -> Any:
            return op(w, jax.tree.map(jax.lax.stop_gradient, x) if site.passes_error else x)

        def end(tap: Tap, z: Array, feed: Any) -> tuple[Array, None]:
            return (z if feed is None else z + feed), None

        def forward(moved: Any) -> tuple[Any, dict[int, Array]]:
            parameters, feeds = (program.split.parameters, moved) if opened else (moved, {})
            return run(parameters, Hooks(product=blocked, end=end, reads=True), feeds)

        zeros = {i: zero[None] for i, zero in zeros_at(program.plan.all_taps).items()}
        (output, reads), pull_back = jax.vjp(forward, zeros if opened else program.split.parameters)
        losses, transpose = jax.vjp(lambda output: losses_of(loss, output, y, size), output)
        (error,) = transpose(jnp.full_like(losses, 1 / size))
        errors = jax.tree.leaves(error)
        signals = {index: jnp.zeros_like(value) for index, value in reads.items()}
        for name, (index, j, route) in ways.items():
            signals[index] += jax.vmap(route.signal, (None, 0))(state.feedback[name], errors[j])
        (found,) = pull_back((error, signals))
        aux = model(params, x)[1] if model.has_aux else None
        value = joined(jnp.mean(losses), aux, model)
        if opened:
            deltas = named({i: delta[0] for i, delta in found.items()}, program)
            return value, Signals(deltas), state
        return value, program.split.gradients(masked(found, sites)), state

    return delta_rule(model, init, assign, masks=where is not None)


def _check_feedback(feedback: Any, ways: dict[str, tuple[int, int, _Route]]) -> None:
    if not isinstance(feedback, dict) or feedback.keys() != ways.keys():
        got = sorted(feedback) if isinstance(feedback, dict) else type(feedback).__name__
        raise ValueError(
            f"state.feedback: expected a dict with the entries {sorted(ways)}, see init, got {got}"
        )
    for name, (_, _, route) in ways.items():
        if jnp.shape(feedback[name]) != route.like.shape:
            raise ValueError(
                f"state.feedback[{name!r}]: expected shape {list(route.like.shape)}, "
                f"got {list(jnp.shape(feedback[name]))}"
            )

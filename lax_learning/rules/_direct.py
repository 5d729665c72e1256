"""Direct feedback on any model: what leaves the output goes straight to the data that sites read."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lax_learning._checks import check_key
from lax_learning._optimizers import with_loss_support
from lax_learning._sites._batch import as_batch, one_example
from lax_learning._sites._equations import vary_as
from lax_learning._sites._plan import Read, Site, Tap
from lax_learning._sites._program import Program
from lax_learning._sites._run import Bilinear, Hooks
from lax_learning.estimators._draws import as_gradient
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
    LearnedState,
    check_feedback_init,
    check_products,
    check_state,
    drawn_like,
)
from lax_learning.rules._runs import by_example, check_uncoupled
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where

REMEDY = (
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

    @property
    def shared_by(self) -> int:
        """Number of positions and time steps that share the feedback."""
        return math.prod(self.read.shape) // math.prod((*self.layers, self.units))

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


Ways = dict[str, tuple[int, int, _Route]]
"""By the name of a feedback, `read/output`: index of the read, place of the output, and the route."""


class Pass(NamedTuple):
    """Forward pass of a direct rule, from which feedback can be learned.

    Fields:
      ways: routes by name.
      reads: data values that sites read, by index, with an axis of examples in front.
      errors: derivative of the mean loss by every output.
      along: `noise -> derivatives of the outputs` along noise on the reads, all at once.
    """

    ways: Ways
    reads: dict[int, Array]
    errors: list[Array]
    along: Callable[[dict[int, Array]], list[Array]]

    def paired(
        self, feedback: dict[str, Array], sent: list[Array], units: dict[int, Array]
    ) -> dict[str, Array]:
        """`units^T sent`, summed over examples, positions and steps, in the shape of every feedback."""

        def at(name: str) -> Array:
            index, j, route = self.ways[name]

            def overlap(feedback: Array) -> Array:
                signals = jax.vmap(route.signal, (None, 0))(feedback, sent[j])
                return jnp.sum(signals * units[index])

            return jax.grad(overlap)(feedback[name])

        return {name: at(name) for name in feedback}


Sent = Callable[[Any, Any, int], Any]
"""`(error, y, batch size) -> what goes through the feedback`, with the structure of the output."""

Learn = Callable[[Key, dict[str, Array], Pass], dict[str, Array]]
"""`(key, feedback, pass) -> gradient of the feedback`."""


def direct_rule(
    model: Model,
    loss: Loss,
    feedback_init: DirectInit,
    where: Where,
    *,
    sent: Sent = lambda error, y, size: error,
    learn: Learn | None = None,
    optimizer: Any = None,
    total: bool = False,
) -> Rule:
    """Returns a rule that sends something straight from the output to every data value that sites read.

    Args:
      model, loss, feedback_init, where: of the rule.
      sent: what goes through the feedback; by default the error `dL/doutput`.
      learn: how the feedback learns, if it does.
      optimizer: that moves the feedback.
      total: whether what arrives is all of the error of a data value. By default what comes back past the
        products that read it, through a residual connection for example, is added.
    """
    check_parts(model, loss)
    check_feedback_init(feedback_init)
    check_where("where", where)
    with_loss = None if learn is None else with_loss_support(optimizer)

    def routes(program: Program) -> Ways:
        return {
            f"{i}/{j}": (read.index, j, _route(read, output))
            for i, read in enumerate(program.plan.all_reads)
            for j, output in enumerate(program.outputs)
            if read.passes_error and jnp.issubdtype(output.dtype, jnp.floating)
        }

    def init(key: Key, params: Params, x: Any) -> FeedbackState | LearnedState:
        check_key("key", key)
        one = one_example(as_batch(x, only_shapes=True)[0])
        ways = routes(Program(model, params, one))
        keys = jax.random.split(key, max(len(ways), 1))
        feedback = {
            name: drawn_like(feedback_init, k, route.like)
            for k, (name, (_, _, route)) in zip(keys, ways.items(), strict=False)
        }
        return (
            FeedbackState(feedback) if with_loss is None else LearnedState(feedback, with_loss.init(feedback))
        )

    def assign(
        key: Key, params: Params, state: Any, x: Any, y: Any, *, opened: bool = False
    ) -> tuple[Any, Params | Signals, Any]:
        check_state(state, FeedbackState if learn is None else LearnedState)
        check_key("key", key)
        x, size = as_batch(x)
        x = vary_as(x, state) if learn is None else vary_as(x, state, key)
        check_uncoupled(model, params, x, REMEDY)
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
            hooks = Hooks(product=blocked, end=end, reads="cut" if total else "emit")
            return run(parameters, hooks, feeds)

        def along(noise: dict[int, Array]) -> list[Array]:
            def outputs(moved: dict[int, Array]) -> list[Array]:
                return jax.tree.leaves(run(program.split.parameters, Hooks(), moved)[0])

            still = jax.tree.map(jnp.zeros_like, noise)
            return jax.jvp(outputs, (still,), (noise,))[1]

        zeros = {i: zero[None] for i, zero in zeros_at(program.plan.all_taps).items()}
        (output, reads), pull_back = jax.vjp(forward, zeros if opened else program.split.parameters)
        losses, transpose = jax.vjp(lambda output: losses_of(loss, output, y, size), output)
        (error,) = transpose(jnp.full_like(losses, 1 / size))
        arriving = jax.tree.leaves(sent(error, y, size))
        signals = {index: jnp.zeros_like(value) for index, value in reads.items()}
        for name, (index, j, route) in ways.items():
            signals[index] += jax.vmap(route.signal, (None, 0))(state.feedback[name], arriving[j])
        (found,) = pull_back((error, signals))
        aux = model(params, x)[1] if model.has_aux else None
        mean = jnp.mean(losses)
        value = joined(mean, aux, model)
        if opened:
            deltas = named({i: delta[0] for i, delta in found.items()}, program)
            return value, Signals(deltas), state
        grads = program.split.gradients(masked(found, sites))
        if learn is None or with_loss is None:
            return value, grads, state
        passed = Pass(ways, reads, jax.tree.leaves(error), along)
        taught = as_gradient(learn(key, vary_as(state.feedback, reads), passed), state.feedback)
        updates, optimizer_state = with_loss.update(
            taught, state.optimizer_state, state.feedback, value=mean, grad=taught
        )
        return value, grads, LearnedState(optax.apply_updates(state.feedback, updates), optimizer_state)

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

"""Direct feedback for any model: signals are sent directly to the data that sites read."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_key, check_shapes
from lax_learning._optimizers import with_loss_support
from lax_learning._sites._batch import as_batch, one_example
from lax_learning._sites._coupling import check_uncoupled
from lax_learning._sites._equations import vary_as
from lax_learning._sites._plan import Read, Site, Tap
from lax_learning._sites._products import Bilinear
from lax_learning._sites._program import Program
from lax_learning._sites._run import Feeds, Hooks
from lax_learning.estimators._draws import as_gradient
from lax_learning.models import Model, check_where
from lax_learning.rules import _common as common
from lax_learning.rules import _feedback as feedbacks
from lax_learning.rules._common import Result
from lax_learning.rules._feedback import FeedbackState, LearnedState
from lax_learning.types import Key, Loss, Params, Rule, Where

REMEDY = (
    "use feedback_alignment, backprop or weight_perturbation, which allow coupled examples, "
    "node_perturbation with batch=True, or running statistics instead of those of the batch"
)

DirectInit = Callable[[Key, jax.ShapeDtypeStruct], Array]
"""`(key, like) -> feedback` with the shape `[..., units, outputs]` and dtype of `like`."""


def keeps_variance(key: Key, like: jax.ShapeDtypeStruct) -> Array:
    """Draws normal feedback with variance `1 / outputs`, so that signals have the variance of errors."""
    return (jax.random.normal(key, like.shape) * like.shape[-1] ** -0.5).astype(like.dtype)


class _Route(NamedTuple):
    """Path of a signal from an output to a data value that sites read, for one example."""

    read: Read  # the data value, `[steps of its scans, ...]`
    order: tuple[int, ...]  # its axes, those of stacked layers first
    layers: tuple[int, ...]  # lengths of the axes of stacked layers
    by_position: bool  # whether errors are sent position by position
    repeats: int  # number of time steps that share a signal
    units: int  # number of units per position
    positions: int  # number of positions of the output
    outputs: int  # number of outputs per position

    @property
    def like(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*self.layers, self.units, self.outputs), self.read.dtype)

    @property
    def shared_by(self) -> int:
        """Number of positions and time steps that share the feedback."""
        return math.prod(self.read.shape) // math.prod((*self.layers, self.units))

    def signal(self, feedback: Array, error: Array) -> Array:
        """Returns `e B^T` in the shape of the data value; stacked layers share an error or have one each."""
        errors = error.reshape(-1, self.positions, self.outputs)
        errors = errors if self.by_position else jnp.sum(errors, axis=1, keepdims=True)
        lead = self.layers if len(errors) > 1 else (1,) * len(self.layers)
        errors = errors.reshape(*lead, *errors.shape[1:]).astype(feedback.dtype)
        sent = jnp.einsum("...po,...uo->...pu", errors, feedback)
        sent = jnp.broadcast_to(sent[..., None, :, :], (*self.layers, self.repeats, *sent.shape[-2:]))
        shape = [self.read.shape[axis] for axis in self.order]
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return jnp.transpose(sent.reshape(shape), inverse).astype(self.read.dtype)

    def readout(self, feedback: Array, value: Array) -> Array:
        """Returns `a B`, the adjoint of `signal`, in the shape of one output per stacked layer."""
        zeros = jnp.zeros((*self.layers, self.positions, self.outputs), feedback.dtype)
        _, transpose = jax.vjp(partial(self.signal, feedback), vary_as(zeros, feedback, value))
        return transpose(vary_as(value, feedback))[0]


def _route(read: Read, output: Any) -> _Route:
    """Matches positions of data and output: steps of a scan over time, or the first axis of an example."""
    depth = len(read.stacked)
    stacked = [axis for axis in range(depth) if read.stacked[axis]]
    times = [axis for axis in range(depth) if not read.stacked[axis]]
    inside = list(range(depth, len(read.shape)))
    layers = tuple(read.shape[axis] for axis in stacked)
    output_positions = output.shape[1] if len(output.shape) >= 3 else None
    # The axis of examples, of length 1 here, comes first outside of scans, or after an axis of steps.
    candidates = times
    if not times and len(inside) >= 3:
        candidates = inside[1:2] if read.shape[inside[0]] == 1 else inside[:1]
    place = [axis for axis in candidates if output_positions and read.shape[axis] == output_positions][:1]
    times, inside = ([axis for axis in axes if axis not in place] for axes in (times, inside))

    def number(axes: list[int]) -> int:
        return math.prod(read.shape[axis] for axis in axes)

    outputs = math.prod(output.shape) // (output_positions or 1)
    order = (*stacked, *times, *place, *inside)
    return _Route(
        read, order, layers, bool(place), number(times), number(inside), output_positions or 1, outputs
    )


Ways = dict[str, tuple[int, int, _Route]]
"""For every feedback, named `read/output`: index of the read, position of the output, and the route."""


class Pass(NamedTuple):
    """Forward pass of a direct rule, from which feedback can learn."""

    ways: Ways
    reads: Feeds  # data values that sites read, by index, with a leading axis of examples
    output: Any
    error: Any  # derivative of the mean loss with respect to the output
    along: Callable[[Feeds], Any]  # derivative of the output along noise on all reads at once

    def everywhere(self, of_output: Any) -> dict[str, Array]:
        """Returns the leaf of the output that each feedback reads, by name of the feedback."""
        leaves = jax.tree.leaves(of_output)
        return {name: leaves[j] for name, (_, j, _) in self.ways.items()}

    def paired(self, feedback: dict[str, Array], sent: dict[str, Array], units: Feeds) -> dict[str, Array]:
        """Returns `units^T sent`, summed over examples, positions and steps, in the shapes of feedback."""

        def at(name: str) -> Array:
            index, _, route = self.ways[name]

            def overlap(feedback: Array) -> Array:
                signals = jax.vmap(route.signal, (None, 0))(feedback, sent[name])
                return jnp.sum(signals * units[index])

            return jax.grad(overlap)(feedback[name])

        return {name: at(name) for name in feedback}


Sent = Callable[[Pass, dict[str, Array], Any], dict[str, Array]]
"""`(pass, feedback, y) -> signals` to send through every feedback, by name."""

Learn = Callable[[Key, dict[str, Array], Pass, dict[str, Array]], dict[str, Array]]
"""`(key, feedback, pass, signals sent) -> gradient of the feedback`."""


def direct_rule(
    model: Model,
    loss: Loss,
    feedback_init: DirectInit,
    where: Where,
    *,
    sent: Sent = lambda passed, feedback, y: passed.everywhere(passed.error),
    learn: Learn | None = None,
    optimizer: Any = None,
    total: bool = False,
) -> Rule:
    """Returns a rule that sends signals directly from the output to every data value that sites read.

    Args:
      model, loss, feedback_init, where: arguments of the rule.
      sent: signals to send through the feedback; by default the error `dL/doutput`.
      learn, optimizer: gradient of learned feedback, and the optimiser that updates it.
      total: whether the signals are the whole error of a data value. By default, errors that reach it by
        paths around the products that read it, such as residual connections, are added.
    """
    common.check_parts(model, loss)
    feedbacks.check_feedback_init(feedback_init)
    check_where("where", where)
    mover = None if learn is None else with_loss_support(optimizer)

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
            name: feedbacks.drawn_like(feedback_init, k, route.like)
            for k, (name, (_, _, route)) in zip(keys, ways.items(), strict=False)
        }
        return FeedbackState(feedback) if mover is None else LearnedState(feedback, mover.init(feedback))

    def assign(key: Key, params: Params, state: Any, x: Any, y: Any, *, opened: bool = False) -> Result:
        feedbacks.check_state(state, FeedbackState if learn is None else LearnedState)
        check_key("key", key)
        x, size = as_batch(x)
        x = vary_as(x, state) if learn is None else vary_as(x, state, key)
        check_uncoupled(model, params, x, REMEDY)
        program = Program(model, params, x, by_example=True)
        sites, ways = common.select(program, where), routes(program)
        feedbacks.check_products(program, sites)
        _check_feedback(state.feedback, ways)

        def blocked(site: Site, op: Bilinear, w: Any, x: Any, *_: Any) -> Any:
            return op(w, jax.tree.map(jax.lax.stop_gradient, x) if site.passes_error else x)

        def end(tap: Tap, z: Array, feed: Any) -> tuple[Array, None]:
            return (z if feed is None else z + feed), None

        run = program.runner(Hooks(product=blocked, end=end, reads="cut" if total else "emit"))

        def along(noise: Feeds) -> Any:
            def outputs(moved: Feeds) -> Any:
                return program.runner(Hooks())(program.split.parameters, x, feeds=moved)[0]

            still = jax.tree.map(jnp.zeros_like, noise)
            return jax.jvp(outputs, (still,), (noise,))[1]

        forward = common.forward_of(program, run, opened, x)
        (output, reads), pull_back = jax.vjp(forward, common.starting(program, opened))
        losses, error = common.error_of(loss, output, y, size, 1 / size)
        passed = Pass(ways, reads, output, error, along)
        arriving = sent(passed, state.feedback, y)
        signals = {index: jnp.zeros_like(value) for index, value in reads.items()}
        for name, (index, _, route) in ways.items():
            signals[index] += jax.vmap(route.signal, (None, 0))(state.feedback[name], arriving[name])
        (found,) = pull_back((error, signals))
        value = common.value_of(losses, model, params, x)
        derived = common.result(program, opened, found, sites)
        if opened or learn is None or mover is None:
            return value, derived, state
        taught = learn(key, vary_as(state.feedback, reads), passed, arriving)
        taught = as_gradient(taught, state.feedback)
        return value, derived, feedbacks.moved_feedback(mover, state, taught, jnp.mean(losses))

    return common.delta_rule(model, init, assign, masks=where is not None)


def _check_feedback(feedback: Any, ways: Ways) -> None:
    if not isinstance(feedback, dict) or feedback.keys() != ways.keys():
        got = sorted(feedback) if isinstance(feedback, dict) else type(feedback).__name__
        raise ValueError(
            f"state.feedback: expected a dict with the entries {sorted(ways)}, as from init, got {got}"
        )
    names = [f"state.feedback[{name!r}]" for name in ways]
    check_shapes(names, list(map(feedback.get, ways)), [route.like.shape for _, _, route in ways.values()])

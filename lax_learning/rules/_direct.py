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


class Route(NamedTuple):
    """Path of a signal from an output to a data value that sites read, for one example."""

    read: Read  # the data value, `[steps of its scans, ...]`
    output: int  # position of the output
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


def _route(read: Read, number: int, output: Any) -> Route:
    """Matches positions of data and output: steps of a scan over time, or the first axis of an example."""
    depth = len(read.stacked)
    stacked = [axis for axis in range(depth) if read.stacked[axis]]
    times = [axis for axis in range(depth) if not read.stacked[axis]]
    inside = list(range(depth, len(read.shape)))
    positions = output.shape[1] if len(output.shape) >= 3 else None
    # The axis of examples, of length 1 here, comes first outside of scans, or after an axis of steps.
    candidates = times
    if not times and len(inside) >= 3:
        candidates = inside[1:2] if read.shape[inside[0]] == 1 else inside[:1]
    place = [axis for axis in candidates if positions and read.shape[axis] == positions][:1]
    times, inside = ([axis for axis in axes if axis not in place] for axes in (times, inside))
    layers, repeats, units = ([read.shape[axis] for axis in axes] for axes in (stacked, times, inside))
    return Route(
        read=read, output=number, order=(*stacked, *times, *place, *inside), layers=tuple(layers),
        by_position=bool(place), repeats=math.prod(repeats), units=math.prod(units),
        positions=positions or 1, outputs=math.prod(output.shape) // (positions or 1),
    )  # fmt: skip


ByName = dict[str, Array]
"""Feedback, or signals to send through it, by name `read/output`."""


class Pass(NamedTuple):
    """Forward pass of a direct rule, from which feedback can learn."""

    routes: dict[str, Route]  # of every feedback, named `read/output`
    reads: Feeds  # data values that sites read, by index, with a leading axis of examples
    output: Any
    error: Any  # derivative of the mean loss with respect to the output
    along: Callable[[Feeds], Any]  # derivative of the output along noise on all reads at once

    def everywhere(self, of_output: Any) -> ByName:
        """Returns the leaf of the output that each feedback reads, by name of the feedback."""
        leaves = jax.tree.leaves(of_output)
        return {name: leaves[route.output] for name, route in self.routes.items()}

    def paired(self, feedback: ByName, sent: ByName, units: Feeds) -> ByName:
        """Returns `units^T sent`, summed over examples, positions and steps, in the shapes of feedback."""

        def overlap(feedback: Array, name: str) -> Array:
            route = self.routes[name]
            signals = jax.vmap(route.signal, (None, 0))(feedback, sent[name])
            return jnp.sum(signals * units[route.read.index])

        return {name: jax.grad(overlap)(b, name) for name, b in feedback.items()}


def direct_rule(
    model: Model,
    loss: Loss,
    feedback_init: DirectInit,
    where: Where,
    *,
    sent: Callable[[Pass, ByName, Any], ByName] = lambda passed, feedback, y: passed.everywhere(passed.error),
    learn: Callable[[Key, ByName, Pass, ByName], ByName] | None = None,
    optimizer: Any = None,
    total: bool = False,
) -> Rule:
    """Returns a rule that sends signals directly from the output to every data value that sites read.

    Args:
      sent: `(pass, feedback, y) -> signals` to send through the feedback; by default the error `dL/doutput`.
      learn, optimizer: `(key, feedback, pass, signals sent) -> gradient of the feedback`, and its optimiser.
      total: whether the signals are the whole error of a data value. By default, errors that reach it by
        paths around the products that read it, such as residual connections, are added.
    """
    common.check_parts(model, loss)
    feedbacks.check_feedback_init(feedback_init)
    check_where("where", where)
    mover = None if learn is None else with_loss_support(optimizer)

    def routes_of(program: Program) -> dict[str, Route]:
        return {
            f"{i}/{j}": _route(read, j, output)
            for i, read in enumerate(program.plan.all_reads)
            for j, output in enumerate(program.outputs)
            if read.passes_error and jnp.issubdtype(output.dtype, jnp.floating)
        }

    def init(key: Key, params: Params, x: Any) -> FeedbackState | LearnedState:
        check_key("key", key)
        one = one_example(as_batch(x, only_shapes=True)[0])
        routes = routes_of(Program(model, params, one))
        keys = jax.random.split(key, max(len(routes), 1))
        feedback = {
            name: feedbacks.drawn_like(feedback_init, k, route.like)
            for k, (name, route) in zip(keys, routes.items(), strict=False)
        }
        return FeedbackState(feedback) if mover is None else LearnedState(feedback, mover.init(feedback))

    def value_and_grad(
        key: Key, params: Params, state: Any, x: Any, y: Any, *, opened: bool = False
    ) -> Result:
        feedbacks.check_state(state, FeedbackState if learn is None else LearnedState)
        check_key("key", key)
        x, size = as_batch(x)
        x = vary_as(x, state) if learn is None else vary_as(x, state, key)
        check_uncoupled(model, params, x, REMEDY)
        program = Program(model, params, x, by_example=True)
        sites, routes = common.select(program, where), routes_of(program)
        feedbacks.check_products(sites)
        _check_feedback(state.feedback, routes)

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

        def forward(moved: Any) -> tuple[Any, Feeds]:
            parameters, feeds = (program.split.parameters, moved) if opened else (moved, {})
            output, _, reads = run(parameters, x, feeds=feeds)
            return output, reads

        (output, reads), pull_back = jax.vjp(forward, common.starting(program, opened))
        losses, error = common.error_of(loss, output, y, size, 1 / size)
        passed = Pass(routes, reads, output, error, along)
        arriving = sent(passed, state.feedback, y)
        signals = {index: jnp.zeros_like(value) for index, value in reads.items()}
        for name, route in routes.items():
            signal = jax.vmap(route.signal, (None, 0))(state.feedback[name], arriving[name])
            signals[route.read.index] += signal
        (found,) = pull_back((error, signals))
        value = common.value_of(losses, model, params, x)
        derived = common.result(program, opened, found, sites)
        if opened or learn is None or mover is None:
            return value, derived, state
        taught = learn(key, vary_as(state.feedback, reads), passed, arriving)
        taught = as_gradient(taught, state.feedback)
        return value, derived, feedbacks.moved_feedback(mover, state, taught, jnp.mean(losses))

    return common.delta_rule(model, init, value_and_grad, masks=where is not None)


def _check_feedback(feedback: Any, routes: dict[str, Route]) -> None:
    if not isinstance(feedback, dict) or feedback.keys() != routes.keys():
        got = sorted(feedback) if isinstance(feedback, dict) else type(feedback).__name__
        expected = f"a dict with the entries {sorted(routes)}, as from init"
        raise ValueError(f"state.feedback: expected {expected}, got {got}")
    for name, route in routes.items():
        check_shapes([f"state.feedback[{name!r}]"], [feedback[name]], [route.like.shape])

"""Rules with one trace per weight, for its own unit's state; offline (backward in time) and online."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from lax_learning._checks import check_key
from lax_learning._precision import widened
from lax_learning._sites import _equations as equations
from lax_learning._sites._coupling import made_up
from lax_learning._sites._plan import Site
from lax_learning._sites._program import Program
from lax_learning._sites._run import Bilinear, Hooks
from lax_learning.online._influence import Step, online
from lax_learning.online._recurrent import Recurrent, as_model, as_steps, check_examples, check_net, first
from lax_learning.rules._common import cut, delta_rule, select
from lax_learning.rules._feedback import (
    FeedbackInit,
    FeedbackState,
    check_feedback_init,
    check_state,
    initial_feedback,
    linked,
    partners,
    through_feedback,
)
from lax_learning.types import Key, Loss, Params, Rule, Signals


def own_unit_rule(
    net: Recurrent, loss: Loss, feedback_init: FeedbackInit | None, *, onto_itself: bool
) -> Rule:
    """Feedback alignment in which no error passes between different units of the cell.

    Errors pass through self-connections if `onto_itself`.
    """
    check_net(net, loss)
    if feedback_init is not None:
        check_feedback_init(feedback_init)

    def feedback(params: Params, state: FeedbackState, h: Any, x: Any) -> Params:
        own = own_weights(net, params["cell"], h, x)
        readout = params["readout"] if state.feedback is None else state.feedback
        cell = jax.tree.map(lambda w, mask: jnp.where(mask & onto_itself, w, 0), params["cell"], own)
        return {"cell": cell, "readout": readout}

    def summed(output: Any, y: Any) -> Array:
        return jnp.sum(jax.vmap(loss, in_axes=1)(output, y), axis=0)

    def init(key: Key, params: Params, x: Any) -> FeedbackState:
        check_key("key", key)
        if feedback_init is None:
            return FeedbackState(None)
        return FeedbackState(initial_feedback(net, None, feedback_init, key, params, x)["readout"])

    def value_and_grad(
        key: Key, params: Params, state: FeedbackState, x: Any, y: Any, *, opened: bool = False
    ) -> tuple[Any, Params | Signals, FeedbackState]:
        check_state(state)
        check_key("key", key)
        x_1 = jax.tree.map(lambda leaf: leaf[0], as_steps(x, y)[0])

        def through(*_: Any) -> Params:
            h = net.carry(params, x_1)
            check_examples(net, params, h, x_1)
            return feedback(params, state, h, x_1)

        value, found = through_feedback(
            net, summed, None, params, x, y, varying=state, feedback=through, opened=opened
        )
        return value, found, state

    def step_at(params: Params, state: FeedbackState, h: Any, x: Any) -> Step:
        check_state(state)
        program = Program(as_model(net.step), params, (h, x))
        mates = partners(program, select(program, None), feedback(params, state, h, x))

        def product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
            return linked(op, op(w, jax.tree.map(jax.lax.stop_gradient, x)), x, partner)

        def run(params: Params, h: Any, x: Any) -> tuple[Any, Any]:
            parameters = jax.tree.leaves(params)
            return program.run(parameters, (h, x), Hooks(product=product), feedback=mates)[0]

        return run

    steps = online(net, loss, step_at, _every_leaf, _of_own_unit)
    return delta_rule(net, init, value_and_grad)._replace(online=steps)


def _every_leaf(h: Any) -> Any:
    """Returns the entries of the own unit of a weight, for steps without derivatives between units."""
    leaves, structure = jax.tree.flatten(h)
    each = [jnp.zeros((len(leaves), *leaf.shape), leaf.dtype).at[i].set(1) for i, leaf in enumerate(leaves)]
    return structure.unflatten(each)


def _of_own_unit(at_h: Any, influence: Array) -> Array:
    """Sums over the leaves of the state; units are the last axis of the state and of weights."""
    return sum(
        (leaf.reshape(-1) * influence[i] for i, leaf in enumerate(jax.tree.leaves(at_h))),
        jnp.zeros(influence.shape[1:], influence.dtype),
    )


def own_weights(net: Recurrent, params: Params, h: Any, x: Any) -> PyTree:
    """Returns masks of the weights that connect units of a cell to themselves, found on random values.

    Raises unless units interact only through products of weights with x or h, and every weight belongs to
    one unit. Uses only the shapes of the arguments.
    """
    given = widened((params, *first((h, x))))
    params, h, x = equations.vary_as(given, given)
    program = Program(as_model(net.cell), params, (h, x))
    for site in program.plan.all_sites:
        if site.products > 1 or (site.products and site.passes_error):
            raise ValueError(
                f"cell: expected products of weights with x or h only, got {site.operation!r} of "
                f"{program.names(site)} with values that depend on other weights{site.at_source}"
            )
    number = _number_of_units(params, h)
    scale = np.linspace(1, 2, number)

    def scaled(state: Any, factor: Any = 1.0) -> Any:
        """Fills leaf i with `sqrt(2 + i)` times a factor, so that leaves do not cancel."""
        leaves, structure = jax.tree.flatten(state)
        numbers = [jnp.full_like(leaf, (2 + i) ** 0.5) for i, leaf in enumerate(leaves)]
        return structure.unflatten([(n * factor).astype(n.dtype) for n in numbers])

    def probe(params: Params, h: Any, x: Any) -> tuple[Any, Any, Any, Any]:
        parameters = jax.tree.leaves(params)

        def apart(parameters: list[Any], h: Any) -> Any:
            hooks = Hooks(product=lambda site, op, w, x, *_: op(w, jax.tree.map(jax.lax.stop_gradient, x)))
            return program.run(parameters, (h, x), hooks)[0]

        def inputs_of_weights(h: Any) -> list[Any]:
            sums, pull_back = jax.vjp(
                lambda parameters: program.run(parameters, (h, x), cut(program.plan.all_taps))[2], parameters
            )
            return pull_back(jax.tree.map(jnp.ones_like, sums))[0]

        after, pull_back = jax.vjp(apart, parameters, h)
        moved = [jax.jvp(inputs_of_weights, (h,), (scaled(h, factor),))[1] for factor in (1.0, scale)]
        return pull_back(scaled(after)), pull_back(scaled(after, scale)), *moved

    alike, by_unit, inputs, inputs_by_unit = _evaluated(probe, params, h, x)
    for leaf, of_unit in zip(jax.tree.leaves(alike), jax.tree.leaves(by_unit), strict=True):
        slack = 64 * np.finfo(leaf.dtype).eps * np.abs(leaf).max(initial=0)
        if not (np.abs(of_unit - scale * leaf) <= slack).all():
            raise ValueError(
                "cell: expected units that interact only through products of weights with x or h, and "
                "weights of one unit each, got a cell that mixes units in another way, for example by a "
                "norm; rtrl and three_factor take any cell"
            )
    masks = [
        (leaf != 0) & (np.abs(of_unit - scale * leaf) <= np.abs(leaf) / (10 * number))
        for leaf, of_unit in zip(inputs, inputs_by_unit, strict=True)
    ]
    return jax.tree.unflatten(program.split.structure, masks)


def _number_of_units(params: Params, h: Any) -> int:
    """Returns the number of units, the last axis of states and weights."""
    state = jax.tree.leaves(h)
    if any(leaf.ndim != 2 for leaf in state) or len({leaf.shape for leaf in state}) != 1:
        got = [list(leaf.shape[1:]) for leaf in state]
        raise ValueError(f"start: expected states [batch, units] of equal shapes, got {got}")
    number = state[0].shape[1]
    for path, leaf in jax.tree.leaves_with_path(params):
        if leaf.shape[-1:] != (number,):
            raise ValueError(
                f"params['cell']{jax.tree_util.keystr(path)}: expected {number} units as its last axis, "
                f"got shape {list(leaf.shape)}"
            )
    return number


def _evaluated(function: Callable[..., Any], *like: Any) -> Any:
    """Evaluates a function on random arrays, even under a trace; returns NumPy arrays."""
    leaves, (body, shapes) = jax.tree.leaves(like), equations.trace(function, *like)
    of = [*body.consts, *leaves]

    def run(values: list[Any]) -> list[Any]:
        values = list(map(equations.vary_as, values, of))
        return equations.evaluate(body, values[: len(body.consts)], values[len(body.consts) :])

    rng = np.random.default_rng(0)
    compiled = jax.jit(run).lower([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in of]).compile()
    with jax.ensure_compile_time_eval():
        consts = [made_up(rng, leaf) if isinstance(leaf, Tracer) else leaf for leaf in body.consts]
        values = [made_up(rng, leaf) for leaf in leaves]
        found = jax.tree.map(np.asarray, compiled([*consts, *values]))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)

"""Evaluation of a plan: the original program, with hooks where parameters are combined with data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from lax_learning._sites import _equations as equations
from lax_learning._sites._plan import Bilinear, Operation, Plan, Site, Tap, Value

Feeds = dict[int, Any]
"""Values fed to taps, reads and sites, or emitted by them, by index. Inside scans, values of taps and reads
have leading axes of steps, and values of sites have leading axes of stacked layers."""


class Hooks(NamedTuple):
    """Functions called at sites and taps, and further values to emit.

    Fields:
      product: `(site, op, w, x, partner, feed) -> z`, called in place of `op(w, x)` at every bilinear
        operation, and at every opaque operation that contains products, whose `w` and `x` are tuples.
        `partner` is w computed from the feedback, or w itself; `feed` is the value fed to the site, or None.
      end: `(tap, z, feed) -> (z, emitted)`, called at every tap, with the value fed to the tap, or None.
      reads: "emit" to emit the data values that sites read; "cut" to emit them and stop gradients at them;
        "" for neither.
      activities: whether to emit marked activities.
      operands: indices of bilinear sites whose operands `(w, x)` are emitted.
      by_example: whether the program runs under a `vmap` over examples, where products take a faster form.
    """

    product: Callable[[Site, Bilinear, Any, Any, Any, Any], Any] | None = None
    end: Callable[[Tap, Any, Any], tuple[Any, Any]] | None = None
    reads: str = ""
    activities: bool = False
    operands: frozenset[int] = frozenset()
    by_example: bool = False


def execute(
    plan: Plan, args: Sequence[Any], partners: Sequence[Any], hooks: Hooks, feeds: Feeds
) -> tuple[list[Any], list[Any], Feeds]:
    """Evaluates a plan.

    Args:
      plan, args: the plan and the values of its arguments.
      partners: for every argument, its value when computed from the feedback, or None.
      hooks, feeds: functions called at sites, and values fed to them.

    Returns:
      Results, their partners, and the values emitted by taps, reads and sites, by index.
    """
    env: dict[Value, Any] = dict(plan.constants)
    mates: dict[Value, Any] = {}
    emits: Feeds = {}

    def define(value: Value, found: Any) -> None:
        if value.tap is not None and hooks.end is not None:
            found, emitted = hooks.end(value.tap, found, feeds.get(value.tap.index))
            if emitted is not None:
                emits[value.tap.index] = emitted
        if value.read is not None:
            index = value.read.index
            found = found + feeds[index] if index in feeds else found
            if hooks.reads:
                emits[index] = found
            if hooks.reads == "cut":
                found = jax.lax.stop_gradient(found)
        if hooks.activities and value.activity is not None:
            emits[value.activity] = found
        env[value] = found

    for value, arg, mate in zip(plan.ins, args, partners, strict=True):
        define(value, arg)
        if mate is not None:
            mates[value] = mate

    for operation in plan.operations:
        site, equation = operation.site, operation.equation
        values = [env[value] for value in operation.ins]
        operands = [mates.get(value) for value in operation.ins]
        others = [None] * len(operation.outs)
        if operation.inner is not None:
            run = _scan if operation.is_scan else _remat
            results, others, emitted = run(operation, operation.inner, values, operands, hooks, feeds)
            emits |= emitted
        elif equation is None:
            results = values
        elif site is None:
            results = equations.bind(equation, values)
            if any(mate is not None for mate in operands):
                others = equations.bind(equation, _filled(values, operands))
        else:
            w, x = operation.operands(values)
            if site.index in hooks.operands:
                emits[site.index] = w, x
            if not site.products or (hooks.product is None and not hooks.by_example):
                results = equations.bind(equation, values)
            else:
                op = operation.product(hooks.by_example)
                if hooks.product is None:
                    z = op(w, x)
                else:
                    partner, _ = operation.operands(_filled(values, operands))
                    z = hooks.product(site, op, w, x, partner, feeds.get(site.index))
                results = [z] if site.is_bilinear else list(z)
        for value, found, mate in zip(operation.outs, results, others, strict=True):
            define(value, found)
            if mate is not None and value.kind.is_param:
                mates[value] = mate
    return [env[value] for value in plan.outs], [mates.get(value) for value in plan.outs], emits


def _filled(values: list[Any], mates: list[Any]) -> list[Any]:
    """Returns the partners, or the values themselves where there is no partner."""
    return [value if mate is None else mate for value, mate in zip(values, mates, strict=True)]


def _remat(
    operation: Operation, inner: Plan, values: list[Any], mates: list[Any], hooks: Hooks, feeds: Feeds
) -> tuple[list[Any], list[Any], Feeds]:
    def body(values: list[Any], mates: list[Any], feeds: Feeds) -> Any:
        return execute(inner, values, mates, hooks, feeds)

    options = equations.options(operation.equation, equations.REMAT_OPTIONS)
    inside = {i: feeds[i] for i in feeds.keys() & inner.indices()}
    return jax.checkpoint(body, **options)(values, mates, inside)


def _scan(
    operation: Operation, inner: Plan, values: list[Any], mates: list[Any], hooks: Hooks, feeds: Feeds
) -> tuple[list[Any], list[Any], Feeds]:
    equation = operation.equation
    if any(mate is not None for mate in mates):  # then all parameters have partners, by default themselves
        filled = zip(inner.ins, _filled(values, mates), mates, strict=True)
        mates = [own if arg.kind.is_param else mate for arg, own, mate in filled]
    consts, carry, xs = equations.split_scan(equation, values)
    const_mates, carry_mates, x_mates = equations.split_scan(equation, mates)
    number = len(carry)
    shared = {site.index for site in inner.all_sites if not site.stacked[inner.depth - 1]}
    inside = feeds.keys() & inner.indices()
    by_step, same = {i: feeds[i] for i in inside - shared}, {i: feeds[i] for i in inside & shared}

    def step(carry: Any, inputs: Any) -> Any:
        (carried, carried_mates), (xs, x_mates, by_step) = carry, inputs
        args, mates = [*consts, *carried, *xs], [*const_mates, *carried_mates, *x_mates]
        results, others, emitted = execute(inner, args, mates, hooks, by_step | same)
        after = _filled(results[:number], others[:number])
        after = [None if before is None else mate for before, mate in zip(carried_mates, after, strict=True)]
        return (results[:number], after), (results[number:], others[number:], emitted)

    options = equations.options(equation, equations.SCAN_OPTIONS)
    start, sequences = (carry, carry_mates), (xs, x_mates, by_step)
    (carried, carried_mates), (ys, y_mates, emitted) = jax.lax.scan(step, start, sequences, **options)
    return [*carried, *ys], [*carried_mates, *y_mates], emitted

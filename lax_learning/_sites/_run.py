"""Evaluation of a plan: the program as it was, with two hooks where parameters meet data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from lax_learning._sites import _equations as equations
from lax_learning._sites._plan import Operation, Plan, Site, Tap

Bilinear = Callable[[Any, Any], Any]


class Hooks(NamedTuple):
    """Functions that are called at sites.

    Fields:
      product: `(site, op, w, x, partner, feed) -> z` in the place of `op(w, x)`, at every bilinear operation
        (and every opaque one around products, whose `w` and `x` are tuples); partner is w of the feedback,
        or w; feed is what was fed to the site, or None.
      end: `(tap, z, feed) -> (z, emitted)` at every tap, with what was fed to it, or None.
      reads: "emit" for the data values that sites read to be emitted, too; "cut" for no gradient to pass
        behind them besides; "" for neither.
      activities: whether marked activities are emitted, too.
      operands: indices of bilinear sites whose operands `(w, x)` are emitted, too.
    """

    product: Callable[[Site, Bilinear, Any, Any, Any, Any], Any] | None = None
    end: Callable[[Tap, Any, Any], tuple[Any, Any]] | None = None
    reads: str = ""
    activities: bool = False
    operands: frozenset[int] = frozenset()


def execute(
    plan: Plan, args: Sequence[Any], partners: Sequence[Any], hooks: Hooks, feeds: dict[int, Any]
) -> tuple[list[Any], list[Any], dict[int, Any]]:
    """Evaluates a plan.

    Args:
      plan: the plan.
      args: values of its arguments.
      partners: for every argument the value that parameters have in the feedback, or None.
      hooks: what happens at sites.
      feeds: by the index of a tap, read or site what is fed to it; inside scans, with leading axes of steps
        for a tap or read, and of stacked layers for a site.

    Returns:
      Results, their partners, and what the taps (and reads, and sites) emitted, by index.
    """
    env: dict[int, Any] = dict(plan.constants)
    mates: dict[int, Any] = {}
    emits: dict[int, Any] = {}

    def define(var: int, value: Any) -> None:
        if var in plan.taps and hooks.end is not None:
            tap = plan.taps[var]
            value, emitted = hooks.end(tap, value, feeds.get(tap.index))
            if emitted is not None:
                emits[tap.index] = emitted
        if var in plan.reads:
            index = plan.reads[var].index
            value = value + feeds[index] if index in feeds else value
            if hooks.reads:
                emits[index] = value
            if hooks.reads == "cut":
                value = jax.lax.stop_gradient(value)
        if hooks.activities and var in plan.activities:
            emits[plan.activities[var]] = value
        env[var] = value

    for var, value, mate in zip(plan.ins, args, partners, strict=True):
        define(var, value)
        if mate is not None:
            mates[var] = mate

    for operation in plan.operations:
        values = [env[var] for var in operation.ins]
        operands = [mates.get(var) for var in operation.ins]
        if operation.inner is not None:
            run = _scan if operation.equation.primitive.name == "scan" else _remat
            results, others, emitted = run(operation, values, operands, hooks, feeds)
            emits.update(emitted)
        elif operation.site is not None:
            results, emitted = _at_site(operation, values, operands, hooks, feeds)
            others = [None] * len(operation.outs)
            emits.update(emitted)
        else:
            results = equations.bind(operation.equation, values)
            others = [None] * len(results)
            if any(mate is not None for mate in operands):
                mixed = [v if mate is None else mate for v, mate in zip(values, operands, strict=True)]
                others = equations.bind(operation.equation, mixed)
        for var, value, mate in zip(operation.outs, results, others, strict=True):
            define(var, value)
            if mate is not None and plan.kinds[var].is_param:
                mates[var] = mate
    return [env[var] for var in plan.outs], [mates.get(var) for var in plan.outs], emits


def _at_site(
    operation: Operation, values: list[Any], partners: list[Any], hooks: Hooks, feeds: dict[int, Any]
) -> tuple[list[Any], dict[int, Any]]:
    """Evaluates an operation where parameters meet data; returns its results and what it emits."""
    site, equation = operation.site, operation.equation
    assert site is not None
    if equation is None:
        return values, {}
    emitted = {}
    if site.index in hooks.operands:
        (w,) = operation.params
        emitted[site.index] = values[w], values[1 - w]
    if hooks.product is None or not site.products:
        return equations.bind(equation, values), emitted
    single = site.is_bilinear
    data = tuple(i for i in range(len(values)) if i not in operation.params)

    def op(w: Any, x: Any) -> Any:
        placed = dict(zip(operation.params, (w,) if single else w, strict=True))
        placed |= dict(zip(data, (x,) if single else x, strict=True))
        results = equations.bind(equation, [placed[i] for i in range(len(values))])
        return results[0] if single else results

    def of(positions: tuple[int, ...], source: list[Any]) -> Any:
        picked = tuple(values[i] if source[i] is None else source[i] for i in positions)
        return picked[0] if single else picked

    w, x = of(operation.params, values), of(data, values)
    z = hooks.product(site, op, w, x, of(operation.params, partners), feeds.get(site.index))
    return [z] if single else list(z), emitted


def _fill(plan: Plan, values: list[Any], partners: list[Any]) -> list[Any]:
    """Partners of all parameter-only arguments of a body, if there are any: by default their own value."""
    if all(mate is None for mate in partners):
        return partners
    args = zip(plan.ins, values, partners, strict=True)
    return [v if mate is None and plan.kinds[var].is_param else mate for var, v, mate in args]


def _remat(
    operation: Operation, values: list[Any], partners: list[Any], hooks: Hooks, feeds: dict[int, Any]
) -> tuple[list[Any], list[Any], dict[int, Any]]:
    inner = operation.inner
    assert inner is not None

    def body(values: list[Any], partners: list[Any], feeds: dict[int, Any]) -> Any:
        return execute(inner, values, partners, hooks, feeds)

    rematerialised = jax.checkpoint(body, **equations.remat_options(operation.equation))
    marks = {mark.index for mark in (*inner.all_taps, *inner.all_reads, *inner.all_sites)}
    return rematerialised(values, partners, {i: feed for i, feed in feeds.items() if i in marks})


def _scan(
    operation: Operation, values: list[Any], partners: list[Any], hooks: Hooks, feeds: dict[int, Any]
) -> tuple[list[Any], list[Any], dict[int, Any]]:
    inner, equation = operation.inner, operation.equation
    assert inner is not None
    partners = _fill(inner, values, partners)
    consts, carry, xs = equations.split_scan(equation, values)
    const_mates, carry_mates, x_mates = equations.split_scan(equation, partners)
    number = len(carry)
    by_step, same = _split_feeds(inner, feeds)

    def step(carry: Any, inputs: Any) -> Any:
        (carried, carried_mates), (xs, x_mates, by_step) = carry, inputs
        args, mates = [*consts, *carried, *xs], [*const_mates, *carried_mates, *x_mates]
        results, others, emitted = execute(inner, args, mates, hooks, by_step | same)
        after = results[:number], _like(carried_mates, others[:number])
        return after, (results[number:], others[number:], emitted)

    sequences = xs, x_mates, by_step
    options = equations.scan_options(equation)
    (carried, carried_mates), (ys, y_mates, emitted) = jax.lax.scan(
        step, (carry, carry_mates), sequences, **options
    )
    return [*carried, *ys], [*carried_mates, *y_mates], emitted


def _split_feeds(plan: Plan, feeds: dict[int, Any]) -> tuple[dict[int, Any], dict[int, Any]]:
    """Splits feeds inside a scan into those with one value a step and those shared by all steps."""
    by_step, same = {mark.index for mark in (*plan.all_taps, *plan.all_reads)}, set()
    for site in plan.all_sites:
        (by_step if site.stacked[plan.depth - 1] else same).add(site.index)
    return (
        {i: feed for i, feed in feeds.items() if i in by_step},
        {i: feed for i, feed in feeds.items() if i in same},
    )


def _like(before: list[Any], after: list[Any]) -> list[Any]:
    """Partners of a carry, kept for the parameter-only entries alone."""
    return [None if b is None else a for b, a in zip(before, after, strict=True)]

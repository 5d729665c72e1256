"""Activities: values that a model computes from the pre-activation at a single tap, such as `relu(z)`."""

from collections.abc import Collection, Iterator
from itertools import count
from typing import Any, NamedTuple

from lax_learning._sites import _equations as equations
from lax_learning._sites._plan import Operation, Plan


class Activities(NamedTuple):
    """Activities and last taps of a plan."""

    of_taps: dict[int, int]  # from the index of a tap to the index at which its activity is emitted
    last: set[int]  # indices of the taps that an output error reaches without passing a product


def mark_activities(plan: Plan, num_outputs: int) -> Activities:
    """Marks the activities in a plan, so that a run can emit them, and returns where they are.

    A tap has an activity if the rest of the model reads a single value that is computed from the tap alone.
    If it reads several, as from a gate, there is none. Flattening or pooling is not part of an activity.
    """
    found = Activities({}, _reached(plan, plan.outs[:num_outputs])[0])
    _mark(plan, found.of_taps, count(1 + max(plan.indices(), default=-1)))
    return found


def _mark(plan: Plan, of_taps: dict[int, int], numbers: Iterator[int]) -> dict[int, list[int]]:
    """Marks a plan; returns the taps whose activity is a result of the plan, by position of the result."""
    made_by = {var: operation for operation in plan.operations for var in operation.outs}
    starts = [(var, [tap.index]) for var, tap in plan.taps.items()]
    for operation in plan.operations:
        if operation.inner is not None:
            inside = _mark(operation.inner, of_taps, numbers)
            if not operation.is_scan:
                starts += [(operation.outs[i], taps) for i, taps in inside.items()]
    results: dict[int, list[int]] = {}
    for var, taps in starts:
        alone = _alone(plan, var)
        read = [made for made in sorted(alone) if _is_read(plan, made, alone)]
        if len(read) != 1:
            continue
        activity = _of_same_shape(read[0], var, made_by, alone)
        index = plan.activities.setdefault(activity, next(numbers))
        of_taps.update(dict.fromkeys(taps, index))
        if activity in plan.outs:
            results.setdefault(plan.outs.index(activity), []).extend(taps)
    return results


def _of_same_shape(read: int, start: int, made_by: dict[int, Operation], alone: set[int]) -> int:
    """Returns the last value with the shape of `start` on the path from `start` to `read`."""

    def shape(var: int) -> Any:
        equation = made_by[var].equation
        return None if equation is None else equation.outvars[made_by[var].outs.index(var)].aval.shape

    var = read
    while var != start and shape(var) != shape(start):
        before = alone.intersection(made_by[var].ins)
        var = before.pop() if len(before) == 1 else start
    return var


def _reached(plan: Plan, outputs: Collection[int]) -> tuple[set[int], set[int]]:
    """Returns the taps and the arguments that errors at outputs reach without passing a product."""
    last, needed = set(), set(outputs)

    def stops(var: int) -> bool:
        if var not in plan.taps:
            return False
        last.add(plan.taps[var].index)
        return any(site.products for site in plan.taps[var].sites)

    for operation in reversed(plan.operations):
        wanted = [i for i, var in enumerate(operation.outs) if var in needed and not stops(var)]
        if not wanted:
            continue
        if operation.inner is None:
            needed.update(operation.ins)
            continue
        inner, ins = operation.inner, set(wanted)
        while True:
            taps, arguments = _reached(inner, [inner.outs[i] for i in ins])
            places = {i for i, var in enumerate(inner.ins) if var in arguments}
            carry: list[int] = []
            if operation.is_scan:  # its results become arguments of the next step
                carry = equations.split_scan(operation.equation, range(len(operation.ins)))[1]
            carried = {i for i, place in enumerate(carry) if place in places}
            if carried <= ins:
                break
            ins |= carried
        last |= taps
        needed.update(operation.ins[i] for i in places)
    for var in plan.ins:
        if var in needed:
            stops(var)
    return last, needed.intersection(plan.ins)


def _alone(plan: Plan, var: int) -> set[int]:
    """Returns a variable and those computed from it alone, without other data or parameters."""
    alone = {var}
    for operation in plan.operations:
        if operation.site is None and operation.inner is None and alone.intersection(operation.ins):
            others = [plan.kinds[v] for v in operation.ins if v not in alone]
            if not any(kind.data or kind.leaves for kind in others):
                alone.update(operation.outs)
    return alone


def _is_read(plan: Plan, var: int, alone: set[int]) -> bool:
    """Returns whether a variable is a result, or is read by an operation outside of `alone`."""
    readers = (operation for operation in plan.operations if var in operation.ins)
    return var in plan.outs or any(not alone.issuperset(reader.outs) for reader in readers)

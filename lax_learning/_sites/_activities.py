"""Activities: values that a model computes from the pre-activation at a single tap, such as `relu(z)`."""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from lax_learning._sites._plan import Plan, Tap, Value


class Activities(NamedTuple):
    """Activities and last taps of a plan."""

    of_taps: dict[int, int]  # from the index of a tap to the index at which its activity is emitted
    last: set[int]  # indices of the taps that an output error reaches without passing a product


def mark_activities(plan: Plan, num_outputs: int) -> Activities:
    """Marks the activities in a plan, so that a run can emit them, and returns where they are.

    A tap has an activity if the rest of the model reads a single value that is computed from the tap alone.
    If it reads several, as from a gate, there is none. Flattening or pooling is not part of an activity.
    """
    found = Activities({}, set())

    def stops(tap: Tap) -> bool:
        found.last.add(tap.index)
        return any(site.products for site in tap.sites)

    plan.behind(plan.outs[:num_outputs], stops)
    _mark(plan, found.of_taps, count(len(plan.indices())))
    return found


def _mark(plan: Plan, of_taps: dict[int, int], numbers: Iterator[int]) -> dict[Value, list[int]]:
    """Marks a plan; returns the taps of the activities that are results of the plan."""
    taps: dict[Value, list[int]] = {}  # of the values that activities are computed from
    start_of: dict[Value, Value | None] = {}  # which of these a value is computed from alone
    for operation in plan.operations:
        taps |= {out: [out.tap.index] for out in operation.outs if out.tap}
        if operation.inner is not None:
            inside = _mark(operation.inner, of_taps, numbers)
            pairs = zip(operation.outs, operation.inner.outs, strict=True)
            taps |= {out: inside[of] for out, of in pairs if of in inside and not operation.is_scan}
        starts = {start_of.get(value) for value in operation.ins if value.kind.data or value.kind.leaves}
        is_alone = operation.site is None and operation.inner is None and len(starts) == 1
        start = starts.pop() if is_alone else None
        start_of |= {out: out if out in taps else start for out in operation.outs}
    of_results: dict[Value, list[int]] = {}
    for start, of_start in taps.items():
        alone = {value for value, its_start in start_of.items() if its_start is start}
        read = [value for value in alone if _is_read_outside(value, alone)]
        if len(read) == 1:
            activity = _of_same_shape(read[0], start, alone)
            if activity.activity is None:
                activity.activity = next(numbers)
            of_taps.update(dict.fromkeys(of_start, activity.activity))
            if activity in plan.outs:
                of_results.setdefault(activity, []).extend(of_start)
    return of_results


def _is_read_outside(value: Value, alone: set[Value]) -> bool:
    """Returns whether a value is a result, or is read by an operation with results outside of `alone`."""
    return any(reader is None or not alone.issuperset(reader.outs) for reader in value.readers)


def _of_same_shape(read: Value, start: Value, alone: set[Value]) -> Value:
    """Returns the last value with the shape of `start` on the path from `start` to `read`."""
    value = read
    while value is not start and value.aval.shape != start.aval.shape:
        before = alone.intersection(value.maker.ins) if value.maker else ()
        value = before.pop() if len(before) == 1 else start
    return value

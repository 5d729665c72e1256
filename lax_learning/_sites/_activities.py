"""Activities: what a model makes of the pre-activation at a tap alone, before anything else is read."""

from collections.abc import Collection
from itertools import count
from typing import NamedTuple

from lax_learning._sites._plan import Plan


class Activities(NamedTuple):
    """What follows the taps of a plan.

    Fields:
      of_taps: by the index of a tap, the index under which its activity is emitted.
      last: indices of the taps whose activity is an output of the model.
    """

    of_taps: dict[int, int]
    last: set[int]


def mark_activities(plan: Plan, num_outputs: int) -> Activities:
    """Marks the activities in a plan, so that a run can emit them, and returns where they are.

    A tap has one if a single value that is computed from it alone is read by anything else; a gate, of which
    several are, has none.
    """
    marks = [*plan.all_taps, *plan.all_reads, *plan.all_sites]
    numbers = count(1 + max((mark.index for mark in marks), default=-1))
    found = Activities({}, set())

    def mark(plan: Plan, outputs: Collection[int]) -> None:
        for var, tap in plan.taps.items():
            alone = _alone(plan, var)
            read = [made for made in sorted(alone) if _is_read(plan, made, alone)]
            if len(read) == 1:
                index = next(numbers)
                plan.activities.setdefault(read[0], index)
                found.of_taps[tap.index] = plan.activities[read[0]]
            if alone.intersection(outputs):
                found.last.add(tap.index)
        for operation in plan.operations:
            if operation.inner is not None:
                pairs = zip(operation.outs, operation.inner.outs, strict=True)
                inside = [inner for out, inner in pairs if _alone(plan, out).intersection(outputs)]
                mark(operation.inner, inside)

    mark(plan, plan.outs[:num_outputs])
    return found


def _alone(plan: Plan, var: int) -> set[int]:
    """Returns the variable and those computed from it and from no other data or parameter."""
    alone = {var}
    for operation in plan.operations:
        if operation.site is None and operation.inner is None and alone.intersection(operation.ins):
            others = [plan.kinds[v] for v in operation.ins if v not in alone]
            if not any(kind.data or kind.leaves for kind in others):
                alone.update(operation.outs)
    return alone


def _is_read(plan: Plan, var: int, alone: set[int]) -> bool:
    """Returns whether anything reads a variable but what computes others from it alone."""
    readers = (operation for operation in plan.operations if var in operation.ins)
    return var in plan.outs or any(not alone.issuperset(reader.outs) for reader in readers)

"""Provenance analysis, which finds the operations of a traced program that combine parameters with data."""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]  (JAX 0.12)

from lax_learning._sites import _equations as equations
from lax_learning._sites._plan import Kind, Operation, Plan, Read, Site, Tap, join
from lax_learning._sites._products import layout_of

_Known = dict[tuple[int, tuple[Kind, ...]], tuple[bool, list[Kind]]]
"""For the id of a program and the kinds of its arguments: whether it has taps, and kinds of its results."""


def make_plan(body: ClosedJaxpr, kinds: Sequence[Kind], num_outputs: int) -> Plan:
    """Returns the plan of a model with arguments of these kinds; sites, taps and reads are numbered in order.

    The first `num_outputs` results are outputs, and sites if they depend on parameters only; the rest is aux.
    """
    plan = _Planner((), {}).planned(body, kinds, num_outputs)
    _number(plan, count())
    return plan


def _number(plan: Plan, numbers: Iterator[int]) -> None:
    """Numbers sites, taps and reads in program order."""

    def number_marks(variables: Sequence[int]) -> None:
        for var in variables:
            for marks in (plan.taps, plan.reads):
                if var in marks:
                    marks[var].index = next(numbers)

    number_marks(plan.ins)
    for operation in plan.operations:
        if operation.site is not None:
            operation.site.index = next(numbers)
            operation.site.reads = [plan.reads[var].index for var in operation.site.reads]
        if operation.inner is not None:
            _number(operation.inner, numbers)
        number_marks(operation.outs)


class _Planner:
    """Builds one plan; `prefix` contains the lengths of the enclosing scans."""

    def __init__(self, prefix: tuple[int, ...], known: _Known) -> None:
        self.plan = Plan(depth=len(prefix))
        self.prefix = prefix
        self.known = known  # so that each inner program is analysed once
        self.avals: list[Any] = []

    def planned(self, body: ClosedJaxpr, kinds: Sequence[Kind], num_outputs: int = 0) -> Plan:
        """Returns the plan of a program."""
        plan, variables = self.plan, body.jaxpr.invars
        plan.ins = [self.new(variable.aval, kind) for variable, kind in zip(variables, kinds, strict=True)]
        plan.outs = self.inline(body, plan.ins)
        for i in range(num_outputs):
            if plan.kinds[plan.outs[i]].is_param:
                plan.outs[i] = self.as_data("output", plan.outs[i])
        self.place_taps()
        self.find_untapped(plan.outs[:num_outputs] or plan.outs)
        self.place_reads()
        return plan

    def new(self, aval: Any, kind: Kind) -> int:
        """Returns a new variable."""
        self.avals.append(aval)
        self.plan.kinds[len(self.avals) - 1] = kind
        return len(self.avals) - 1

    def constant(self, aval: Any, value: Any) -> int:
        var = self.new(aval, Kind())
        self.plan.constants[var] = value
        return var

    def inline(self, body: ClosedJaxpr, args: Sequence[int]) -> list[int]:
        """Adds the equations of a program to the plan and returns its results."""
        jaxpr = body.jaxpr
        env: dict[Any, int] = dict(zip(jaxpr.invars, args, strict=True))
        for variable, value in zip(jaxpr.constvars, body.consts, strict=True):
            env[variable] = self.constant(variable.aval, value)

        def read(atom: Any) -> int:
            return self.constant(atom.aval, atom.val) if equations.is_literal(atom) else env[atom]

        for equation in jaxpr.eqns:
            outs = self.add(equation, [read(atom) for atom in equation.invars])
            env.update(zip(equation.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, equation: Any, ins: list[int]) -> list[int]:
        """Adds an equation; calls that contain sites are inlined."""
        name = equation.primitive.name
        kinds = [self.plan.kinds[var] for var in ins]
        if name == "scan":
            return self.add_scan(equation, ins, kinds)
        if name in equations.CALLS or name in equations.REMAT:
            return self.add_call(equation, ins, kinds)
        params = tuple(i for i, kind in enumerate(kinds) if kind.is_param)
        data = [kind for kind in kinds if kind.data]
        if not (params and data):
            return self.append(equation, ins, [join(kinds)] * len(equation.outvars))
        site = self.site(
            name,
            ins,
            params,
            products=_count_products(equation),
            passes_error=bool(join(data).leaves),
            source=equations.source_line(equation),
            layout=layout_of(equation, *params) if name in equations.BILINEAR else None,
        )
        return self.append(equation, ins, [join(kinds)] * len(equation.outvars), site=site, params=params)

    def add_call(self, equation: Any, ins: list[int], kinds: list[Kind]) -> list[int]:
        """Adds a call or remat, unchanged if it contains no sites."""
        body = equations.body(equation)
        place = id(body.jaxpr), tuple(kinds)
        if place not in self.known:
            inner = _Planner(self.prefix, self.known).planned(body, kinds)
            self.known[place] = bool(inner.all_taps), [inner.kinds[var] for var in inner.outs]
        has_taps, outs = self.known[place]
        if not has_taps:
            return self.append(equation, ins, outs)
        if equation.primitive.name in equations.CALLS:
            return self.inline(body, ins)
        inner = _Planner(self.prefix, self.known).planned(body, kinds)
        return self.append(equation, ins, outs, inner=inner)

    def site(self, name: str, ins: list[int], params: tuple[int, ...], **fields: Any) -> Site:
        """Returns a site whose parameter operands are at the positions `params`."""
        kind = join([self.plan.kinds[ins[i]] for i in params])
        stacked = tuple(depth in kind.varies for depth in range(len(self.prefix)))
        return Site(-1, name, kind.leaves, tuple(self.avals[ins[params[0]]].shape), stacked=stacked, **fields)

    def add_scan(self, equation: Any, ins: list[int], kinds: list[Kind]) -> list[int]:
        """Adds a scan; the provenance of its carry is a least fixed point."""
        consts, carry, xs = equations.split_scan(equation, kinds)
        body = equations.body(equation)
        prefix = (*self.prefix, equations.scan_options(equation)["length"])
        depth = len(self.prefix)
        _, carried, _ = equations.split_scan(equation, body.jaxpr.invars)
        kept = [a is b for a, b in zip(carried, body.jaxpr.outvars, strict=False)]
        while True:
            inside = [kind if same else kind.at(depth) for kind, same in zip(carry, kept, strict=True)]
            args = [*consts, *inside, *(kind.at(depth) for kind in xs)]
            inner = _Planner(prefix, self.known).planned(body, args)
            results = [inner.kinds[var].outside(depth) for var in inner.outs]
            joined = [join(pair) for pair in zip(carry, results, strict=False)]
            if joined == carry:
                break
            carry = joined
        _, first, _ = equations.split_scan(equation, ins)
        for i, (var, kind) in enumerate(zip(first, carry, strict=True), start=len(consts)):
            if self.plan.kinds[var].is_param and kind.data:
                ins[i] = self.as_data("carry", var)
        outs = [*carry, *results[len(carry) :]]
        return self.append(equation, ins, outs, inner=inner if inner.all_taps else None)

    def append(self, equation: Any, ins: list[int], kinds: list[Kind], **fields: Any) -> list[int]:
        outs = [self.new(var.aval, kind) for var, kind in zip(equation.outvars, kinds, strict=True)]
        self.plan.operations.append(Operation(equation, ins, outs, **fields))
        return outs

    def as_data(self, name: str, var: int) -> int:
        """Adds a site that turns a parameter into data, and returns its result."""
        out = self.new(self.avals[var], self.plan.kinds[var]._replace(data=True))
        site = self.site(name, [var], (0,), products=0, passes_error=False, source="")
        self.plan.operations.append(Operation(None, [var], [out], site, (0,)))
        return out

    def is_floating(self, var: int) -> bool:
        return jnp.issubdtype(self.avals[var].dtype, jnp.floating)

    def keeps_size(self, operation: Operation) -> bool:
        """Returns whether an operation has one result of the size of its (first) operand."""
        first, *others = operation.outs
        return not others and self.size(operation.ins[0]) == self.size(first)

    def size(self, var: int) -> int:
        return math.prod(self.avals[var].shape)

    def place_taps(self) -> None:
        """Puts a tap at the end of the maximal sum of every site."""
        readers: dict[int, list[Operation | None]] = {var: [None] for var in self.plan.outs}
        for operation in self.plan.operations:
            for var in operation.ins:
                readers.setdefault(var, []).append(operation)
        for operation in self.plan.operations:
            if operation.site is None:
                continue
            for var in operation.outs:
                while (reader := self.continues(readers.get(var, []))) is not None:
                    (var,) = reader.outs
                if self.is_floating(var):
                    aval = self.avals[var]
                    shape = (*self.prefix, *aval.shape)
                    tap = self.plan.taps.setdefault(var, Tap(-1, shape, aval.dtype, len(self.prefix)))
                    tap.sites.append(operation.site)

    def find_untapped(self, results: Sequence[int]) -> None:
        """Finds parameters that reach results without a tap: values of complex sites have none."""
        nothing: frozenset[int] = frozenset()
        reaching: dict[int, frozenset[int]] = {}
        for operation in self.plan.operations:
            kinds = [self.plan.kinds[var] for var in operation.ins]
            found = nothing.union(*(reaching.get(var, nothing) for var in operation.ins))
            if operation.inner is not None:
                found |= operation.inner.untapped
            elif operation.equation is not None and equations.has_complex_results(operation.equation):
                found |= nothing.union(*(kind.leaves for kind in kinds if kind.is_param))
            reaching |= {var: nothing if var in self.plan.taps else found for var in operation.outs}
        self.plan.untapped = nothing.union(*(reaching.get(var, nothing) for var in results))

    def continues(self, readers: list[Operation | None]) -> Operation | None:
        """Returns the only reader of a value if it continues the value's sum, else None."""
        reader = readers[0] if len(readers) == 1 else None
        if reader is None or reader.equation is None or len(reader.outs) != 1:
            return None
        name = reader.equation.primitive.name
        continues = name in equations.SUMS or (name in equations.SHAPES and self.keeps_size(reader))
        return reader if continues and self.is_floating(reader.outs[0]) else None

    def place_reads(self) -> None:
        """Marks the data values that bilinear sites read, before any change of shape."""
        made_by = {var: operation for operation in self.plan.operations for var in operation.outs}
        for operation in self.plan.operations:
            site = operation.site
            if site is None or not site.products:
                continue
            for position, var in enumerate(operation.ins):
                if position in operation.params or not self.plan.kinds[var].data:
                    continue
                while (maker := made_by.get(var)) and self.only_reshapes(maker) and var not in self.plan.taps:
                    var = maker.ins[0]
                if self.is_floating(var):
                    aval, passes = self.avals[var], bool(self.plan.kinds[var].leaves)
                    read = Read(-1, (*self.prefix, *aval.shape), aval.dtype, site.stacked, passes)
                    self.plan.reads.setdefault(var, read)
                    site.reads.append(var)

    def only_reshapes(self, operation: Operation) -> bool:
        equation = operation.equation
        return (
            equation is not None
            and equation.primitive.name in equations.SHAPES
            and self.keeps_size(operation)
        )


def _count_products(equation: Any) -> int:
    """Counts bilinear operations, including those of inner programs; of branches, the maximum counts."""
    if equation.primitive.name in equations.BILINEAR:
        return 1
    inside = [sum(map(_count_products, program.eqns)) for program in equations.inner_programs(equation)]
    return max(inside, default=0) if equation.primitive.name == "cond" else sum(inside)

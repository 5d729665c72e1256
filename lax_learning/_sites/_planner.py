"""Provenance analysis, which finds the operations of a traced program that combine parameters with data."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]  (JAX 0.12)

from lax_learning._sites import _equations as equations
from lax_learning._sites._plan import Kind, Operation, Plan, Read, Site, Tap, Value, join
from lax_learning._sites._products import layout_of

_Known = dict[tuple[int, tuple[Kind, ...]], tuple[bool, list[Kind]]]
"""For the id of a program and the kinds of its arguments: whether it has taps, and kinds of its results."""


def make_plan(body: ClosedJaxpr, kinds: Sequence[Kind], num_outputs: int) -> Plan:
    """Returns the plan of a model with arguments of these kinds; sites, taps and reads are numbered in order.

    The first `num_outputs` results are outputs, and sites if they depend on parameters only; the rest is aux.
    """
    plan = _Planner((), {}).planned(body, kinds, num_outputs)
    for index, mark in enumerate(plan.marks()):
        mark.index = index
    around_taps, _ = plan.behind(plan.outs[:num_outputs], lambda tap: True)
    for operation in around_taps:  # values of complex sites have no tap
        params = [value.kind.leaves for value in operation.ins if value.kind.is_param]
        if params and operation.equation and equations.has_complex_results(operation.equation):
            plan.untapped = plan.untapped.union(*params)
    return plan


class _Planner:
    """Builds one plan; `prefix` contains the lengths of the enclosing scans."""

    def __init__(self, prefix: tuple[int, ...], known: _Known) -> None:
        self.plan = Plan(len(prefix))
        self.prefix = prefix
        self.known = known  # so that each inner program is analysed once

    def planned(self, body: ClosedJaxpr, kinds: Sequence[Kind], num_outputs: int = 0) -> Plan:
        """Returns the plan of a program."""
        plan, variables = self.plan, body.jaxpr.invars
        plan.ins = [Value(variable.aval, kind) for variable, kind in zip(variables, kinds, strict=True)]
        plan.outs = self.inline(body, plan.ins)
        for i in range(num_outputs):
            if plan.outs[i].kind.is_param:
                plan.outs[i] = self.as_data("output", plan.outs[i])
        for value in plan.outs:
            value.readers.append(None)
        sites = [(operation, site) for operation in plan.operations if (site := operation.site) is not None]
        for operation, site in sites:
            self.place_taps(operation, site)
        for operation, site in sites:
            self.place_reads(operation, site)
        return plan

    def constant(self, aval: Any, number: Any) -> Value:
        value = Value(aval, Kind())
        self.plan.constants[value] = number
        return value

    def inline(self, body: ClosedJaxpr, args: Sequence[Value]) -> list[Value]:
        """Adds the equations of a program to the plan and returns its results."""
        jaxpr = body.jaxpr
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        for variable, number in zip(jaxpr.constvars, body.consts, strict=True):
            env[variable] = self.constant(variable.aval, number)

        def read(atom: Any) -> Value:
            return self.constant(atom.aval, atom.val) if equations.is_literal(atom) else env[atom]

        for equation in jaxpr.eqns:
            outs = self.add(equation, [read(atom) for atom in equation.invars])
            env.update(zip(equation.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, equation: Any, ins: list[Value]) -> list[Value]:
        """Adds an equation; calls that contain sites are inlined."""
        name, kinds = equation.primitive.name, [value.kind for value in ins]
        if name == "scan":
            return self.add_scan(equation, ins, kinds)
        if name in equations.CALLS or name in equations.REMAT:
            return self.add_call(equation, ins, kinds)
        params = tuple(i for i, kind in enumerate(kinds) if kind.is_param)
        data = [kind for kind in kinds if kind.data]
        outs = [join(kinds)] * len(equation.outvars)
        if not (params and data):
            return self.append(equation, ins, outs)
        site = self.site(name, [ins[i] for i in params])
        site.products, site.passes_error = _count_products(equation), bool(join(data).leaves)
        site.source = equations.source_line(equation)
        site.layout = layout_of(equation, *params) if site.is_bilinear else None
        return self.append(equation, ins, outs, site=site, params=params)

    def add_call(self, equation: Any, ins: list[Value], kinds: list[Kind]) -> list[Value]:
        """Adds a call or remat, unchanged if it contains no sites."""
        body = equations.body(equation)
        place = id(body.jaxpr), tuple(kinds)
        if place not in self.known:
            inner = _Planner(self.prefix, self.known).planned(body, kinds)
            self.known[place] = bool(inner.all_taps), [value.kind for value in inner.outs]
        has_taps, outs = self.known[place]
        if not has_taps:
            return self.append(equation, ins, outs)
        if equation.primitive.name in equations.CALLS:
            return self.inline(body, ins)
        inner = _Planner(self.prefix, self.known).planned(body, kinds)
        return self.append(equation, ins, outs, inner=inner)

    def add_scan(self, equation: Any, ins: list[Value], kinds: list[Kind]) -> list[Value]:
        """Adds a scan; the provenance of its carry is a least fixed point."""
        body, depth = equations.body(equation), len(self.prefix)
        prefix = (*self.prefix, equations.options(equation, equations.SCAN_OPTIONS)["length"])
        consts, carry, xs = equations.split_scan(equation, kinds)
        while True:
            # A carry that no step changes is a constant here: JAX moves it there when it traces a scan.
            steps = [kind._replace(varies=kind.varies | {depth}) for kind in (*carry, *xs)]
            inner = _Planner(prefix, self.known).planned(body, [*consts, *steps])
            results = [value.kind._replace(varies=value.kind.varies - {depth}) for value in inner.outs]
            joined = [join(pair) for pair in zip(carry, results, strict=False)]
            if joined == carry:
                break
            carry = joined
        for i, kind in enumerate(carry, start=len(consts)):
            if ins[i].kind.is_param and kind.data:
                ins[i] = self.as_data("carry", ins[i])
        outs = [*carry, *results[len(carry) :]]
        return self.append(equation, ins, outs, inner=inner if inner.all_taps else None)

    def append(self, equation: Any, ins: list[Value], kinds: list[Kind], **fields: Any) -> list[Value]:
        outs = [Value(var.aval, kind) for var, kind in zip(equation.outvars, kinds, strict=True)]
        self.plan.operations.append(Operation(equation, ins, outs, **fields))
        return outs

    def as_data(self, name: str, value: Value) -> Value:
        """Adds a site that turns a parameter into data, and returns its result."""
        out = Value(value.aval, value.kind._replace(data=True))
        self.plan.operations.append(Operation(None, [value], [out], self.site(name, [value]), (0,)))
        return out

    def site(self, name: str, params: list[Value]) -> Site:
        """Returns a site with these parameter operands."""
        kind = join([value.kind for value in params])
        stacked = tuple(depth in kind.varies for depth in range(len(self.prefix)))
        return Site(name, kind.leaves, tuple(params[0].aval.shape), stacked)

    def place_taps(self, operation: Operation, site: Site) -> None:
        """Puts taps at the ends of the maximal sums that contain the results of a site."""
        for value in operation.outs:
            while (after := _rest_of_sum(value)) is not None:
                value = after
            if value.is_floating:
                aval = value.aval
                value.tap = value.tap or Tap((*self.prefix, *aval.shape), aval.dtype, len(self.prefix))
                value.tap.sites.append(site)

    def place_reads(self, operation: Operation, site: Site) -> None:
        """Marks the data values that products of a site read, before any change of shape."""
        operands = [value for value in operation.ins if value.kind.data] if site.products else []
        for value in operands:
            while (maker := value.maker) and maker.only_reshapes and not value.tap:
                value = maker.ins[0]
            if value.is_floating:
                aval, passes_error = value.aval, bool(value.kind.leaves)
                new = Read((*self.prefix, *aval.shape), aval.dtype, site.stacked, passes_error)
                value.read = value.read or new
                site.data.append(value.read)


def _rest_of_sum(value: Value) -> Value | None:
    """Returns the sum that a term is part of if nothing else reads the term, else None."""
    reader = value.readers[0] if len(value.readers) == 1 else None
    if reader is None or not (reader.name in equations.SUMS or reader.only_reshapes):
        return None
    (total,) = reader.outs
    return total if total.is_floating else None


def _count_products(equation: Any) -> int:
    """Counts bilinear operations, including those of inner programs; of branches, the maximum counts."""
    if equation.primitive.name in equations.BILINEAR:
        return 1
    inside = [sum(map(_count_products, program.eqns)) for program in equations.inner_programs(equation)]
    return max(inside, default=0) if equation.primitive.name == "cond" else sum(inside)

"""Provenance: where in a traced program parameters meet data, worked out before anything runs.

Every value is constant < parameter < data: it depends on no parameter and no input, on parameters alone, or
on inputs. A site is an equation that reads a parameter-only value and data. A tap stands at the end of the
maximal sum that a site's result belongs to.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import jax.numpy as jnp

from lax_learning._sites import _equations as equations
from lax_learning._sites._products import Layout, layout_of


class Kind(NamedTuple):
    """Provenance of a value.

    Fields:
      leaves: the parameters that it depends on, by position among the leaves.
      data: whether it depends on inputs.
      varies: depths of the scans around it in which it differs from step to step.
    """

    leaves: frozenset[int] = frozenset()
    data: bool = False
    varies: frozenset[int] = frozenset()

    @property
    def is_param(self) -> bool:
        return bool(self.leaves) and not self.data

    def at(self, depth: int) -> "Kind":
        """The same value inside a scan at this depth, one a step."""
        return self._replace(varies=self.varies | {depth})

    def outside(self, depth: int) -> "Kind":
        """The same value after the scan at this depth."""
        return self._replace(varies=self.varies - {depth})


def join(kinds: Sequence[Kind]) -> Kind:
    """Provenance of a value computed from values of these kinds."""
    return Kind(
        frozenset().union(*(kind.leaves for kind in kinds)),
        any(kind.data for kind in kinds),
        frozenset().union(*(kind.varies for kind in kinds)),
    )


@dataclass(eq=False)
class Site:
    """An equation where parameters meet data.

    Fields:
      index: position in the program.
      operation: name of the equation; "carry" where a parameter becomes the initial carry of a scan, "output"
        where it becomes an output.
      leaves: the parameters that it reads.
      shape: shape of the (first) parameter-only operand.
      products: number of bilinear operations: 1 for a matrix product or a convolution, and for an opaque
        operation as many as lie inside.
      passes_error: whether its data depend on a parameter, so that an error has to pass through it.
      stacked: for every scan around it, whether its parameters differ from step to step, as those of stacked
        layers do.
      source: line of the user's code, if known.
      layout: of a bilinear operation, its vectors and its matrix.
      reads: the data values that its products read: variables of its plan, and once all is numbered, indices.
    """

    index: int
    operation: str
    leaves: frozenset[int]
    shape: tuple[int, ...]
    products: int
    passes_error: bool
    stacked: tuple[bool, ...]
    source: str
    layout: Layout | None = None
    reads: list[int] = field(default_factory=list)

    @property
    def is_bilinear(self) -> bool:
        return self.operation in equations.BILINEAR


@dataclass(eq=False)
class Tap:
    """The end of a maximal sum of sites: a pre-activation `z`.

    Fields:
      index: position in the program.
      shape: shape of z, with the steps of the scans around it in front.
      dtype: of z.
      steps: number of leading axes that are steps of scans.
      sites: the sites whose results are added up.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any
    steps: int
    sites: list[Site] = field(default_factory=list)


@dataclass(eq=False)
class Read:
    """A data value that products read, before any change of shape.

    Fields:
      index, shape, dtype: as of a `Tap`.
      stacked, passes_error: as of the `Site` that reads it.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any
    stacked: tuple[bool, ...]
    passes_error: bool


@dataclass
class Operation:
    """An equation of a plan on numbered variables; without an equation its input is its output.

    Fields:
      equation: the traced equation.
      ins: variables read.
      outs: variables written.
      site: set if parameters meet data here.
      params: positions among `ins` of the parameter-only operands of a site.
      inner: plan of the body of a scan or remat that holds sites.
    """

    equation: Any
    ins: list[int]
    outs: list[int]
    site: Site | None = None
    params: tuple[int, ...] = ()
    inner: "Plan | None" = None


@dataclass
class Plan:
    """A program, calls in line, with its sites, taps and reads.

    Fields:
      constants: variables whose value is known.
      ins: variables of the arguments.
      outs: variables of the results.
      operations: in order.
      kinds: provenance of every variable.
      taps: by the variable that they stand at.
      reads: by variable.
      activities: by variable, the index under which it is emitted; see `mark_activities`.
      depth: number of scans around it.
    """

    constants: dict[int, Any] = field(default_factory=dict)
    ins: list[int] = field(default_factory=list)
    outs: list[int] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    kinds: dict[int, Kind] = field(default_factory=dict)
    taps: dict[int, Tap] = field(default_factory=dict)
    reads: dict[int, Read] = field(default_factory=dict)
    activities: dict[int, int] = field(default_factory=dict)
    depth: int = 0

    def all_plans(self) -> Iterator["Plan"]:
        """This plan and those of all bodies, outermost first."""
        yield self
        for operation in self.operations:
            if operation.inner is not None:
                yield from operation.inner.all_plans()

    @property
    def all_taps(self) -> list[Tap]:
        return sorted((tap for plan in self.all_plans() for tap in plan.taps.values()), key=lambda t: t.index)

    @property
    def all_reads(self) -> list[Read]:
        return sorted(
            (read for plan in self.all_plans() for read in plan.reads.values()), key=lambda r: r.index
        )

    @property
    def all_sites(self) -> list[Site]:
        plans = list(self.all_plans())
        sites = [op.site for plan in plans for op in plan.operations if op.site is not None]
        return sorted(sites, key=lambda site: site.index)


def make_plan(
    body: equations.Body,
    kinds: Sequence[Kind],
    *,
    prefix: tuple[int, ...] = (),
    num_outputs: int | None = None,
    known: "_Known | None" = None,
) -> Plan:
    """Works out the provenance of a program whose arguments have the given kinds.

    Args:
      body: the traced program.
      kinds: provenance of its arguments.
      prefix: lengths of the scans around it.
      num_outputs: for the whole model, how many of its results are outputs; an output that depends on
        parameters alone is a site, too. The other results are aux.
      known: what was found out about inner programs, so that each is looked at once.

    Returns:
      Its plan; sites, taps and reads are numbered in order.
    """
    planner = _Planner(prefix, {} if known is None else known)
    plan = planner.plan
    plan.ins = [
        planner.new(variable.aval, kind) for variable, kind in zip(body.jaxpr.invars, kinds, strict=True)
    ]
    plan.outs = planner.inline(body, plan.ins)
    for i in range(num_outputs or 0):
        if plan.kinds[plan.outs[i]].is_param:
            plan.outs[i] = planner.as_data("output", plan.outs[i])
    planner.place_taps()
    planner.place_reads()
    if num_outputs is not None:
        _number(plan, count())
    return plan


def _number(plan: Plan, numbers: Iterator[int]) -> None:
    """Numbers sites, taps and reads in the order in which the program meets them."""

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


_Known = dict[tuple[int, tuple[Kind, ...]], tuple[bool, list[Kind]]]
"""By the identity of a program and the kinds of its arguments: has it taps, and kinds of its results."""


class _Planner:
    """Builds one plan."""

    def __init__(self, prefix: tuple[int, ...], known: "_Known") -> None:
        self.plan = Plan(depth=len(prefix))
        self.prefix = prefix
        self.known = known
        self.avals: list[Any] = []

    def new(self, aval: Any, kind: Kind) -> int:
        """A new variable."""
        self.avals.append(aval)
        self.plan.kinds[len(self.avals) - 1] = kind
        return len(self.avals) - 1

    def constant(self, aval: Any, value: Any) -> int:
        var = self.new(aval, Kind())
        self.plan.constants[var] = value
        return var

    def inline(self, body: equations.Body, args: Sequence[int]) -> list[int]:
        """Adds the equations of a program to the plan and returns its results."""
        jaxpr = body.jaxpr
        env = dict(zip(jaxpr.invars, args, strict=True))
        for variable, value in zip(jaxpr.constvars, body.consts, strict=True):
            env[variable] = self.constant(variable.aval, value)

        def read(atom: Any) -> int:
            return self.constant(atom.aval, atom.val) if equations.is_literal(atom) else env[atom]

        for equation in jaxpr.eqns:
            outs = self.add(equation, [read(atom) for atom in equation.invars])
            env.update(zip(equation.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, equation: Any, ins: list[int]) -> list[int]:
        """Adds an equation, in line if it is a call around sites."""
        name = equation.primitive.name
        kinds = [self.plan.kinds[var] for var in ins]
        if name == "scan":
            return self.add_scan(equation, ins, kinds)
        if name in equations.CALLS or name in equations.REMAT:
            body = equations.body(equation)
            place = id(body.jaxpr), tuple(kinds)
            if place not in self.known:
                inner = make_plan(body, kinds, prefix=self.prefix, known=self.known)
                self.known[place] = bool(inner.all_taps), [inner.kinds[var] for var in inner.outs]
            has_taps, outs = self.known[place]
            if not has_taps:
                return self.append(equation, ins, outs)
            if name in equations.CALLS:
                return self.inline(body, ins)
            inner = make_plan(body, kinds, prefix=self.prefix, known=self.known)
            return self.append(equation, ins, outs, inner=inner)
        params = tuple(i for i, kind in enumerate(kinds) if kind.is_param)
        site = None
        if params and any(kind.data for kind in kinds):
            data = join([kind for kind in kinds if kind.data])
            products = _count_products(equation)
            site = self.site(
                name,
                ins,
                params,
                products=products,
                passes_error=bool(data.leaves),
                source=equations.source_line(equation),
                layout=layout_of(equation, *params) if name in equations.BILINEAR else None,
            )
        outs = [join(kinds)] * len(equation.outvars)
        return self.append(equation, ins, outs, site=site, params=params if site else ())

    def site(self, name: str, ins: list[int], params: tuple[int, ...], **fields: Any) -> Site:
        """A site whose parameter-only operands stand at `params`."""
        kind = join([self.plan.kinds[ins[i]] for i in params])
        stacked = tuple(depth in kind.varies for depth in range(len(self.prefix)))
        return Site(-1, name, kind.leaves, tuple(self.avals[ins[params[0]]].shape), stacked=stacked, **fields)

    def add_scan(self, equation: Any, ins: list[int], kinds: list[Kind]) -> list[int]:
        """Adds a scan. The provenance of its carry is the least fixed point."""
        consts, carry, xs = equations.split_scan(equation, kinds)
        body = equations.body(equation)
        prefix = (*self.prefix, equations.scan_options(equation)["length"])
        depth = len(self.prefix)
        _, carried, _ = equations.split_scan(equation, body.jaxpr.invars)
        kept = [a is b for a, b in zip(carried, body.jaxpr.outvars, strict=False)]
        while True:
            inside = [kind if same else kind.at(depth) for kind, same in zip(carry, kept, strict=True)]
            args = [*consts, *inside, *(kind.at(depth) for kind in xs)]
            inner = make_plan(body, args, prefix=prefix, known=self.known)
            results = [inner.kinds[var].outside(depth) for var in inner.outs]
            joined = [join(pair) for pair in zip(carry, results, strict=False)]
            if joined == carry:
                break
            carry = joined
        _, first, _ = equations.split_scan(equation, ins)
        start = len(consts)
        for offset, (var, kind) in enumerate(zip(first, carry, strict=True)):
            if self.plan.kinds[var].is_param and kind.data:
                ins[start + offset] = self.as_data("carry", var)
        outs = [*carry, *results[len(carry) :]]
        return self.append(equation, ins, outs, inner=inner if inner.all_taps else None)

    def append(self, equation: Any, ins: list[int], kinds: list[Kind], **fields: Any) -> list[int]:
        outs = [self.new(var.aval, kind) for var, kind in zip(equation.outvars, kinds, strict=True)]
        self.plan.operations.append(Operation(equation, ins, outs, **fields))
        return outs

    def as_data(self, name: str, var: int) -> int:
        """The value of a parameter as data: a site of its own."""
        kind = self.plan.kinds[var]
        out = self.new(self.avals[var], kind._replace(data=True))
        site = self.site(name, [var], (0,), products=0, passes_error=False, source="")
        self.plan.operations.append(Operation(None, [var], [out], site, (0,)))
        return out

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
                aval = self.avals[var]
                if jnp.issubdtype(aval.dtype, jnp.floating):
                    shape = (*self.prefix, *aval.shape)
                    tap = self.plan.taps.setdefault(var, Tap(-1, shape, aval.dtype, len(self.prefix)))
                    tap.sites.append(operation.site)

    def continues(self, readers: list[Operation | None]) -> Operation | None:
        """The operation that continues a sum whose value has these readers, if it is the only one."""
        reader = readers[0] if len(readers) == 1 else None
        if reader is None or reader.equation is None:
            return None
        name = reader.equation.primitive.name
        (out,) = reader.outs[:1]
        if not jnp.issubdtype(self.avals[out].dtype, jnp.floating):
            return None
        same_size = all(_size(self.avals[var]) == _size(self.avals[out]) for var in reader.ins[:1])
        is_sum = name in equations.SUMS and len(reader.outs) == 1
        is_shape = name in equations.SHAPES and same_size and len(reader.outs) == 1
        return reader if is_sum or is_shape else None

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
                aval = self.avals[var]
                if jnp.issubdtype(aval.dtype, jnp.floating):
                    shape, passes = (*self.prefix, *aval.shape), bool(self.plan.kinds[var].leaves)
                    self.plan.reads.setdefault(var, Read(-1, shape, aval.dtype, site.stacked, passes))
                    site.reads.append(var)

    def only_reshapes(self, operation: Operation) -> bool:
        if operation.equation is None or operation.equation.primitive.name not in equations.SHAPES:
            return False
        return _size(self.avals[operation.ins[0]]) == _size(self.avals[operation.outs[0]])


def _size(aval: Any) -> int:
    return math.prod(aval.shape)


def _count_products(equation: Any) -> int:
    """Number of bilinear operations of an equation, also inside; of branches those of the longest."""
    if equation.primitive.name in equations.BILINEAR:
        return 1
    inside = [
        sum(map(_count_products, getattr(program, "jaxpr", program).eqns))
        for program in equations.inner_programs(equation)
    ]
    return max(inside, default=0) if equation.primitive.name == "cond" else sum(inside)

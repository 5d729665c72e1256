"""Plans: traced programs in which the operations that combine parameters with data are marked.

A value is a constant, which depends on no parameter and no input; a parameter, which depends on parameters
only; or data, which depends on inputs. A site is an equation that reads both a parameter and data. A tap is
the end of the maximal sum that contains the result of a site.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lax_learning._sites import _equations as equations
from lax_learning._sites._products import Bilinear, Layout
from lax_learning._sites._transposition import by_transposition


class Kind(NamedTuple):
    """Provenance of a value."""

    leaves: frozenset[int] = frozenset()  # parameters that it depends on, by position among the leaves
    data: bool = False  # whether it depends on inputs
    varies: frozenset[int] = frozenset()  # depths of enclosing scans whose steps see different values

    @property
    def is_param(self) -> bool:
        return bool(self.leaves) and not self.data

    def at(self, depth: int) -> "Kind":
        """Returns the kind inside a scan at this depth, with one value per step."""
        return self._replace(varies=self.varies | {depth})

    def outside(self, depth: int) -> "Kind":
        """Returns the kind after the scan at this depth."""
        return self._replace(varies=self.varies - {depth})


def join(kinds: Sequence[Kind]) -> Kind:
    """Returns the provenance of a value that is computed from values of these kinds."""
    return Kind(
        frozenset().union(*(kind.leaves for kind in kinds)),
        any(kind.data for kind in kinds),
        frozenset().union(*(kind.varies for kind in kinds)),
    )


@dataclass(eq=False)
class Site:
    """An equation that combines parameters with data.

    Its operation is the name of the equation, "carry" if a parameter becomes the initial carry of a scan, or
    "output" if a parameter becomes an output.
    """

    index: int  # position in the program
    operation: str
    leaves: frozenset[int]  # parameters that it reads
    shape: tuple[int, ...]  # shape of the first parameter operand
    products: int  # number of bilinear operations, including those inside an opaque operation
    passes_error: bool  # whether its data depend on a parameter, so that an error has to pass through it
    stacked: tuple[bool, ...]  # for every enclosing scan, whether its parameters differ from step to step
    source: str  # line of the user's code, if known
    layout: Layout | None = None  # a bilinear operation as vectors times a matrix
    reads: list[int] = field(default_factory=list)  # data read by products: variables, indices once numbered

    @property
    def is_bilinear(self) -> bool:
        return self.operation in equations.BILINEAR

    @property
    def at_source(self) -> str:
        """Suffix of error messages: the line of the user's code, if known."""
        return f" at {self.source}" if self.source else ""


@dataclass(eq=False)
class Tap:
    """The end of a maximal sum of sites: a pre-activation `z`."""

    index: int  # position in the program
    shape: tuple[int, ...]  # with the steps of enclosing scans first
    dtype: Any
    steps: int  # number of leading axes that are steps of scans
    sites: list[Site] = field(default_factory=list)


@dataclass(eq=False)
class Read:
    """A data value that products read, before any change of shape; fields are as in `Tap` and `Site`."""

    index: int
    shape: tuple[int, ...]
    dtype: Any
    stacked: tuple[bool, ...]
    passes_error: bool


@dataclass
class Operation:
    """An equation of a plan on numbered variables; without an equation, its output is its input."""

    equation: Any
    ins: list[int]
    outs: list[int]
    site: Site | None = None  # set if the equation combines parameters with data
    params: tuple[int, ...] = ()  # positions in `ins` of the parameter operands of a site
    inner: "Plan | None" = None  # the body of a scan or remat that contains sites

    def operands(self, values: list[Any]) -> tuple[Any, Any]:
        """Returns operands `(w, x)` of a site: two arrays for a bilinear operation, else two tuples."""
        w = tuple(values[i] for i in self.params)
        x = tuple(value for i, value in enumerate(values) if i not in self.params)
        return (w[0], x[0]) if self.site and self.site.is_bilinear else (w, x)

    def product(self, by_example: bool) -> Bilinear:
        """Returns a site's operation `(w, x) -> z`; `by_example` selects a form that is fast under `vmap`."""
        site = self.site
        assert site is not None
        op = equations.operation(self.equation, self.params, single=site.is_bilinear)
        if by_example and site.operation in equations.CUSTOM_VJP:
            return by_transposition(op)
        # Summing over an axis of examples and one of length 1 makes XLA transpose the errors in memory.
        return site.layout.alone if by_example and site.layout and site.layout.alone else op

    @property
    def is_scan(self) -> bool:
        return self.equation is not None and self.equation.primitive.name == "scan"


@dataclass
class Plan:
    """A program with inlined calls, and its sites, taps and reads. Variables are numbers."""

    constants: dict[int, Any] = field(default_factory=dict)
    ins: list[int] = field(default_factory=list)
    outs: list[int] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    kinds: dict[int, Kind] = field(default_factory=dict)
    taps: dict[int, Tap] = field(default_factory=dict)
    reads: dict[int, Read] = field(default_factory=dict)
    untapped: frozenset[int] = frozenset()  # parameters whose complex sites reach the results around all taps
    activities: dict[int, int] = field(default_factory=dict)  # indices to emit at, see `mark_activities`
    depth: int = 0  # number of enclosing scans

    def all_plans(self) -> Iterator["Plan"]:
        """Yields this plan and those of all inner bodies, outermost first."""
        yield self
        for operation in self.operations:
            if operation.inner is not None:
                yield from operation.inner.all_plans()

    @property
    def all_taps(self) -> list[Tap]:
        return _in_order(tap for plan in self.all_plans() for tap in plan.taps.values())

    @property
    def all_reads(self) -> list[Read]:
        return _in_order(read for plan in self.all_plans() for read in plan.reads.values())

    @property
    def all_sites(self) -> list[Site]:
        return _in_order(op.site for plan in self.all_plans() for op in plan.operations if op.site)

    def indices(self) -> set[int]:
        """Returns the indices of all taps, reads and sites."""
        return {mark.index for mark in (*self.all_taps, *self.all_reads, *self.all_sites)}


def _in_order(marks: Iterator[Any]) -> list[Any]:
    return sorted(marks, key=lambda mark: mark.index)

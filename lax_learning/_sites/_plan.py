"""Plans: traced programs in which the operations that combine parameters with data are marked.

A value is a constant, which depends on no parameter and no input; a parameter, which depends on parameters
only; or data, which depends on inputs. A site is an equation that reads both a parameter and data. A tap is
the end of the maximal sum that contains the result of a site.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp

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


def join(kinds: Sequence[Kind]) -> Kind:
    """Returns the provenance of a value that is computed from values of these kinds."""
    return Kind(
        frozenset().union(*(kind.leaves for kind in kinds)),
        any(kind.data for kind in kinds),
        frozenset().union(*(kind.varies for kind in kinds)),
    )


@dataclass(eq=False)
class Read:
    """A data value that products read, before any change of shape; fields are as in `Tap` and `Site`."""

    shape: tuple[int, ...]
    dtype: Any
    stacked: tuple[bool, ...]
    passes_error: bool
    index: int = field(init=False)


@dataclass(eq=False)
class Site:
    """An equation that combines parameters with data.

    Its operation is the name of the equation, "carry" if a parameter becomes the initial carry of a scan, or
    "output" if a parameter becomes an output.
    """

    operation: str
    leaves: frozenset[int]  # parameters that it reads
    shape: tuple[int, ...]  # shape of the first parameter operand
    stacked: tuple[bool, ...]  # for every enclosing scan, whether its parameters differ from step to step
    products: int = 0  # number of bilinear operations, including those inside an opaque operation
    passes_error: bool = False  # whether its data depend on a parameter: an error has to pass through it
    source: str = ""  # line of the user's code, if known
    layout: Layout | None = None  # a bilinear operation as vectors times a matrix
    data: list[Read] = field(default_factory=list)  # what its products read
    index: int = field(init=False)  # position in the program

    @property
    def is_bilinear(self) -> bool:
        return self.operation in equations.BILINEAR

    @property
    def reads(self) -> list[int]:
        """Indices of the data that its products read."""
        return [read.index for read in self.data]

    @property
    def at_source(self) -> str:
        """Suffix of error messages: the line of the user's code, if known."""
        return f" at {self.source}" if self.source else ""


@dataclass(eq=False)
class Tap:
    """The end of a maximal sum of sites: a pre-activation `z`."""

    shape: tuple[int, ...]  # with the steps of enclosing scans first
    dtype: Any
    steps: int  # number of leading axes that are steps of scans
    sites: list[Site] = field(default_factory=list)
    index: int = field(init=False)


@dataclass(eq=False)
class Value:
    """A variable of a plan."""

    aval: Any
    kind: Kind
    maker: "Operation | None" = None  # None for arguments and constants
    readers: list["Operation | None"] = field(default_factory=list)  # None if it is a result of the plan
    tap: Tap | None = None
    read: Read | None = None
    activity: int | None = None  # index to emit it at, see `mark_activities`

    @property
    def is_floating(self) -> bool:
        return jnp.issubdtype(self.aval.dtype, jnp.floating)


@dataclass(eq=False)
class Operation:
    """An equation of a plan; without an equation, its output is its input."""

    equation: Any
    ins: list[Value]
    outs: list[Value]
    site: Site | None = None  # set if the equation combines parameters with data
    params: tuple[int, ...] = ()  # positions in `ins` of the parameter operands of a site
    inner: "Plan | None" = None  # the body of a scan or remat that contains sites

    def __post_init__(self) -> None:
        for value in self.ins:
            value.readers.append(self)
        for value in self.outs:
            value.maker = self

    @property
    def name(self) -> str:
        return "" if self.equation is None else self.equation.primitive.name

    @property
    def is_scan(self) -> bool:
        return self.name == "scan"

    @property
    def places(self) -> tuple[list[int], list[int], list[int]]:
        """Positions in `ins` of constants, initial carry and sequences; of a remat, all are constants."""
        every = list(range(len(self.ins)))
        return equations.split_scan(self.equation, every) if self.is_scan else (every, [], [])

    @property
    def only_reshapes(self) -> bool:
        """Whether its single result has the entries of its (first) operand, in another shape or dtype."""
        is_single = self.name in equations.SHAPES and len(self.outs) == 1
        return is_single and self.ins[0].aval.size == self.outs[0].aval.size

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


@dataclass(eq=False)
class Plan:
    """A program with inlined calls, and its sites, taps and reads."""

    depth: int  # number of enclosing scans
    constants: dict[Value, Any] = field(default_factory=dict)
    ins: list[Value] = field(default_factory=list)
    outs: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    untapped: frozenset[int] = frozenset()  # parameters whose complex sites reach the results around all taps

    def marks(self) -> Iterator[Site | Tap | Read]:
        """Yields sites, taps and reads in program order, including those of inner bodies."""

        def at(values: list[Value]) -> Iterator[Tap | Read]:
            return (mark for value in values for mark in (value.tap, value.read) if mark is not None)

        yield from at(self.ins)
        for operation in self.operations:
            if operation.site is not None:
                yield operation.site
            if operation.inner is not None:
                yield from operation.inner.marks()
            yield from at(operation.outs)

    @property
    def all_taps(self) -> list[Tap]:
        return [mark for mark in self.marks() if isinstance(mark, Tap)]

    @property
    def all_reads(self) -> list[Read]:
        return [mark for mark in self.marks() if isinstance(mark, Read)]

    @property
    def all_sites(self) -> list[Site]:
        return [mark for mark in self.marks() if isinstance(mark, Site)]

    def indices(self) -> set[int]:
        """Returns the indices of all taps, reads and sites."""
        return {mark.index for mark in self.marks()}

    def behind(
        self, results: Collection[Value], stops: Callable[[Tap], bool]
    ) -> tuple[list[Operation], set[Value]]:
        """Returns the operations and arguments that errors at results reach before a tap stops them."""
        operations, needed = [], set(results)
        for operation in reversed(self.operations):
            outs = enumerate(operation.outs)
            reached = {i for i, out in outs if out in needed and not (out.tap and stops(out.tap))}
            if not reached:
                continue
            inside, places = [operation], range(len(operation.ins))
            inner, (_, carry, _) = operation.inner, operation.places
            while inner is not None:
                inside, arguments = inner.behind([inner.outs[i] for i in reached], stops)
                places = [i for i, value in enumerate(inner.ins) if value in arguments]
                before = {carry.index(i) for i in places if i in carry}  # results of the step before
                if before <= reached:
                    break
                reached |= before
            operations += inside
            needed.update(operation.ins[i] for i in places)
        return operations, needed.intersection(self.ins)

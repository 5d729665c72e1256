"""Layout of traced programs: the JAX internals that differ between JAX versions.

Other modules read only the parameters of matrix products and convolutions.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]  (JAX 0.12)

BILINEAR = frozenset({"dot_general", "conv_general_dilated"})
"""Operations that are linear in each of two operands."""

SUMS = frozenset({"add", "sub", "add_any"})
"""Operations that combine the terms of a sum."""

SHAPES = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev", "convert_element_type",
     "copy", "copy_p", "pvary", "pcast", "reduce_precision"}
)  # fmt: skip
"""Operations that keep the entries of an array; if one repeats them, its size differs from its operand's."""

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})
"""Calls that are equivalent to their inlined body."""

REMAT = frozenset({"remat2", "remat", "checkpoint"})
"""Calls that recompute their body in the backward pass."""

CUSTOM_VJP = frozenset({"custom_vjp_call", "custom_vjp_call_jaxpr"})
"""Calls with a user-defined derivative."""


class UnknownLayoutError(TypeError):
    """Error for an equation whose parameters this version of the library does not know."""

    def __init__(self, equation: Any, expected: str) -> None:
        super().__init__(
            f"apply: expected the equation {equation.primitive.name!r} with {expected}, got parameters "
            f"{sorted(equation.params)}; this version of lax_learning does not know the layout of JAX "
            f"{jax.__version__}"
        )


def trace(function: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, Any]:
    """Traces `function` and returns its program and the structure of its result."""
    return jax.make_jaxpr(function, return_shape=True)(*args)


def body(equation: Any) -> ClosedJaxpr:
    """Returns the inner program of a call, remat or scan."""
    for name in ("jaxpr", "call_jaxpr"):
        inner = equation.params.get(name)
        if hasattr(inner, "eqns"):
            return inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())
    raise UnknownLayoutError(equation, "a parameter 'jaxpr' or 'call_jaxpr'")


def inner_programs(equation: Any) -> list[Any]:
    """Returns every program inside an equation, such as the branches of a `cond`."""
    held = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns"))
    return [getattr(program, "jaxpr", program) for program in held if hasattr(program, "eqns")]


def all_equations(program: Any) -> Iterator[Any]:
    """Yields all equations of a program, including those of inner programs."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from all_equations(inner)


def has_complex_results(equation: Any) -> bool:
    """Returns whether an equation, or one inside it, has a complex result."""
    inside = [each for program in inner_programs(equation) for each in all_equations(program)]
    results = [var.aval for each in (equation, *inside) for var in each.outvars]
    return any(jnp.issubdtype(getattr(aval, "dtype", bool), jnp.complexfloating) for aval in results)


def crosses_devices(program: Any) -> bool:
    """Returns whether a program combines values from several devices, as a mean over a mesh axis does."""
    for equation in all_equations(program):
        axes = equation.params.get("axes", equation.params.get("axis_name", ()))
        is_named = any(isinstance(axis, str) for axis in (axes if isinstance(axes, tuple) else (axes,)))
        if is_named and equation.primitive.name not in SHAPES:
            return True
    return False


def split_scan(equation: Any, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Splits the inputs of a scan into constants, initial carry and sequences."""
    params = equation.params
    if "num_consts" in params and "num_carry" in params:
        first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
        parts = values[:first], values[first:second], values[second:]
    elif hasattr(params.get("ft_in"), "update"):
        parts = params["ft_in"].update(list(values)).unpack()
    else:
        raise UnknownLayoutError(equation, "the parameters 'num_consts' and 'num_carry', or 'ft_in'")
    consts, carry, xs = map(list, parts)
    return consts, carry, xs


SCAN_OPTIONS = "length", "reverse", "unroll"
REMAT_OPTIONS = "policy", "prevent_cse"


def options(equation: Any, names: Sequence[str]) -> dict[str, Any]:
    """Returns some parameters of a scan or remat, as `jax.lax.scan` or `jax.checkpoint` takes them."""
    if not equation.params.keys() >= set(names):
        raise UnknownLayoutError(equation, f"the parameters {', '.join(map(repr, names))}")
    return {name: equation.params[name] for name in names}


def bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluates an equation on new operands."""
    params = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        result = equation.primitive.bind(*values, **params)
    return list(result) if equation.primitive.multiple_results else [result]


def operation(equation: Any, params: Sequence[int], single: bool) -> Callable[[Any, Any], Any]:
    """Returns an equation as a function `(w, x) -> z`, where w has the operands at positions `params`.

    If `single`, w and x are arrays and z is one array; otherwise w and x are tuples and z is a list.
    """

    def op(w: Any, x: Any) -> Any:
        ws, xs = ([w], [x]) if single else (list(w), list(x))
        values = [(ws if i in params else xs).pop(0) for i in range(len(equation.invars))]
        results = bind(equation, values)
        return results[0] if single else results

    return op


def vary_as(tree: Any, *others: Any) -> Any:
    """Marks arrays as varying over the same mesh axes as others, inside `jax.shard_map`.

    Operands of an equation must vary over the same mesh axes, and JAX itself casts them only while tracing.
    """

    def axes_of(leaf: Any) -> frozenset[Any]:
        is_typed = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        return jax.typeof(leaf).manual_axis_type.varying if is_typed else frozenset()

    axes = frozenset().union(*map(axes_of, jax.tree.leaves(others)))

    def of(leaf: Any) -> Any:
        missing = axes - axes_of(leaf)
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(of, tree) if axes else tree


def shard_as(array: Any, like: Any = None) -> Any:
    """Shards an array like another one, or replicates it, on a mesh with explicit axes."""
    spec = jax.P() if like is None else jax.typeof(like).sharding.spec
    is_sharded = any(spec) or any(jax.typeof(array).sharding.spec)
    return jax.sharding.reshard(array, spec) if is_sharded else array


def resized(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Returns the type of an array, with a different shape."""
    of = jax.typeof(leaf)
    sharding = jax.sharding.NamedSharding(of.sharding.mesh, jax.P())
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding, manual_axis_type=of.manual_axis_type)


def is_literal(atom: Any) -> bool:
    """Returns whether an operand is a literal number of the program."""
    return isinstance(atom, Literal)


def source_line(equation: Any) -> str:
    """Returns the line of a model that created an equation, `file:line`, in the user's code if possible."""
    frames = getattr(getattr(equation.source_info, "traceback", None), "frames", ())
    within = takewhile(lambda frame: not frame.file_name.endswith("lax_learning/models.py"), frames)
    lines = [f"{frame.file_name}:{frame.line_num}" for frame in within if "/jax/_src/" not in frame.file_name]
    own = [line for line in lines if "/site-packages/" not in line]
    return [*own, *lines, ""][0]


def evaluate(program: ClosedJaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a whole program with new constants and arguments."""
    return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*args)

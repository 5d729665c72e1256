"""A program in which nothing is computed twice, without calls of functions of its own.

XLA merges equal operations early in programs for many devices and late in those for one, and what it does in
between rounds differently. Here they are merged before it sees the program, and it is told not to.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]
from jax.extend.core.primitives import jit_p

COMPILER_OPTIONS: dict[str, str | bool] = {"xla_disable_hlo_passes": "cse"}
"""Leaves out XLA's own merging of equal operations."""


_Done: TypeAlias = dict[Hashable, tuple[list[Any], Sequence[Any]]]
"""Inputs and outputs of lines by what these are called; a name holds which inputs, so they are kept."""


def flat(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, flat when it is traced. Not to be differentiated."""

    def run(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shapes), _run(program, jax.tree.leaves(args), {}))

    return run


def _run(program: ClosedJaxpr, args: Sequence[Any], done: _Done) -> list[Any]:
    """Does what a program says, but for what is done already."""
    jaxpr = program.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *args), strict=True))

    def read(atom: Any) -> Any:
        if not isinstance(atom, Literal):
            return values[atom]
        if np.ndim(atom.val) == 0:
            return atom.val
        with jax.ensure_compile_time_eval():
            return jnp.asarray(atom.val)  # an array of JAX that is closed over, as others are

    for equation in jaxpr.eqns:
        inputs = list(map(read, equation.invars))
        name = _name(equation, inputs)
        _, outputs = done[name] if name in done else (inputs, _do(equation, inputs, done))
        if name is not None:
            done[name] = inputs, outputs
        values.update(zip(equation.outvars, outputs, strict=True))
    return list(map(read, jaxpr.outvars))


def _do(equation: JaxprEqn, inputs: list[Any], done: _Done) -> Sequence[Any]:
    """Does what one line of a program says; calls are written out, also those in loops and branches."""
    if equation.primitive is jit_p:
        return _run(equation.params["jaxpr"], inputs, done)
    params = jax.tree.map(_flat, equation.params, is_leaf=lambda value: isinstance(value, ClosedJaxpr))
    with equation.ctx.manager:
        found = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
    return found if equation.primitive.multiple_results else [found]


def _flat(param: Any) -> Any:
    if not isinstance(param, ClosedJaxpr):
        return param
    return jax.make_jaxpr(flat(jaxpr_as_fun(param)))(*param.in_avals)


def _name(equation: JaxprEqn, inputs: list[Any]) -> Hashable | None:
    """Equal for lines that compute the same; None for one that does more than compute."""
    atoms = tuple(
        (atom.aval, np.asarray(atom.val).tobytes()) if isinstance(atom, Literal) else id(value)
        for atom, value in zip(equation.invars, inputs, strict=True)
    )
    name = (equation.primitive, atoms, tuple(equation.params.items()))
    try:
        hash(name)
    except TypeError:  # params that cannot be compared
        return None
    return None if equation.effects else name

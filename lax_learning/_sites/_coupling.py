"""Trace-time detection of models that couple the examples of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lax_learning._arrays import as_arrays
from lax_learning._checks import describe
from lax_learning._sites import _equations as equations
from lax_learning.models import Model, Split

EXAMPLES = 4
TRIALS = 4
"""Number of parameter draws; a single one may leave units silent."""


def check_uncoupled(model: Model, params: Any, x: Any, remedy: str) -> None:
    """Raises ValueError if the examples of a batch depend on each other."""
    if is_coupled(model, params, x):
        raise ValueError(
            "apply: expected a model in which each output depends only on its own example, as required for "
            "credit per example, got one that couples the examples of a batch, like BatchNorm in training; "
            f"{remedy}"
        )


def is_coupled(model: Model, params: Any, x: Any) -> bool:
    """Returns whether output 0 changes when other inputs change, as under batch normalisation.

    Runs the model on random parameters and a few random examples; two are not enough, as batch normalisation
    maps any two to +1 and -1. Only shapes and dtypes of params and x are used, so they may be traced.
    """
    split = Split(model, params)
    leaves, structure = jax.tree.flatten((jax.tree.unflatten(split.structure, split.leaves), x))
    weights, examples = leaves[: len(split.leaves)], leaves[len(split.leaves) :]
    examples = [equations.resized(leaf, (EXAMPLES, *leaf.shape[1:])) for leaf in examples]

    def outputs(leaves: list[Any]) -> list[Any]:
        output, _ = model(*jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(as_arrays("apply", output))

    body, shapes = jax.make_jaxpr(outputs, return_shape=True)([*weights, *examples])
    for shape in shapes:
        if shape.shape[:1] != (EXAMPLES,):
            raise ValueError(
                "apply: expected an output with a leading axis of examples as in x, got "
                f"{describe(shape)} for {EXAMPLES} examples"
            )
    if equations.crosses_devices(body.jaxpr):
        return True
    like = [*body.consts, *weights, *examples]

    def run(values: list[Any]) -> list[Any]:
        values = list(map(equations.vary_as, values, like))
        return equations.evaluate(body, values[: len(body.consts)], values[len(body.consts) :])

    # Compiled as a whole: inside `jax.shard_map`, operations on constants cannot be evaluated one by one.
    compiled = jax.jit(run).lower([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in like]).compile()
    rng = np.random.default_rng(0)

    def trial() -> bool:
        fixed = [made_up(rng, leaf) if isinstance(leaf, Tracer) else leaf for leaf in body.consts]
        fixed += [made_up(rng, leaf) for leaf in weights]
        kept, changed = ([made_up(rng, leaf, number) for leaf in examples] for number in (0, 1))
        mixed = [jnp.concatenate([a[:1], b[1:]]) for a, b in zip(kept, changed, strict=True)]
        first, second = (compiled([*fixed, *values]) for values in (kept, mixed))
        return any(not np.array_equal(_bits(a)[0], _bits(b)[0]) for a, b in zip(first, second, strict=True))

    with jax.ensure_compile_time_eval():
        return any(trial() for _ in range(TRIALS))


def _bits(value: Any) -> np.ndarray:
    """Returns the bytes of every example."""
    value = np.asarray(value)
    return np.ascontiguousarray(value).reshape(len(value), -1).view(np.uint8)


def made_up(rng: np.random.Generator, like: Any, number: int = 0) -> Any:
    """Returns an array with the shape and dtype of `like`: random numbers, a small integer, or PRNG keys."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(number), max(int(np.prod(like.shape)), 1))
        return keys.reshape(like.shape)
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=like.shape), like.dtype)
    return jnp.full(like.shape, number, like.dtype)

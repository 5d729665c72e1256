"""Trace-time detection of models whose outputs depend on more than their own example."""

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

COUPLED = "one that couples the examples of a batch, like BatchNorm in training"
PLACED = (
    "one in which it also depends on the example's place or on the number of examples, as with noise from "
    "one key for a whole batch (pass a key per example in x)"
)


def check_uncoupled(model: Model, params: Any, x: Any, remedy: str) -> None:
    """Raises ValueError unless each output depends only on its own example."""
    fault = coupling(model, params, x)
    if fault is not None:
        expected = "a model in which each output depends only on its own example"
        raise ValueError(
            f"apply: expected {expected}, as required for credit per example, got {fault}; {remedy}"
        )


def coupling(model: Model, params: Any, x: Any) -> str | None:
    """Returns `COUPLED` if output 0 changes with other inputs, `PLACED` if the last one changes when alone.

    Runs the model on random parameters and a few random examples; two are not enough, as batch normalisation
    maps any two to +1 and -1. Only shapes and dtypes of params and x are used, so they may be traced.
    """
    split = Split(model, params)
    params = split.structure.unflatten(split.leaves)
    examples = jax.tree.map(lambda leaf: equations.resized(leaf, (EXAMPLES, *leaf.shape[1:])), x)

    def outputs(params: Any, x: Any) -> list[Any]:
        found = jax.tree.leaves(as_arrays("apply", model(params, x)[0]))
        size = len(jax.tree.leaves(x)[0])
        for leaf in found:
            if leaf.shape[:1] != (size,):
                raise ValueError(
                    "apply: expected an output with a leading axis of examples as in x, got "
                    f"{describe(leaf)} for {size} examples; for (output, aux), pass has_aux=True"
                )
        return found

    def together_and_alone(params: Any, x: Any) -> tuple[list[Any], list[Any]]:
        return outputs(params, x), outputs(params, jax.tree.map(lambda leaf: leaf[-1:], x))

    try:
        body = jax.make_jaxpr(together_and_alone)(params, examples)
    except (TypeError, ValueError):
        jax.eval_shape(model, params, x)  # raises the same error with the shapes that were given
        raise
    if equations.crosses_devices(body.jaxpr):
        return COUPLED
    weights, inputs = split.leaves, jax.tree.leaves(examples)
    like = [*body.consts, *weights, *inputs]

    def run(values: list[Any]) -> list[Any]:
        values = list(map(equations.vary_as, values, like))
        return equations.evaluate(body, values[: len(body.consts)], values[len(body.consts) :])

    # Compiled as a whole: inside `jax.shard_map`, operations on constants cannot be evaluated one by one.
    compiled = jax.jit(run).lower([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in like]).compile()
    rng = np.random.default_rng(0)

    def trial() -> tuple[bool, bool]:
        fixed = [made_up(rng, leaf) if isinstance(leaf, Tracer) else leaf for leaf in body.consts]
        fixed += [made_up(rng, leaf) for leaf in weights]
        kept, changed = ([made_up(rng, leaf, number) for leaf in inputs] for number in (0, 1))
        mixed = [jnp.concatenate([a[:1], b[1:]]) for a, b in zip(kept, changed, strict=True)]
        found, others = (compiled([*fixed, *values]) for values in (kept, mixed))
        together, alone = found[: len(found) // 2], found[len(found) // 2 :]
        pairs = zip(together, others[: len(together)], strict=True)
        coupled = any(np.asarray(a)[0].tobytes() != np.asarray(b)[0].tobytes() for a, b in pairs)
        return coupled, not all(map(_are_close, together, alone))

    with jax.ensure_compile_time_eval():
        coupled, placed = zip(*(trial() for _ in range(TRIALS)), strict=True)
    # In all trials: rounding, which depends on the number of examples, may decide a comparison in one.
    return COUPLED if any(coupled) else PLACED if all(placed) else None


def _are_close(together: Any, alone: Any) -> bool:
    """Returns whether the last example has equal outputs up to rounding."""
    a, b = np.asarray(together)[-1], np.asarray(alone)[-1]
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return np.array_equal(a, b)
    rtol = float(jnp.finfo(a.dtype).eps) ** 0.5
    a, b = (value.astype(np.result_type(value.dtype, np.float32)) for value in (a, b))
    scale = np.abs(a[np.isfinite(a)]).max(initial=0)
    return np.allclose(a, b, rtol=rtol, atol=rtol * scale, equal_nan=True)


def made_up(rng: np.random.Generator, like: Any, number: int = 0) -> Any:
    """Returns an array with the shape and dtype of `like`: random numbers, a small integer, or PRNG keys."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(number), max(int(np.prod(like.shape)), 1))
        return keys.reshape(like.shape)
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=like.shape), like.dtype)
    return jnp.full(like.shape, number, like.dtype)

"""Interface of experiments to sweeps: hyper-parameters, an objective, and a run in chunks."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.running import Run
from experiments.settings import Limits


class Program(NamedTuple):
    """Run of one trial and one seed in chunks, between which unpromising trials are stopped."""

    init: Callable[[jax.Array, dict[str, jax.Array], Any], Any]  # (key, traced scalars, shared) -> carry
    advance: Callable[[Any, Any, Any], tuple[Any, jax.Array]]  # (carry, chunk, shared) -> (carry, score)
    chunks: int  # number of chunks; the score after the last one is the score of the trial
    shared: Any = ()  # data for all trials


class Sweepable(NamedTuple):
    """An experiment whose hyper-parameters can be searched.

    Traced hyper-parameters are inputs of a compiled program; each combination of static ones has its own
    program. `static` maps names to defaults, integers >= 1 or strings, or to tuples of all choices, with the
    default first. `make` raises a ValueError `NAME: expected ...` for static values that cannot run.
    """

    objective: str  # description of the score
    direction: Literal["maximize", "minimize"]  # whether higher scores are better
    traced: Mapping[str, float]  # defaults; values are >= 0 or within `limits`
    static: Mapping[str, int | str | tuple[str, ...]]
    make: Callable[[Mapping[str, Any]], Program]
    limits: Mapping[str, Limits] = {}  # of traced hyper-parameters, if other than >= 0

    def defaults(self) -> dict[str, Any]:
        """Returns the default values of all hyper-parameters."""
        first = {name: v[0] if isinstance(v, tuple) else v for name, v in self.static.items()}
        return {**self.traced, **first}


def program_of(run: Callable[[Any], Run], score: Callable[..., Any], chunks: int, shared: Any) -> Program:
    """Makes a program from `run`, which maps traced hyper-parameters to a `Run`; its steps are the chunks.

    `score` maps the metrics of a step and the measurements after it to the score.
    """

    def init(key: jax.Array, traced: dict[str, jax.Array], shared: Any) -> Any:
        return traced, run(traced).init(key, shared)

    def advance(carry: Any, number: Any, shared: Any) -> tuple[Any, jax.Array]:
        traced, state = carry
        one = run(traced)
        state, found = one.step(state, number, shared)
        return (traced, state), jnp.asarray(score(found, one.measure(state, number + 1, shared)))

    return Program(init, advance, chunks, shared)


def while_finite(score: jax.Array, *losses: jax.Array) -> jax.Array:
    """Returns the score, or NaN if the run has diverged (a loss is not finite)."""
    finite = [jnp.all(jnp.isfinite(loss)) for loss in losses]
    return jnp.where(jnp.all(jnp.stack(finite)), score, jnp.nan)


def check_at_most(name: str, value: int, most: int, unit: str) -> None:
    """Raises ValueError unless a hyper-parameter is at most `most`."""
    if value > most:
        raise ValueError(f"{name}: expected at most {most} {unit}, got {value}")

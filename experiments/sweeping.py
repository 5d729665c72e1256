"""Offer of an experiment to a sweep: its hyper-parameters, its objective and a run in chunks."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.running import Run
from experiments.settings import Limits


class Program(NamedTuple):
    """A run of one trial and one seed, in chunks between which hopeless trials are stopped."""

    init: Callable[[jax.Array, dict[str, jax.Array], Any], Any]  # (key, traced scalars, shared) -> carry
    advance: Callable[[Any, Any, Any], tuple[Any, jax.Array]]  # (carry, chunk, shared) -> (carry, score)
    chunks: int  # the score after the last is the trial's
    shared: Any = ()  # what all trials see


class Sweepable(NamedTuple):
    """An experiment that can be swept over.

    One compiled program takes traced hyper-parameters as they come. Static ones are what a program is made
    for: an int is a default of at least 1, text a default, and a tuple all that may be chosen, its first by
    default. `make` raises a ValueError `NAME: expected ...` for static values that cannot run.
    """

    objective: str  # what a score is, in words
    direction: Literal["maximize", "minimize"]  # whether more of it is better
    traced: Mapping[str, float]  # defaults of hyper-parameters >= 0
    static: Mapping[str, int | str | tuple[str, ...]]
    make: Callable[[Mapping[str, Any]], Program]
    limits: Mapping[str, Limits] = {}  # of traced hyper-parameters whose values must not just be >= 0

    def defaults(self) -> dict[str, Any]:
        """Default values of all hyper-parameters."""
        first = {name: v[0] if isinstance(v, tuple) else v for name, v in self.static.items()}
        return {**self.traced, **first}


def program_of(run: Callable[[Any], Run], score: Callable[..., Any], chunks: int, shared: Any) -> Program:
    """Makes a program of the run of an experiment, `traced -> Run` of a key, whose steps are the chunks.

    The score is `(metrics of the step, what was measured after it) -> score`.
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
    """The score, or NaN if a loss is not finite: such a run has diverged."""
    finite = [jnp.all(jnp.isfinite(loss)) for loss in losses]
    return jnp.where(jnp.all(jnp.stack(finite)), score, jnp.nan)


def check_at_most(name: str, value: int, most: int, unit: str) -> None:
    """Raises ValueError unless a hyper-parameter is at most `most`."""
    if value > most:
        raise ValueError(f"{name}: expected at most {most} {unit}, got {value}")

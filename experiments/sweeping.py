"""Offer of an experiment to a sweep: its hyper-parameters, its objective and a run in chunks."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.running import Run
from experiments.settings import Limits


class Program(NamedTuple):
    """A run of one trial and one seed, in chunks between which hopeless trials are stopped.

    Fields:
      init: `(key, traced, shared) -> carry`, with the traced hyper-parameters in a dict of scalars.
      advance: `(carry, number, shared) -> (carry, score)`: chunk `number`, and the score after it.
      chunks: how many there are; the score after the last is the trial's.
      shared: what all trials see.
    """

    init: Callable[[jax.Array, dict[str, jax.Array], Any], Any]
    advance: Callable[[Any, Any, Any], tuple[Any, jax.Array]]
    chunks: int
    shared: Any = ()


class Sweepable(NamedTuple):
    """An experiment that can be swept over.

    Fields:
      objective: what a score is, in words.
      direction: whether more of it is better.
      traced: hyper-parameters >= 0 that one compiled program takes as they come, and their defaults.
      static: hyper-parameters that a program is made for: an int is a default of at least 1, text a default,
        and a tuple all that may be chosen, its first by default.
      make: `static -> Program`; it raises a ValueError `NAME: expected ...` for values that cannot run.
      limits: of traced hyper-parameters whose values must not just be >= 0.
    """

    objective: str
    direction: Literal["maximize", "minimize"]
    traced: Mapping[str, float]
    static: Mapping[str, int | str | tuple[str, ...]]
    make: Callable[[Mapping[str, Any]], Program]
    limits: Mapping[str, Limits] = {}

    def defaults(self) -> dict[str, Any]:
        """All hyper-parameters as they are unless said otherwise."""
        first = {name: v[0] if isinstance(v, tuple) else v for name, v in self.static.items()}
        return {**self.traced, **first}


def program_of(
    run: Callable[[dict[str, jax.Array]], Run],
    score: Callable[[Any, Any], jax.Array],
    chunks: int,
    shared: Any = (),
) -> Program:
    """Makes a program of the run of an experiment.

    Args:
      run: `traced -> Run` of a key; its steps are the chunks.
      score: `(metrics of the step, what was measured after it) -> score`.
      chunks: how many there are.
      shared: what all trials see.
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
    """The score, or NaN if a loss is not finite: a run that diverged, whatever its network still answers."""
    finite = [jnp.all(jnp.isfinite(loss)) for loss in losses]
    return jnp.where(jnp.all(jnp.stack(finite)), score, jnp.nan)


def check_at_most(name: str, value: int, most: int, unit: str) -> None:
    """Raises ValueError unless a hyper-parameter is at most `most` of something."""
    if value > most:
        raise ValueError(f"{name}: expected at most {most} {unit}, got {value}")

"""What an experiment offers to be swept over: its hyper-parameters, its objective and a run in chunks."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax


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
      make: `static -> Program`.
    """

    objective: str
    direction: Literal["maximize", "minimize"]
    traced: Mapping[str, float]
    static: Mapping[str, int | str | tuple[str, ...]]
    make: Callable[[Mapping[str, Any]], Program]

    def defaults(self) -> dict[str, Any]:
        """All hyper-parameters as they are unless said otherwise."""
        first = {name: v[0] if isinstance(v, tuple) else v for name, v in self.static.items()}
        return {**self.traced, **first}

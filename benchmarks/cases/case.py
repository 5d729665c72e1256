"""Cases of the throughput benchmark, and the sizes of their problems."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax

from benchmarks.timing import Ours, Reference
from experiments.settings import Count, Options, at_least


@dataclass(frozen=True)
class Sizes(Options):
    """Sizes of the problems; the defaults are those of the published experiments."""

    hidden: Count = 500
    """Hidden units of the tutorial's network."""
    batch_size: Count = 200
    """Examples per update in the tutorial."""
    updates: Count = 20
    """Updates per call, for the tutorial and for decorrelation."""
    examples: Annotated[int, at_least(3)] = 1_000
    """Examples for the SNR; the reference needs 3.1 MB for each."""
    neurons: Count = 50
    """Number of neurons and of input dimensions in the birth-death step."""
    points: Count = 100
    """New examples per birth-death step."""
    steps: Count = 1_000
    """Birth-death steps per call."""
    curve_points: Count = 700
    """Points of each curve that a critic sees."""
    epochs: Count = 5
    """Epochs of a critic per call."""
    width: Count = 100
    """Units of a hidden k-cap layer, half of which may fire."""
    samples: Count = 1_000
    """Samples in a pass of the k-cap network."""
    rule_batch_size: Count = 100
    """Samples per meta-learning batch, the pass that is differentiated."""
    rule_batches: Count = 10
    """Meta-learning batches per call; a rule epoch has 75."""

    PREFIX: ClassVar[str] = "sizes."

    def num_bytes(self, seeds: int) -> int:
        """Shapes that the largest of so many seeds hold at least: weights, or the examples of one call."""
        of_seed = (
            784 * self.hidden,
            self.neurons**2,
            self.curve_points * 64,
            784 * self.width,
        )
        shared = (
            784 * self.batch_size * self.updates,
            784 * self.examples,
            784 * self.samples,
            self.points * self.neurons,
            self.rule_batch_size * self.rule_batches,
            self.epochs,
            self.steps,
        )
        return 4 * (seeds * max(of_seed) + max(shared))


class Case(NamedTuple):
    """One row of the benchmark.

    Fields:
      system: the part of the library.
      name: the work, with its variant.
      goal: how many times as fast as the reference one seed should be.
      ensemble_goal: the same for each of many seeds; None if the case is for one seed only.
      ours: `(sizes, seeds) -> Ours`.
      reference: `sizes -> reference`, a call or a program.
      requires: the package that the reference needs beside NumPy; without it the case is left out.
    """

    system: str
    name: str
    goal: float
    ensemble_goal: float | None
    ours: Callable[[Sizes, int], Ours]
    reference: Callable[[Sizes], Reference]
    requires: str | None = None

    def goal_at(self, seeds: int) -> float | None:
        """The goal for so many seeds."""
        return self.goal if seeds == 1 else self.ensemble_goal

    def can_run(self) -> bool:
        """Returns whether what its reference needs is installed."""
        return self.requires is None or importlib.util.find_spec(self.requires) is not None


def members(init: Callable[[jax.Array], Any], seeds: int) -> Any:
    """Result of `init`, for one seed or stacked for many."""
    key = jax.random.key(1)
    return jax.jit(init)(key) if seeds == 1 else jax.jit(jax.vmap(init))(jax.random.split(key, seeds))

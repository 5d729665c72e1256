"""Type of the cases of the throughput benchmark, and sizes of their problems."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, util
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np

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
        """Returns a lower bound on the memory of the weights of all seeds, and of the examples of a call."""
        of_seed = (784 * self.hidden, self.neurons**2, self.curve_points * 64, 784 * self.width)
        of_images = 784 * max(self.batch_size * self.updates, self.examples, self.samples)
        of_points = self.points * self.neurons, self.rule_batch_size * self.rule_batches
        return 4 * (seeds * max(of_seed) + max(of_images, *of_points, self.epochs, self.steps))


class Case(NamedTuple):
    """One row of the benchmark."""

    system: str  # part of the library
    name: str  # piece of work, with its variant
    goal: float  # intended speed of one seed relative to the reference
    ensemble_goal: float | None  # the same for each of many seeds; None if the case supports only one seed
    ours: Callable[[Sizes, int], Ours]  # `(sizes, seeds) -> Ours`
    reference: Callable[[Sizes], Reference]  # `sizes -> reference`, a call or a program
    requires: str | None = None  # package that the reference needs; without it, the case is skipped

    def goal_at(self, seeds: int) -> float | None:
        """Returns the goal for a number of seeds."""
        return self.goal if seeds == 1 else self.ensemble_goal

    def can_run(self) -> bool:
        """Returns whether the package that the reference needs is installed."""
        return self.requires is None or util.find_spec(self.requires) is not None


def torch_and(reference: str) -> tuple[Any, Any]:
    """Imports PyTorch, and a reference that needs it."""
    return import_module("torch"), import_module(f"benchmarks.reference.{reference}")


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images `[count, 784]` in 0..1, a fifth of them nonzero as in MNIST, and labels in 0..9."""
    rng = np.random.default_rng(0)
    x = rng.random((count, 784)) * (rng.random((count, 784)) < 0.2)
    return x.astype(np.float32), rng.integers(10, size=count)


def members(init: Callable[[jax.Array], Any], seeds: int) -> Any:
    """Returns the result of `init` for one seed, or stacked for several."""
    key = jax.random.key(1)
    return jax.jit(init)(key) if seeds == 1 else jax.jit(jax.vmap(init))(jax.random.split(key, seeds))

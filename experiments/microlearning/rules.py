"""The rules that the microlearning experiment compares, each in one line."""

from collections.abc import Callable
from typing import NamedTuple

import lax_learning as ll
from experiments.microlearning.config import Config
from experiments.microlearning.networks import TUTORIAL_INIT


class Scale(NamedTuple):
    """Meaning of a choice of `--scale` for the rules.

    Fields:
      sums: the `scale` of the rules that the tutorial sums over the batch.
      variant: of node perturbation.
      learning_rate: of every rule; None where it is searched.
    """

    sums: str
    variant: str
    learning_rate: float | None


SCALES = {
    "tutorial": Scale("tutorial", "tutorial", 1e-3),
    "gradient": Scale("gradient", "unbiased", 1e-1),
    "matched": Scale("gradient", "unbiased", None),
}


Build = Callable[[ll.Network, ll.Loss, Config, str], ll.Rule]


def _sign_symmetry(magnitude: str, gain: float) -> Build:
    return lambda n, l, c, sums: ll.sign_symmetry(n, l, magnitude=magnitude, gain=gain, scale=sums)


RULES: dict[str, Build] = {
    "backprop": lambda n, l, c, sums: ll.backprop(n, l, scale=sums),
    # The tutorial's decay is 0.1 in its own units, in which a step is batch / 2 times the gradient's.
    "kolen_pollack": lambda n, l, c, sums: ll.kolen_pollack(
        n, l, scale=sums, decay=0.1 * {"tutorial": 1.0, "gradient": 2 / c.batch_size}[sums], decay_bias=True
    ),
    "feedback_alignment": lambda n, l, c, sums: ll.feedback_alignment(n, l, scale=sums),
    "direct_feedback_alignment": lambda n, l, c, sums: ll.direct_feedback_alignment(
        n, l, feedback_init=TUTORIAL_INIT, scale=sums
    ),
    "sign_symmetry_unit": _sign_symmetry("unit", 0.1),  # the size of a typical initial weight
    "sign_symmetry_fixed": _sign_symmetry("fixed", 1.0),
    "sign_symmetry_redrawn": _sign_symmetry("redrawn", 1.0),
    "node_perturbation": lambda n, l, c, sums: ll.node_perturbation(
        n, l, sigma=c.sigma, num_samples=c.num_samples, noise=c.noise, variant=SCALES[c.scale].variant
    ),
    "forward_gradient": lambda n, l, c, sums: ll.forward_gradient(
        n, l, num_samples=c.num_samples, noise=c.noise
    ),
    "weight_perturbation": lambda n, l, c, sums: ll.weight_perturbation(
        n, l, sigma=c.sigma, num_samples=c.num_samples, noise=c.noise
    ),
}

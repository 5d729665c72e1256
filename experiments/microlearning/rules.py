"""The rules that the microlearning experiment compares, each in one line."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike

import lax_learning as ll
from experiments.microlearning import notebook
from experiments.microlearning.config import Config
from experiments.microlearning.networks import TUTORIAL_INIT, make_problem
from lax_learning.metrics import Moments, example_moments

LEARNING_RATES = {"tutorial": 1e-3, "gradient": 1e-1, "matched": None}
"""Default learning rate at a choice of `--scale`; None where it is searched."""


class Options(NamedTuple):
    """Options of the rules.

    Fields:
      optimizer: that of the weights, which Kolen-Pollack gives to its feedback too.
      sigma: standard deviation of the noise.
      num_samples: number of draws that are averaged.
      noise: its distribution.
      decay: of Kolen-Pollack, in the units of the gradient.
    """

    optimizer: optax.GradientTransformation
    sigma: ArrayLike
    num_samples: int = 1
    noise: str = "rademacher"
    decay: ArrayLike = 0.0


Build = Callable[[ll.Model, ll.Loss, Options], ll.Rule]


def _sign_symmetry(magnitude: str, gain: float) -> Build:
    return lambda m, l, o: ll.sign_symmetry(m, l, magnitude=magnitude, gain=gain)


RULES: dict[str, Build] = {
    "backprop": lambda m, l, o: ll.backprop(m, l),
    "kolen_pollack": lambda m, l, o: notebook.with_bias_decay(
        ll.kolen_pollack(m, l, optimizer=o.optimizer, decay=o.decay), o.decay
    ),
    "feedback_alignment": lambda m, l, o: ll.feedback_alignment(m, l),
    "direct_feedback_alignment": lambda m, l, o: ll.direct_feedback_alignment(
        m, l, feedback_init=lambda key, like: TUTORIAL_INIT(key, like.shape, like.dtype)
    ),
    "sign_symmetry_unit": _sign_symmetry("unit", 0.1),  # the size of a typical initial weight
    "sign_symmetry_fixed": _sign_symmetry("fixed", 1.0),
    "sign_symmetry_redrawn": _sign_symmetry("redrawn", 1.0),
    "node_perturbation": lambda m, l, o: ll.node_perturbation(
        m, l, sigma=o.sigma, num_samples=o.num_samples, noise=o.noise
    ),
    "forward_gradient": lambda m, l, o: ll.forward_gradient(m, l, num_samples=o.num_samples, noise=o.noise),
    "weight_perturbation": lambda m, l, o: ll.weight_perturbation(
        m, l, sigma=o.sigma, num_samples=o.num_samples, noise=o.noise
    ),
}
"""In the units of the gradient."""


MEANS = ("node_perturbation", "forward_gradient", "weight_perturbation")
"""Rules that take a mean over the batch in the tutorial too."""


def _of_notebook(make: Callable[..., Any], config: Config) -> Any:
    """Makes the notebook's node perturbation, which has the last sigmoid in the network."""
    activations = [jax.nn.sigmoid] * (len(config.widths) + 1)
    return make(activations, ll.squared_error, sigma=config.sigma, noise=config.noise)


def make_rule(
    name: str, config: Config, optimizer: optax.GradientTransformation, *, in_gradient_units: bool = False
) -> ll.Rule:
    """Returns a rule in the form of `--scale`.

    Args:
      name: of the rule.
      config: the configuration.
      optimizer: that of the weights.
      in_gradient_units: whether to leave out the tutorial's sums over the batch.
    """
    model, loss, _ = make_problem(config)
    tutorial_decay = 0.1  # in units in which a step is batch / 2 times the gradient's
    decay = tutorial_decay * 2 / config.batch_size
    options = Options(optimizer, config.sigma, config.num_samples, config.noise, decay)
    tutorial = config.scale == "tutorial"
    if tutorial and name == "node_perturbation":
        return _of_notebook(notebook.node_perturbation, config)
    if not tutorial or in_gradient_units or name in MEANS:
        return RULES[name](model, loss, options)
    if name == "kolen_pollack":
        return notebook.kolen_pollack(model, loss, optimizer=optimizer, decay=tutorial_decay)
    return notebook.in_notebook_units(RULES[name](model, loss, options))


def moments_over_examples(name: str, config: Config, rule: ll.Rule) -> Callable[..., Moments]:
    """Returns `(key, params, state, x, y) -> Moments` of a rule made by `make_rule`."""
    if config.scale == "tutorial" and name == "node_perturbation":
        moments = notebook.node_moments(_of_notebook(notebook.node_factors, config))
        return lambda key, params, state, x, y: moments(key, params, x, y)
    return partial(example_moments, make_problem(config).model, rule)

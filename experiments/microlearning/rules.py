"""Rules that the microlearning experiment compares, each in one line."""

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
from experiments.settings import imported
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
      num_layers: of the network.
    """

    optimizer: optax.GradientTransformation
    sigma: ArrayLike
    num_samples: int = 1
    noise: str = "rademacher"
    decay: ArrayLike = 0.0
    num_layers: int = 2


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


TUTORIAL_DECAY = 0.1
"""Of Kolen-Pollack in the notebook's units, in which a step is batch / 2 times the gradient's."""


def _of_activities(make: Callable[..., Any], options: Options) -> Any:
    """Makes the notebook's node perturbation, which has the last sigmoid in the network."""
    activations = [jax.nn.sigmoid] * options.num_layers
    return make(activations, ll.squared_error, sigma=options.sigma, noise=options.noise)


def in_notebook_units(build: Build) -> Build:
    """Returns a rule that sums over the batch as the notebook does."""
    return lambda m, l, o: notebook.in_notebook_units(build(m, l, o))


OWN_FORMS: dict[str, Build] = {
    "node_perturbation": lambda m, l, o: _of_activities(notebook.node_perturbation, o),
}
"""Rules that are others in the notebook, in the units of the gradient."""
NOTEBOOK_RULES: dict[str, Build] = {
    **{name: in_notebook_units(build) for name, build in RULES.items()},
    "kolen_pollack": lambda m, l, o: notebook.kolen_pollack(
        m, l, optimizer=o.optimizer, decay=TUTORIAL_DECAY
    ),
    "forward_gradient": RULES["forward_gradient"],  # a mean over the batch in the notebook too
    "weight_perturbation": RULES["weight_perturbation"],
    **OWN_FORMS,
}
"""In the notebook's form and units."""
NOTEBOOK_MOMENTS = {
    "node_perturbation": lambda o: notebook.node_moments(_of_activities(notebook.node_factors, o))
}
"""Moments over examples of those that have them by products of matrices: `(key, params, x, y) -> Moments`."""


def _own(path: str) -> Build:
    """Returns a rule by import path."""

    def build(model: ll.Model, loss: ll.Loss, options: Options) -> ll.Rule:
        rule = imported("--rules", path)(model, loss)
        if not isinstance(rule, ll.Rule):
            raise ValueError(
                f"--rules: expected {path}(model, loss) to return a Rule, got {type(rule).__name__}"
            )
        return rule

    return build


def _options(config: Config, optimizer: optax.GradientTransformation) -> Options:
    decay = TUTORIAL_DECAY * 2 / config.batch_size
    return Options(optimizer, config.sigma, config.num_samples, config.noise, decay, len(config.widths) + 1)


def make_rule(
    name: str, config: Config, optimizer: optax.GradientTransformation, *, in_gradient_units: bool = False
) -> ll.Rule:
    """Returns a rule in the form of `--scale`.

    Args:
      name: of the rule, or `MODULE:FUNCTION`.
      config: the configuration.
      optimizer: that of the weights.
      in_gradient_units: whether to leave out the tutorial's sums over the batch.
    """
    model, loss, _ = make_problem(config)
    build = RULES.get(name) or _own(name)
    if config.scale == "tutorial":
        own = OWN_FORMS.get(name, build)
        build = own if in_gradient_units else NOTEBOOK_RULES.get(name, in_notebook_units(build))
    return build(model, loss, _options(config, optimizer))


def moments_over_examples(
    name: str, config: Config, optimizer: optax.GradientTransformation
) -> Callable[..., Moments]:
    """Returns `(key, params, state, x, y) -> Moments` of a rule made by `make_rule`."""
    if config.scale == "tutorial" and name in NOTEBOOK_MOMENTS:
        moments = NOTEBOOK_MOMENTS[name](_options(config, optimizer))
        return lambda key, params, state, x, y: moments(key, params, x, y)
    return partial(example_moments, make_problem(config).model, make_rule(name, config, optimizer))

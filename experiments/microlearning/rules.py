"""Rules in the forms of the microlearning experiment: those of the registry, and those of the notebook."""

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
from experiments.registry import Factory, rule_of
from lax_learning.metrics import Moments, example_moments

LEARNING_RATES = {"tutorial": 1e-3, "gradient": 1e-1, "matched": None}
"""Default learning rate at a choice of `--scale`; None where it is searched."""

GAIN = 0.1
"""Of sign symmetry with unit magnitudes: the size of a typical initial weight."""

TUTORIAL_DECAY = 0.1
"""Of Kolen-Pollack in the notebook's units, in which a step is batch / 2 times the gradient's."""


def _kolen_pollack(model: ll.Model, loss: ll.Loss, *, optimizer: Any, decay: ArrayLike) -> ll.Rule:
    return notebook.with_bias_decay(ll.kolen_pollack(model, loss, optimizer=optimizer, decay=decay), decay)


FORMS: dict[str, Factory] = {
    "kolen_pollack": _kolen_pollack,
    "direct_feedback_alignment": partial(
        ll.direct_feedback_alignment,
        feedback_init=lambda key, like: TUTORIAL_INIT(key, like.shape, like.dtype),
    ),
}
"""Rules that the experiment has in a form of its own, in the units of the gradient."""


def _activity_perturbation(make: Callable[..., Any], config: Config) -> Any:
    """Makes the notebook's node perturbation, which has the last sigmoid in the network."""
    activations = [jax.nn.sigmoid] * (len(config.widths) + 1)
    return make(activations, ll.squared_error, sigma=config.sigma, noise=config.noise)


class Forms(NamedTuple):
    """A rule in the units of the notebook, which sums over the batch, and in those of the gradient."""

    summed: ll.Rule
    mean: ll.Rule


def _is_a_mean(rule: ll.Rule, config: Config, optimizer: optax.GradientTransformation) -> Forms:
    return Forms(rule, rule)


def _of_notebook(rule: ll.Rule, config: Config, optimizer: optax.GradientTransformation) -> Forms:
    own = _activity_perturbation(notebook.node_perturbation, config)
    return Forms(own, own)


def _with_own_decay(rule: ll.Rule, config: Config, optimizer: optax.GradientTransformation) -> Forms:
    model, loss = make_problem(config)[:2]
    return Forms(notebook.kolen_pollack(model, loss, optimizer=optimizer, decay=TUTORIAL_DECAY), rule)


NOTEBOOK_FORMS = {
    "kolen_pollack": _with_own_decay,
    "node_perturbation": _of_notebook,
    "forward_gradient": _is_a_mean,
    "weight_perturbation": _is_a_mean,
}
"""Rules that do not just sum over the batch in the notebook."""

NOTEBOOK_MOMENTS = {
    "node_perturbation": lambda config: notebook.node_moments(
        _activity_perturbation(notebook.node_factors, config)
    )
}
"""Moments over examples of those that have them by products of matrices: `(key, params, x, y) -> Moments`."""


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
    model, loss = make_problem(config)[:2]
    rule = rule_of(
        FORMS.get(name, name), optimizer=optimizer, sigma=config.sigma, num_samples=config.num_samples,
        noise=config.noise, decay=TUTORIAL_DECAY * 2 / config.batch_size, gain=GAIN,
    )(model, loss)  # fmt: skip
    if not isinstance(rule, ll.Rule):
        raise ValueError(f"--rules: expected {name}(model, loss) to return a Rule, got {type(rule).__name__}")
    if config.scale != "tutorial":
        return rule
    own = NOTEBOOK_FORMS.get(name)
    forms = own(rule, config, optimizer) if own else Forms(notebook.in_notebook_units(rule), rule)
    return forms.mean if in_gradient_units else forms.summed


def moments_over_examples(
    name: str, config: Config, optimizer: optax.GradientTransformation
) -> Callable[..., Moments]:
    """Returns `(key, params, state, x, y) -> Moments` of a rule made by `make_rule`."""
    if config.scale == "tutorial" and name in NOTEBOOK_MOMENTS:
        moments = NOTEBOOK_MOMENTS[name](config)
        return lambda key, params, state, x, y: moments(key, params, x, y)
    return partial(example_moments, make_problem(config).model, make_rule(name, config, optimizer))

"""Rules of the microlearning experiment: from the registry, or as in the notebook."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.typing import ArrayLike

import lax_learning as ll
from experiments.microlearning import notebook
from experiments.microlearning.config import Config
from experiments.microlearning.networks import TUTORIAL_INIT, make_problem
from experiments.registry import Factory, rule_of
from lax_learning.metrics import Moments, example_moments

LEARNING_RATES = {"tutorial": 1e-3, "gradient": 1e-1, "matched": None}
"""Default learning rate by `--scale`; None if it is searched."""

GAIN = 0.1  # for sign symmetry with unit magnitudes: the typical size of an initial weight

TUTORIAL_DECAY = 0.1
"""For Kolen-Pollack in the notebook's units, in which updates are batch / 2 times the gradient."""


def _kolen_pollack(model: ll.Model, loss: ll.Loss, *, optimizer: Any, decay: ArrayLike) -> ll.Rule:
    return notebook.with_bias_decay(ll.kolen_pollack(model, loss, optimizer=optimizer, decay=decay), decay)


FORMS: dict[str, Factory] = {
    "kolen_pollack": _kolen_pollack,
    "direct_feedback_alignment": partial(
        ll.direct_feedback_alignment,
        feedback_init=lambda key, like: TUTORIAL_INIT(key, like.shape, like.dtype),
    ),
}
"""Rules that differ from those in the registry, in the units of the gradient."""


def _activity_perturbation(make: Callable[..., Any], config: Config) -> Any:
    """Makes the notebook's node perturbation, for which the last sigmoid is part of the network."""
    activations = [jax.nn.sigmoid] * (len(config.widths) + 1)
    return make(activations, ll.squared_error, sigma=config.sigma, noise=config.noise)


def make_rule(
    name: str, config: Config, optimizer: Any, *, in_gradient_units: bool = False, **hyper: Any
) -> ll.Rule:
    """Returns the rule with a name or `MODULE:FUNCTION`, for `--scale` and the `optimizer` of the weights.

    With `in_gradient_units`, the tutorial's sums over the batch are left out. Hyper-parameters, which may be
    traced, replace those of the configuration.
    """
    model, loss = make_problem(config)[:2]
    usual = {"decay": TUTORIAL_DECAY * 2 / config.batch_size, "gain": GAIN, "optimizer": optimizer}
    usual |= {name: getattr(config, name) for name in ("sigma", "num_samples", "noise")}
    rule = rule_of(FORMS.get(name, name), **{**usual, **hyper})(model, loss)
    if not isinstance(rule, ll.Rule):
        raise ValueError(f"--rules: expected {name}(model, loss) to return a Rule, got {type(rule).__name__}")
    if config.scale != "tutorial" or name in ("forward_gradient", "weight_perturbation"):
        return rule  # these two do not sum over the batch in the notebook either
    if name == "node_perturbation":
        return _activity_perturbation(notebook.node_perturbation, config)
    if in_gradient_units:
        return rule
    if name == "kolen_pollack":
        return notebook.kolen_pollack(model, loss, optimizer=optimizer, decay=TUTORIAL_DECAY)
    return notebook.in_notebook_units(rule)


def moments_over_examples(name: str, config: Config, optimizer: Any, *args: Any) -> Moments:
    """Returns the moments of a rule over examples; `args` are key, params, state, x and y."""
    if config.scale == "tutorial" and name == "node_perturbation":
        key, params, _, x, y = args
        factors = _activity_perturbation(notebook.node_factors, config)
        return notebook.node_moments(factors)(key, params, x, y)
    return example_moments(make_problem(config).model, make_rule(name, config, optimizer), *args)

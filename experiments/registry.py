"""Registry of all rules, one line each, for experiments, sweeps, benchmarks and tests."""

import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import optax

import lax_learning as ll
from experiments.settings import imported

Factory = Callable[..., ll.Rule]  # `(model, loss, **hyper-parameters) -> Rule`

RULES: dict[str, Factory] = {
    "backprop": ll.backprop,
    "feedback_alignment": ll.feedback_alignment,
    "direct_feedback_alignment": ll.direct_feedback_alignment,
    "direct_random_target_projection": ll.direct_random_target_projection,
    "direct_kolen_pollack": partial(ll.direct_kolen_pollack, decay=1e-6),
    "forward_direct_feedback": lambda model, loss, *, beta=0.01: ll.forward_direct_feedback(
        model, loss, optimizer=optax.sgd(beta)
    ),
    "local_errors": lambda model, loss, *, beta=0.1: ll.local_errors(model, loss, optimizer=optax.sgd(beta)),
    "sign_symmetry_unit": partial(ll.sign_symmetry, magnitude="unit"),
    "sign_symmetry_fixed": partial(ll.sign_symmetry, magnitude="fixed", gain=1.0),
    "sign_symmetry_redrawn": partial(ll.sign_symmetry, magnitude="redrawn", gain=1.0),
    "kolen_pollack": ll.kolen_pollack,
    "weight_mirror": lambda model, loss, *, beta=0.1: ll.weight_mirror(
        model, loss, optimizer=optax.sgd(beta)
    ),
    "pepita": ll.pepita,
    "node_perturbation": ll.node_perturbation,
    "node_perturbation_activity": partial(ll.node_perturbation, variant="activity"),
    "node_perturbation_antithetic": partial(ll.node_perturbation, antithetic=True),
    "node_perturbation_layerwise": partial(ll.node_perturbation, layerwise=True),
    "node_perturbation_batch": partial(ll.node_perturbation, batch=True),
    "weight_perturbation": ll.weight_perturbation,
    "weight_perturbation_central": partial(ll.weight_perturbation, difference="central"),
    "weight_perturbation_signs": partial(ll.weight_perturbation, noise="rademacher"),
    "weight_perturbation_low_rank": partial(ll.weight_perturbation, rank=1),
    "spsa": lambda model, loss, *, sigma: ll.spsa(model, loss, perturbation=lambda count: sigma),
    "forward_gradient": ll.forward_gradient,
    "forward_gradient_activities": partial(ll.forward_gradient, perturb="activities"),
    "guided_by_feedback_alignment": lambda model, loss: ll.guided_gradient(
        model, loss, ll.feedback_alignment(model, loss)
    ),
    "decorrelated_feedback_alignment": lambda model, loss, *, rate=0.01: ll.decorrelation.rule(
        lambda model: ll.feedback_alignment(model, loss), model, ll.decorrelation.dynamics(rate)
    ),
}
"""Rules for any model, by name; arguments set here are part of the rule."""

ONLINE: dict[str, Factory] = {
    "rflo": ll.online.rflo,
    "eprop": ll.online.eprop,
    "rtrl": ll.online.rtrl,
    "three_factor": partial(ll.online.three_factor, decay=0.9),
}
"""Rules for an `ll.online.Recurrent` and a loss at every time step."""


def check_name(option: str, name: str, known: Collection[str] = (*RULES, *ONLINE)) -> None:
    """Raises ValueError unless a rule is a known name or a function that can be imported."""
    if name not in known:
        if ":" not in name:
            raise ValueError(f"{option}: expected any of {', '.join(known)}, or MODULE:FUNCTION, got {name}")
        imported(option, name)


def rule_of(name: str | Factory, **hyper: Any) -> Factory:
    """Returns the factory of a rule, `(model, loss, **others) -> Rule`, with hyper-parameters filled in.

    `name` is a name in the registry, the `MODULE:FUNCTION` of a custom factory, or a factory.
    Hyper-parameters, which may be traced, are ignored if the rule has no such argument or the registry sets
    it, so that one dict serves all rules.

    Example:
      >>> model = ll.mlp((3, 2))
      >>> rules = [rule_of(name, sigma=0.1)(model, ll.squared_error) for name in ("backprop", "spsa")]
    """
    factory = name if callable(name) else {**RULES, **ONLINE}.get(name) or imported("--rules", name)
    fixed = factory.keywords if isinstance(factory, partial) else ()
    asked = set(inspect.signature(factory).parameters).difference(fixed)
    return partial(factory, **{name: value for name, value in hyper.items() if name in asked})

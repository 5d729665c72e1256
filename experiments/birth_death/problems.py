"""Problems for populations of neurons: a planted teacher, and a mixture of Gaussians."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

import lax_learning as ll
from experiments.birth_death.config import Config


class Problem(NamedTuple):
    """Problem of a population, with the settings to learn it."""

    init: Callable[[jax.Array], tuple[Any, Any]]  # key -> (target, params)
    gradients: Callable[[jax.Array, Any, Any], Any]  # (key, target, params) -> gradients of one step
    loss: Callable[[jax.Array, Any, Any], jax.Array]  # (key, target, params) -> test loss
    places: Callable[[Any], jax.Array]  # params -> [units, 2], places of the units
    targets: Callable[[Any], jax.Array]  # target -> [targets, 2], where the units should be
    axes: Any  # see `ll.birth_death.dynamics`, also for charges and prior
    charges: Callable[[Any], Any]
    prior: Callable[[jax.Array, Any], Any] | None
    alphas: dict[str, float]  # factor alpha of the rates, by scheme of `ll.birth_death.dynamics`
    learning_rate: float
    quiet_steps: int  # steps at the end without events, at most a third of the run


Scheme = tuple[Literal["clone", "prior"], Literal["none", "mean"], float]
SCHEMES: dict[str, Scheme] = {
    "gd": ("clone", "none", 0.0),
    "clone": ("clone", "none", 1.0),
    "clone_centered": ("clone", "mean", 1.0),
    "prior": ("prior", "none", 1.0),
    "prior_centered": ("prior", "mean", 1.0),
}
"""Options `scheme` and `center` of `ll.birth_death.dynamics`, and a factor on alpha: 0 for no events."""


def planted(config: Config) -> Problem:
    """A student with more units than its teacher, and new inputs on the unit sphere at every step."""
    units, features = config.units, config.features
    student = ll.mlp((features, units, 1), b_init=None)
    rule = ll.backprop(student, ll.squared_error)
    teacher = ll.data.planted(features, config.teacher_units)

    def init(key: jax.Array) -> tuple[Any, Any]:
        target_key, w_key, c_key = jax.random.split(key, 3)
        w = jax.random.normal(w_key, (features, units))
        c = jax.random.uniform(c_key, (units, 1), minval=-1, maxval=1)
        return teacher.init(target_key), ({"w": w / units**0.5}, {"w": c / units**0.5})

    def gradients(key: jax.Array, target: Any, params: Any) -> Any:
        data_key, rule_key = jax.random.split(key)
        batch = teacher.sample(data_key, target, config.batch_size)
        return rule.value_and_grad(rule_key, params, (), *batch)[1]

    def loss(key: jax.Array, target: Any, params: Any) -> jax.Array:
        x, y = teacher.sample(key, target, config.test_points)
        return jnp.mean(ll.squared_error(student.apply(params, x), y))

    def weighted(params: Any) -> jax.Array:
        """Returns the first two coordinates of `|c| w`."""
        w, c = params[0]["w"], params[1]["w"]
        return (w[:2] * jnp.abs(c[:, 0])).T

    return Problem(
        init, gradients, loss, weighted, weighted, ({"w": 1}, {"w": 0}), lambda params: params[1], None,
        {"clone": config.alpha_clone, "prior": config.alpha_prior}, config.learning_rate, 0,
    )  # fmt: skip


MEANS, VARIANCES, WEIGHTS = np.array([[-2, 0, 2], [0.5, 1, 0.5], [1, -2, 1]], "f4")
UNIT_VARIANCE = 0.5


def gaussian(difference: ArrayLike, variance: ArrayLike) -> jax.Array:
    """Computes the density of `N(0, variance)`."""
    difference, variance = jnp.asarray(difference), jnp.asarray(variance)
    return jnp.exp(-jnp.square(difference) / (2 * variance)) / jnp.sqrt(2 * jnp.pi * variance)


def mixture_energy(c: jax.Array, y: jax.Array) -> jax.Array:
    """Computes `1/2 int (f - f_n)^2` in closed form for the target f, `f_n = mean_i c_i N(x; y_i, 1/2)`."""
    weights = jnp.asarray(WEIGHTS / WEIGHTS.size)
    own = weights @ gaussian(MEANS[:, None] - MEANS, VARIANCES[:, None] + VARIANCES) @ weights / 2
    overlap = gaussian(y[:, None] - MEANS, VARIANCES + UNIT_VARIANCE) @ weights
    interaction = gaussian(y[:, None] - y, 2 * UNIT_VARIANCE) @ c
    return own - jnp.mean(c * overlap) + jnp.mean(c * interaction) / (2 * c.size)


def mixture(config: Config, start: Callable[[jax.Array, tuple[int]], jax.Array]) -> Problem:
    """Charged Gaussians whose mean fits a mixture of three Gaussians."""
    units = config.mixture_units

    def init(key: jax.Array) -> tuple[Any, Any]:
        place_key, charge_key = jax.random.split(key)
        return (), {"y": start(place_key, (units,)), "c": jax.random.normal(charge_key, (units,))}

    def energy(params: Any) -> jax.Array:
        return mixture_energy(params["c"], params["y"])

    def gradients(key: jax.Array, target: Any, params: Any) -> Any:
        """Mean-field gradient: the gradient times the number of units."""
        return jax.tree.map(lambda g: units * g, jax.grad(energy)(params))

    return Problem(
        init,
        gradients,
        loss=lambda key, target, params: energy(params),
        places=lambda params: jnp.stack([params["y"], params["c"]], axis=-1),
        targets=lambda target: jnp.stack([jnp.asarray(MEANS), jnp.asarray(WEIGHTS)], axis=-1),
        axes={"y": 0, "c": 0},
        charges=lambda params: params["c"],
        prior=lambda key, params: {**params, "y": jax.random.normal(key, (units,))},
        alphas={"clone": config.alpha_mixture, "prior": config.alpha_mixture},
        learning_rate=1e-2,
        quiet_steps=1_000,
    )


PROBLEMS: dict[str, Callable[[Config], Problem]] = {
    "planted": planted,
    "mixture": lambda c: mixture(c, lambda key, shape: jax.random.uniform(key, shape, minval=-2, maxval=2)),
    "mixture_bad_start": lambda c: mixture(c, lambda key, shape: 0.1 * jax.random.normal(key, shape) - 2),
}

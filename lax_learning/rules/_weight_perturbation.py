"""Weight perturbation for any model: the estimator applied to the model's losses."""

from typing import Literal

from jaxtyping import ArrayLike

from lax_learning import estimators
from lax_learning.models import Model
from lax_learning.noise import NoiseLike
from lax_learning.rules._estimates import estimator_rule
from lax_learning.types import Loss, Rule


def weight_perturbation(
    model: Model,
    loss: Loss,
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    difference: Literal["forward", "central"] = "forward",
    noise: NoiseLike = "normal",
    rank: int | None = None,
    fitness: Literal["loss", "z-scored", "ranked"] = "loss",
) -> Rule:
    """Perturbs all parameters at once and credits them with the change in loss.

    `dw = 1/K sum_k (L(w + sigma s_k) - L(w)) s_k / sigma`, with each draw shared by the whole batch. Options
    are those of `estimators.weight_perturbation`; passes run in float32 or wider.

    Raises:
      TypeError: at trace time, for a model that casts to half precision itself.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = weight_perturbation(ll.Model(lambda w, x: x @ w), ll.squared_error, sigma=0.1)
      >>> key, w = jax.random.key(0), jnp.ones((3, 2))
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, w, (), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads.shape
      (3, 2)
    """
    return estimator_rule(
        estimators.weight_perturbation, model, loss, differences=True, sigma=sigma, num_samples=num_samples,
        difference=difference, noise=noise, rank=rank, fitness=fitness,
    )  # fmt: skip

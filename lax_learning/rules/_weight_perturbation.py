"""Weight perturbation on any model: the estimator on the model's losses."""

from typing import Any

from jaxtyping import ArrayLike

from lax_learning import estimators
from lax_learning._checks import check_resolved
from lax_learning.models import Model, Split
from lax_learning.noise import Noise
from lax_learning.rules._common import check_parts, stateless
from lax_learning.rules._estimates import on_model
from lax_learning.types import Key, Loss, Params, Rule


def weight_perturbation(
    model: Model,
    loss: Loss,
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    difference: str = "forward",
    noise: str | Noise = "normal",
    rank: int | None = None,
    fitness: str = "loss",
) -> Rule:
    """Perturbs all parameters at once and credits them with the change of the loss.

    `dw = 1/K sum_k (L(w + sigma s_k) - L(w)) s_k / sigma`, one draw for a whole batch; see
    `estimators.weight_perturbation`.

    Args:
      model: any model.
      loss: per-example loss `(output, y) -> [batch]`.
      sigma: standard deviation of the noise, in the units of the parameters; may be traced.
      num_samples: number K of draws that are averaged.
      difference: "forward" or "central".
      noise: "normal", "rademacher" or a function `(key, parameters) -> unit noise`.
      rank, fitness: noise of low rank on matrices, all draws in one pass; see the estimator.

    Returns:
      The rule; its state is empty.

    Raises:
      TypeError: at trace time, for a model that itself casts to half precision.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = weight_perturbation(ll.Model(lambda w, x: x @ w), ll.squared_error, sigma=0.1)
      >>> key, w = jax.random.key(0), jnp.ones((3, 2))
      >>> loss, grads, state = rule.value_and_grad(key, w, (), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads.shape
      (3, 2)
    """
    check_parts(model, loss)
    estimate = on_model(
        estimators.weight_perturbation,
        model,
        loss,
        differences=True,
        sigma=sigma,
        num_samples=num_samples,
        difference=difference,
        noise=noise,
        rank=rank,
        fitness=fitness,
    )

    def value_and_grad(key: Key, params: Params, state: Any, x: Any, y: Any) -> tuple[Any, Params, Any]:
        check_resolved("sigma", sigma, *(leaf.dtype for leaf in Split(model, params).parameters))
        return *estimate(key, params, x, y), state

    return Rule(stateless(model), value_and_grad, model.trainable)

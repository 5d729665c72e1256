"""Forward gradients for any model, along random directions in parameters or activities."""

from typing import Literal

import jax
import jax.numpy as jnp

from lax_learning import estimators
from lax_learning._checks import check_choice, check_flag
from lax_learning._sites._run import Feeds
from lax_learning.estimators._autodiff import directional_derivative
from lax_learning.models import Model
from lax_learning.noise import NoiseLike, as_noise
from lax_learning.rules._estimates import estimator_rule
from lax_learning.rules._units import Units, times, unit_rule
from lax_learning.types import Key, Loss, Rule, Where


def forward_gradient(
    model: Model,
    loss: Loss,
    *,
    perturb: Literal["weights", "activities"] = "weights",
    num_samples: int = 1,
    noise: NoiseLike = "normal",
    where: Where = None,
    batch: bool = False,
) -> Rule:
    """Unbiased gradients in forward mode: the limit of weight or node perturbation as sigma -> 0.

    Args:
      perturb: "weights": `dw = 1/K sum_k (dL/dw . v_k) v_k`, with one direction per batch; "activities":
        `delta_l = 1/K sum_k (dl/dz . v_k) v_kl`, with one direction per example over all pre-activations, and
        gradients by the local pull-back, `dw_l = x_l^T delta_l / batch` for a dense layer. The variance is
        far smaller than with "weights", because there are fewer units than weights.
      num_samples: number K of directions to average.
      noise: "normal", "rademacher" or a function `(key, like) -> direction`.
      where: which parameters are trained; the gradients of the others are zero.
      batch: for activities, credit by the mean loss of the batch, as in `node_perturbation`; for weights,
        credit is always by the mean loss.

    Raises:
      ValueError: at trace time, for activities of a model that couples examples, without `batch=True`.
      TypeError: at trace time, if the model contains a function with a custom backward pass (`custom_vjp`),
        which has no forward-mode derivative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = forward_gradient(ll.Model(lambda w, x: x @ w), ll.squared_error, perturb="activities")
      >>> key, w = jax.random.key(0), jnp.ones((3, 2))
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, w, (), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads.shape
      (3, 2)

    References:
      Baydin et al., Gradients without backpropagation, https://arxiv.org/abs/2202.08587, 2022.
      Ren et al., Scaling forward gradient with local losses, https://arxiv.org/abs/2210.03310, 2023.
    """
    check_choice("perturb", perturb, ("weights", "activities"))
    check_flag("batch", batch)
    draw_noise = as_noise(noise)

    def draw(units: Units, key: Key) -> Feeds:
        direction = units.noise(draw_noise, key)
        still = jax.tree.map(jnp.zeros_like, direction)
        (_, (slopes, _)) = directional_derivative(units.moved, still, direction)
        return {i: times(units.weight * slopes, d) for i, d in direction.items()}

    if perturb == "activities":
        return unit_rule(model, loss, draw, num_samples=num_samples, where=where, batch=batch)
    estimator = estimators.forward_gradient
    return estimator_rule(estimator, model, loss, where, num_samples=num_samples, noise=noise)

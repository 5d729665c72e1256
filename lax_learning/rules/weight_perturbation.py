"""Weight perturbation of a network: the estimator on the network's per-example losses."""

from functools import partial

import jax
from jaxtyping import Array, ArrayLike

from lax_learning import estimators
from lax_learning._checks import as_params, check_resolved
from lax_learning._precision import widened
from lax_learning.feedback import init_forward
from lax_learning.networks import Network
from lax_learning.noise import Noise
from lax_learning.rules._delta import as_batch, check_problem, checked_losses
from lax_learning.types import Key, Loss, Params, Rule


def weight_perturbation(
    network: Network,
    loss: Loss,
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    difference: str = "forward",
    noise: str | Noise = "normal",
) -> Rule:
    """Perturbs all weights and biases at once and credits them with the change of the loss.

    `dw = 1/K sum_k (L(w + sigma s_k) - L(w)) s_k / sigma`, differences taken per example. What a synapse
    needs to know: its own noise, and one number for all. See `estimators.weight_perturbation`.

    Args:
      network: the network.
      loss: per-example loss.
      sigma: standard deviation of the noise; may be traced.
      num_samples: number K of draws that are averaged.
      difference: "forward" or "central".
      noise: "normal", "rademacher" or a function `(key, params) -> unit noise`.

    Returns:
      The rule.

    Raises:
      TypeError: for a network or a loss of another kind.
      ValueError: if sigma <= 0, K < 1, or difference or noise are unknown, or sigma is 0 or infinite in the
        dtype of the params.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = ll.weight_perturbation(ll.mlp((3, 2)), ll.squared_error, sigma=0.1, noise="rademacher")
      >>> key = jax.random.key(0)
      >>> loss, grads = rule.value_and_grad(key, rule.init(key), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads[0]["w"].shape
      (3, 2)

    References:
      Jabri, Flower, Weight perturbation: an optimal architecture and learning technique for analog VLSI
      feedforward and recurrent multilayer networks, https://doi.org/10.1109/72.105429, 1992.
    """

    check_problem(network, loss)

    def losses(params: Params, x: Array, y: Array) -> Array:
        return checked_losses(loss, network.apply(params, x), y)

    estimate = estimators.weight_perturbation(
        losses, sigma=sigma, num_samples=num_samples, difference=difference, noise=noise
    )

    def value_and_grad(key: Key, params: Params, x: ArrayLike, y: ArrayLike) -> tuple[Array, Params]:
        x, y = as_batch(network, x, y)
        params = as_params(params)
        check_resolved("sigma", sigma, *(leaf.dtype for leaf in jax.tree.leaves(params)))
        # Half precision would round differences away: the passes run in float32, on the same parameters.
        wide, wide_x = widened((params, x))
        value, grads = estimate(key, wide, wide_x, y)
        return value, jax.tree.map(lambda g, w: g.astype(w.dtype), grads, params)

    return Rule(partial(init_forward, network), value_and_grad)

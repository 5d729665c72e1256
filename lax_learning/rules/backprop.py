"""Backpropagation: the reference of every other rule."""

from functools import partial

from jaxtyping import Array

from lax_learning.feedback import init_forward
from lax_learning.networks import Network
from lax_learning.rules._delta import backward_signals, check_problem, delta_rule
from lax_learning.types import Key, Loss, Params, Rule, Signals


def backprop(network: Network, loss: Loss, *, scale: str = "gradient") -> Rule:
    """The exact gradient.

    `delta_l = (delta_{l+1} w_{l+1}^T) phi'(z_l)`, `dw_l = x_l^T delta_l / batch`

    Args:
      network: the network.
      loss: per-example loss.
      scale: "gradient" (the mean loss, as `jax.grad`) or "tutorial" (the notebook's step: the sum over
        the batch without the factor 2 of the square, `batch / 2` times the gradient).

    Returns:
      The rule.

    Raises:
      TypeError: for a network or a loss of another kind.
      ValueError: for an unknown scale.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> network = ll.mlp((3, 4, 2))
      >>> rule = ll.backprop(network, ll.squared_error)
      >>> key, x, y = jax.random.key(0), jnp.ones((5, 3)), jnp.zeros((5, 2))
      >>> params = rule.init(key)
      >>> loss, grads = rule.value_and_grad(key, params, x, y)
      >>> exact = jax.grad(lambda p: jnp.mean(ll.squared_error(network.apply(p, x), y)))(params)
      >>> bool(jnp.allclose(grads[0]["w"], exact[0]["w"]))
      True

    References:
      Rumelhart, Hinton, Williams, Learning representations by back-propagating errors,
      https://doi.org/10.1038/323533a0, 1986.
    """

    check_problem(network, loss)

    def signals(key: Key, params: Params, x: Array, y: Array, weight: float) -> Signals:
        del key
        return backward_signals(network, loss, params, x, y, weight)

    return delta_rule(network, partial(init_forward, network), signals, scale)

"""Forward gradient of a network, along random directions in weights or in activities."""

from functools import partial

from jaxtyping import Array, ArrayLike

from lax_learning import estimators
from lax_learning._checks import check_choice, check_samples
from lax_learning.estimators._draws import mean_over_draws
from lax_learning.estimators.forward_gradient import directional_derivative
from lax_learning.feedback import init_forward
from lax_learning.networks import Network
from lax_learning.noise import Noise, as_noise
from lax_learning.rules._delta import as_batch, check_problem, checked_losses, delta_rule, per_example
from lax_learning.taps import tap_shapes, zero_taps
from lax_learning.types import Key, Loss, Params, Rule, Signals


def forward_gradient(
    network: Network,
    loss: Loss,
    *,
    perturb: str = "weights",
    num_samples: int = 1,
    noise: str | Noise = "normal",
) -> Rule:
    """Unbiased gradients in forward mode: the limits of weight and node perturbation for sigma -> 0.

    - "weights": `dw = 1/K sum_k (dL/dw . v_k) v_k`, one direction a batch;
    - "activities": `delta_l = 1/K sum_k (dl/dz . v_k) v_kl`, one direction an example over the
      pre-activations of all layers, and `dw_l = x_l^T delta_l / batch`: far less variance, since units
      are fewer than weights.

    Args:
      network: the network.
      loss: per-example loss.
      perturb: "weights" or "activities".
      num_samples: number K of directions that are averaged.
      noise: "normal", "rademacher" or a function `(key, like) -> direction`.

    Returns:
      The rule.

    Raises:
      TypeError: for a network or a loss of another kind.
      ValueError: if K < 1, or perturb or noise are unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = ll.forward_gradient(ll.mlp((3, 2)), ll.squared_error, perturb="activities")
      >>> key = jax.random.key(0)
      >>> loss, grads = rule.value_and_grad(key, rule.init(key), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads[0]["w"].shape
      (3, 2)

    References:
      Baydin et al., Gradients without backpropagation, https://arxiv.org/abs/2202.08587, 2022.
      Ren et al., Scaling forward gradient with local losses, https://arxiv.org/abs/2210.03310, 2023.
    """
    check_problem(network, loss)
    check_choice("perturb", perturb, ("weights", "activities"))
    check_samples("num_samples", num_samples)
    draw_noise = as_noise(noise)
    init = partial(init_forward, network)

    def losses_of_weights(params: Params, x: ArrayLike, y: ArrayLike) -> Array:
        x, y = as_batch(network, x, y)
        return checked_losses(loss, network.apply(params, x), y)

    def signals(key: Key, params: Params, x: Array, y: Array, weight: float) -> Signals:
        trace = network.forward(params, x)
        losses = checked_losses(loss, trace.output, y)

        def losses_of_taps(taps: tuple[Array, ...]) -> Array:
            return checked_losses(loss, network.forward(params, x, taps).output, y)

        def draw(key: Key) -> tuple[Array, ...]:
            direction = draw_noise(key, tap_shapes(network, params, x))
            _, slopes = directional_derivative(losses_of_taps, zero_taps(network, params, x), direction)
            return per_example(weight * slopes, direction)

        return Signals(losses, trace.inputs, mean_over_draws(draw, key, num_samples))

    if perturb == "activities":
        return delta_rule(network, init, signals)
    return Rule(init, estimators.forward_gradient(losses_of_weights, num_samples=num_samples, noise=noise))

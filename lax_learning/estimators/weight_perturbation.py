"""Weight perturbation: the change of the loss times the noise that caused it. No autodiff."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_choice, check_count, check_positive
from lax_learning.estimators._draws import join_aux, mean_over_draws, scaled, split_aux
from lax_learning.noise import Noise, as_noise
from lax_learning.types import Estimator, Key, Params


def weight_perturbation(
    loss_fn: Callable[..., Any],
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    difference: str = "forward",
    noise: str | Noise = "normal",
    has_aux: bool = False,
) -> Estimator:
    """Estimates the gradient of any loss of any pytree from losses at perturbed parameters.

    `g = 1/K sum_k (L(w + sigma s_k) - L(w)) s_k / sigma` (forward) or
    `g = 1/K sum_k (L(w + sigma s_k) - L(w - sigma s_k)) s_k / (2 sigma)` (central).

    Unbiased for the gradient of the loss smoothed by the noise, so to O(sigma^2) for the loss itself.
    For one example and a linear network `Var[g_ij] = g_ij^2 + |g|^2` with normal noise and one draw:
    it grows with the number of parameters.

    Args:
      loss_fn: `(params, *args) -> loss`, a scalar, or an array with one loss an example: differences
        are then taken per example before they are averaged. With `has_aux`, `(loss, aux)`.
      sigma: standard deviation of the noise, in the units of the parameters; may be traced.
      num_samples: number K of draws that are averaged, one in memory at a time.
      difference: "forward" or "central"; central costs one more pass a draw and has a smaller bias.
      noise: "normal", "rademacher" (signs: less variance and 32 times fewer random words), or a
        function `(key, params) -> unit noise`, which is how draws are injected.
      has_aux: as in `jax.value_and_grad`; aux is that of the unperturbed parameters.

    Returns:
      `estimate(key, params, *args) -> (value, grads)`, `value` the loss of the unperturbed parameters
      (a compiled program that does not use it does not compute it, if the difference is central).

    Raises:
      ValueError: if sigma <= 0, K < 1, or difference or noise are unknown.
      TypeError: at trace time, for params or losses that are not floating.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimate = weight_perturbation(lambda w: jnp.sum(w**2), sigma=0.01, num_samples=4096)
      >>> _, grads = estimate(jax.random.key(0), jnp.array([1.0, 2.0]))
      >>> bool(jnp.all(jnp.abs(grads - jnp.array([2.0, 4.0])) < 0.5))
      True

    References:
      Jabri, Flower, Weight perturbation: an optimal architecture and learning technique for analog VLSI
      feedforward and recurrent multilayer networks, https://doi.org/10.1109/72.105429, 1992.
      Cauwenberghs, A fast stochastic error-descent algorithm for supervised learning and optimization,
      https://proceedings.neurips.cc/paper/1992/hash/c3e878e27f52e2a57ace4d9a76fd9acf-Abstract.html, 1992.
    """
    check_positive("sigma", sigma)
    check_count("num_samples", num_samples)
    check_choice("difference", difference, ("forward", "central"))
    draw_noise = as_noise(noise)
    checked = split_aux(loss_fn, has_aux)

    def estimate(key: Key, params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Params]:
        loss, aux = checked(params, *args, **kwargs)

        def perturbed(step: Array, signs: Params) -> Array:
            shifted = jax.tree.map(lambda w, s: w + scaled(step, s).astype(w.dtype), params, signs)
            return checked(shifted, *args, **kwargs)[0]

        def draw(key: Key) -> Params:
            unit = draw_noise(key, params)
            step = jnp.asarray(sigma, loss.dtype)
            if difference == "central":
                slope = jnp.mean(perturbed(step, unit) - perturbed(-step, unit)) / (2 * step)
            else:
                slope = jnp.mean(perturbed(step, unit) - loss) / step
            return jax.tree.map(lambda s: scaled(slope, s), unit)

        return join_aux(loss, aux, has_aux), mean_over_draws(draw, key, num_samples)

    return estimate

"""Estimators by automatic differentiation: the exact gradient, and its slope along a random direction."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lax_learning._arrays import as_params
from lax_learning._checks import check_key, check_samples
from lax_learning._sites._equations import all_equations, vary_as
from lax_learning.estimators._draws import as_gradient, averaged, join_aux, scaled, split_aux
from lax_learning.noise import NoiseLike, as_noise
from lax_learning.types import Estimator, Key, Params


def backprop(loss_fn: Callable[..., Any], *, has_aux: bool = False) -> Estimator:
    """Computes the exact gradient by reverse-mode differentiation, `g = dL/dparams`.

    Args:
      loss_fn: `(params, *args) -> loss`, a scalar, or an array with one loss per example, which is averaged;
        with `has_aux`, `(loss, aux)`, as in `jax.value_and_grad`.

    Returns:
      `estimate(key, params, *args) -> (value, grads)`, or `((value, aux), grads)`; the key is not used.

    Example:
      >>> estimate = backprop(lambda w: jnp.sum(w**2))
      >>> value, grads = estimate(jax.random.key(0), jnp.array([1.0, 2.0]))
      >>> float(value), grads.tolist()
      (5.0, [2.0, 4.0])
    """
    checked = split_aux(loss_fn, has_aux)

    def estimate(key: Key, params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Params]:
        check_key("key", key)
        params = as_params(params)

        def mean_loss(params: Params) -> tuple[Any, Any]:
            loss, aux = checked(params, *args, **kwargs)
            return jnp.mean(loss), aux

        (value, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return join_aux(value, aux, has_aux), grads

    return estimate


def directional_derivative(function: Callable[[Any], Any], primal: Any, tangent: Any) -> tuple[Any, Any]:
    """Computes `jax.jvp` of one argument, with a clear error if there is no forward-mode derivative."""
    # JAX itself raises only when it lowers the program, where the error cannot be handled here.
    program = jax.make_jaxpr(partial(jax.jvp, function))((primal,), (tangent,))
    if any(equation.primitive.name == "custom_lin" for equation in all_equations(program.jaxpr)):
        raise TypeError(
            "loss_fn: expected functions with a forward-mode derivative, which forward gradients need, got a "
            "custom_vjp, which defines only a backward pass"
        )
    return jax.jvp(function, (primal,), (tangent,))


def forward_gradient(
    loss_fn: Callable[..., Any], *, num_samples: int = 1, noise: NoiseLike = "normal", has_aux: bool = False
) -> Estimator:
    """Estimates the gradient of any loss of any pytree in forward mode, without a backward pass.

    `g = 1/K sum_k (dL/dw . v_k) v_k` is unbiased, and the limit of weight perturbation as sigma -> 0.

    Args:
      loss_fn, has_aux: as in `backprop`; a function with a custom backward pass (`custom_vjp`) in the loss
        raises a TypeError at trace time.
      num_samples: number K of directions to average, one in memory at a time.
      noise: "normal", "rademacher", or a function `(key, params) -> direction`.

    Returns:
      `estimate(key, params, *args) -> (value, grads)`.

    Example:
      >>> estimate = forward_gradient(lambda w: jnp.sum(w**2), num_samples=4096)
      >>> _, grads = estimate(jax.random.key(0), jnp.array([1.0, 2.0]))
      >>> bool(jnp.all(jnp.abs(grads - jnp.array([2.0, 4.0])) < 0.5))
      True

    References:
      Baydin et al., Gradients without backpropagation, https://arxiv.org/abs/2202.08587, 2022.
    """
    check_samples("num_samples", num_samples)
    draw_noise = as_noise(noise)
    checked = split_aux(loss_fn, has_aux)

    def estimate(key: Key, params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Params]:
        check_key("key", key)
        params = as_params(params)
        loss, aux = checked(params, *args, **kwargs)

        def draw(key: Key) -> Params:
            direction = draw_noise(key, params)
            at = vary_as(params, direction)
            _, change = directional_derivative(lambda w: checked(w, *args, **kwargs)[0], at, direction)
            return jax.tree.map(partial(scaled, jnp.mean(change)), direction)

        grads = averaged(draw, num_samples)(key)
        return join_aux(loss, aux, has_aux), as_gradient(grads, params)

    return estimate

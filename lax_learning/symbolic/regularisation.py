"""A frozen critic that makes the latents of a network look like symbolic functions while it fits a target."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import (
    as_array,
    as_real,
    check_choice,
    check_function,
    check_not_negative,
    check_shapes,
)
from lax_learning._precision import raised
from lax_learning._scaling import divided, norm, scale_of
from lax_learning.types import Params

COSTS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda logits: -logits,
    "sigmoid": lambda logits: -jax.nn.sigmoid(logits),
    "logsigmoid": lambda logits: -jax.nn.log_sigmoid(logits),
}


class RegularisedLoss(NamedTuple):
    """The two parts of the loss: of the fit, and of the critic before its weight."""

    fit: Float[Array, ""]
    critic: Float[Array, ""]


def regularised_loss(
    predict: Callable[[Params, Array], Array],
    judge: Callable[[Params], Array],
    x: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike,
    cost: str = "logsigmoid",
) -> Callable[[Params], tuple[Array, RegularisedLoss]]:
    """The loss of a network that fits a target with latents that a critic takes for functions.

    `mean (predict(x) - target)^2 + weight * mean cost(logit of every latent)`

    The critic is a constant in it: gradients go through the curves alone.

    Args:
      predict: `(params, x [points, columns]) -> [points, outputs]`.
      judge: `params -> logits [latents]` of a trained critic on the latents' curves.
      x: the points.
      target: `[points, outputs]`.
      weight: of the critic's part; may be traced.
      cost: of a logit, "linear" `-l`, "sigmoid" `-1 / (1 + exp(-l))` or "logsigmoid" `log(1 + exp(-l))`.

    Returns:
      `params -> (loss, RegularisedLoss)`, for `jax.value_and_grad(..., has_aux=True)`.

    Raises:
      ValueError: for an unknown cost, a negative weight, or predictions of another shape than the target.

    Example:
      >>> x = jnp.linspace(-1, 1, 5)[:, None]
      >>> loss = regularised_loss(lambda p, x: p * x, lambda p: jnp.zeros(3), x, 2 * x, weight=0.1)
      >>> value, parts = loss(jnp.float32(2.0))
      >>> float(parts.fit), round(float(parts.critic), 4)
      (0.0, 0.6931)

    References:
      https://github.com/fabxy/symrep, 2022.
    """
    check_function("predict", predict, "a function (params, x) -> predictions", None, None)
    check_function("judge", judge, "a function params -> logits", None)
    check_choice("cost", cost, COSTS)
    check_not_negative("weight", weight)
    points, target = as_array("x", x), as_real("target", target)

    def loss(params: Params) -> tuple[Array, RegularisedLoss]:
        predicted = as_real("predict(params, x)", predict(params, points))
        logits = as_real("judge(params)", judge(params))
        check_shapes(["predict(params, x)"], [predicted], [target.shape])
        if logits.size == 0:
            raise ValueError(f"judge(params): expected at least one logit, got shape {list(logits.shape)}")
        parts = RegularisedLoss(jnp.mean(jnp.square(predicted - target)), jnp.mean(COSTS[cost](logits)))
        return parts.fit + jnp.asarray(weight, parts.critic.dtype) * parts.critic, parts

    return loss


def largest_correlations(latents: ArrayLike, components: ArrayLike) -> Float[Array, " latents"]:
    """For every latent the largest `|correlation|` with any of the true components.

    `max_j |cov(latent_i, component_j)| / (sd sd)`; 0 for a latent that is constant but for rounding, NaN for
    one that holds NaN or infinity, and for all latents if a component does

    Args:
      latents: `[points, latents]`.
      components: `[points, components]`.

    Returns:
      `[latents]`, each in 0..1.

    Raises:
      ValueError: for arrays that are not of two axes, or of other points.

    Example:
      >>> x = jnp.linspace(-1, 1, 5)[:, None]
      >>> [round(float(c), 3) for c in largest_correlations(jnp.hstack([-3 * x, 0 * x]), x)]
      [1.0, 0.0]
    """
    columns = []
    for name, value in (("latents", latents), ("components", components)):
        array = as_real(name, value)
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name}: expected shape [points, columns], got {list(array.shape)}")
        if columns and array.shape[0] != columns[0].shape[0]:
            raise ValueError(
                f"{name}: expected shape [points, columns] with the {columns[0].shape[0]} points of latents, "
                f"got {list(array.shape)}"
            )
        given = getattr(value, "dtype", array.dtype)
        rounding = 8 * float(jnp.finfo(given if jnp.issubdtype(given, jnp.floating) else array.dtype).eps)
        columns.append(_normalised(array, rounding))
    dtype = raised(*columns)
    a, b = (array.astype(dtype) for array in columns)
    return jnp.minimum(jnp.max(jnp.abs(jnp.matmul(a.T, b, precision="highest")), axis=1), 1)


def _normalised(array: Array, rounding: float) -> Array:
    """Columns of mean 0 and norm 1; 0 where they vary by less than `rounding` of their norm."""

    def of_column(column: Array) -> Array:
        column = divided(column, scale_of(column))
        centred = column - jnp.mean(column)
        centred = centred - jnp.mean(centred)
        length = norm(centred)
        flat = length <= rounding * norm(column)
        centred = divided(centred, scale_of(centred))
        return jnp.where(flat, 0, centred / jnp.where(flat, 1, norm(centred)))

    return jax.vmap(of_column, in_axes=1, out_axes=1)(array)

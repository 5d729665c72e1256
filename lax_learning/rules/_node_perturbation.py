"""Node perturbation for any model: the change in loss times the noise on the units."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_choice, check_flag, check_positive, check_resolved, check_samples
from lax_learning._precision import raised
from lax_learning.estimators._draws import scaled
from lax_learning.models import Model
from lax_learning.noise import NoiseLike, as_noise
from lax_learning.rules._units import Taps, Units, times, unit_rule
from lax_learning.types import Key, Loss, Rule, Where


def node_perturbation(
    model: Model,
    loss: Loss,
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    antithetic: bool = False,
    layerwise: bool = False,
    share_noise: bool = False,
    variant: Literal["unbiased", "activity"] = "unbiased",
    noise: NoiseLike = "normal",
    where: Where = None,
    batch: bool = False,
) -> Rule:
    """Perturbs all units at once and credits each with the change in loss, separately for every example.

    `delta_l = 1/K sum_k (l(xi_k) - l(0)) xi_kl / sigma^2`, `xi ~ N(0, sigma^2)` on the pre-activations, and
    gradients by the local pull-back of each tap: `dw_l = x_l^T delta_l / batch` for a dense layer, with the
    unperturbed `x_l`. The variance grows with the number of units: for one example of a linear network, it is
    `delta_i^2 x_j^2 + x_j^2 |delta|^2`.

    Args:
      sigma: standard deviation of the noise, in the units of the pre-activations; may be traced.
      num_samples: number K of draws; their teaching signals are averaged, with one draw in memory at a time,
        and pulled back once.
      antithetic: use pairs xi, -xi and half the difference of losses: one more pass, no error of even order.
      layerwise: perturb one tap at a time, with one pass each (iterative node perturbation).
      share_noise: use the same noise for all examples of a batch.
      variant: "unbiased": the form above; "activity": `delta = N dl dz / |dz|^2`, where `dz` is the measured
        change of the pre-activations of all N units; does not need to know sigma, but is biased.
      noise: "normal", "rademacher" or a function `(key, like) -> unit noise`.
      where: which parameters are trained; the others get no noise on their units, and gradients of zero.
      batch: credit by the mean loss of the batch instead of each example's own, for models that couple the
        examples of a batch, such as BatchNorm in training; multiplies the variance by the batch size.

    Raises:
      ValueError: at trace time, for a model that couples examples, without `batch=True`.

    Example:
      >>> import lax_learning as ll
      >>> rule = node_perturbation(ll.Model(lambda w, x: x @ w), ll.squared_error, sigma=0.1, num_samples=4)
      >>> key, w = jax.random.key(0), jnp.ones((3, 2))
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, w, (), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads.shape
      (3, 2)

    References:
      Werfel, Xie, Seung, Learning curves for stochastic gradient descent in linear feedforward networks,
      https://doi.org/10.1162/089976605774320539, 2005.
      Dalm et al., Effective learning with node perturbation in multi-layer neural networks,
      https://arxiv.org/abs/2310.00965, 2023 (activity-based and iterative forms).
    """
    check_positive("sigma", sigma)
    check_samples("num_samples", num_samples)
    check_choice("variant", variant, ("unbiased", "activity"))
    flags = {"antithetic": antithetic, "layerwise": layerwise, "share_noise": share_noise}
    for name, flag in flags.items():
        check_flag(name, flag)
    if share_noise and batch:
        raise ValueError(
            "share_noise: expected False with batch=True, which perturbs the batch as a whole, got True"
        )
    draw_noise = as_noise(noise)

    def draw(units: Units, key: Key) -> Taps:
        check_resolved("sigma", sigma, units.losses.dtype, *units.dtypes)
        check_resolved("sigma * sigma", sigma * sigma, units.losses.dtype)  # compilers join both divisions
        scale = jnp.asarray(sigma, units.losses.dtype)
        unit = draw_noise(key, units.shapes(shared=share_noise))
        noise = units.placed({i: scaled(scale, n) for i, n in unit.items()})
        deltas: Taps = {}
        for group in [[tap] for tap in units.taps] if layerwise else [units.taps]:
            feeds = {tap.index: noise[tap.index] for tap in group}
            plus, moved = units.moved(feeds)
            before, change = units.zs, plus - units.losses
            if antithetic:
                minus, before = units.moved(jax.tree.map(jnp.negative, feeds))
                change = (plus - minus) / 2
            if variant == "unbiased":
                direction = _over(scale, feeds)
            else:
                half = 0.5 if antithetic else 1.0
                moves = {i: half * (moved[i] - before[i]) for i in feeds}
                direction = _normalised(_over(scale, moves), units.losses.ndim)
            deltas |= {i: times(units.weight * (change / scale), d) for i, d in direction.items()}
        return deltas

    return unit_rule(model, loss, draw, num_samples=num_samples, where=where, batch=batch)


def _over(scale: Array, values: Taps) -> Taps:
    """Returns values in units of sigma."""
    return {i: scaled(1 / scale, value) for i, value in values.items()}


def _normalised(change: Taps, lead: int) -> Taps:
    """Returns `N dz / |dz|^2` over the N units of all taps, separately for every example if not by batch.

    `dz` is in units of sigma.
    """
    num_units = sum(c.size // (c.shape[0] if lead else 1) for c in change.values())
    wide = raised(*change.values())
    squares = (jnp.sum(jnp.square(c.astype(wide)), axis=tuple(range(lead, c.ndim))) for c in change.values())
    square_norm = sum(squares, jnp.zeros((), wide))
    guard = num_units * float(jnp.finfo(wide).eps)
    factor = num_units / jnp.maximum(square_norm, guard)
    return {i: times(factor, c) for i, c in change.items()}

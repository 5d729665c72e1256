"""Node perturbation for any model: the change in loss times the noise on the units."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from lax_learning import _checks as checks
from lax_learning._precision import raised
from lax_learning._sites._run import Feeds
from lax_learning.estimators._draws import scaled
from lax_learning.models import Model
from lax_learning.noise import NoiseLike, as_noise
from lax_learning.rules._units import Units, times, unit_rule
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
    checks.check_positive("sigma", sigma)
    checks.check_choice("variant", variant, ("unbiased", "activity"))
    checks.check_flag("antithetic", antithetic)
    checks.check_flag("layerwise", layerwise)
    checks.check_flag("share_noise", share_noise)
    if share_noise and batch:
        expected = "False with batch=True, which perturbs the batch as a whole"
        raise ValueError(f"share_noise: expected {expected}, got True")
    draw_noise = as_noise(noise)

    def draw(units: Units, key: Key) -> Feeds:
        checks.check_resolved("sigma", sigma, units.losses.dtype, *units.dtypes)
        # Compilers join the two divisions by sigma.
        checks.check_resolved("sigma * sigma", sigma * sigma, units.losses.dtype)
        scale = jnp.asarray(sigma, units.losses.dtype)
        noise = units.noise(draw_noise, key, scale, shared=share_noise)
        deltas: Feeds = {}
        for group in [[tap] for tap in units.taps] if layerwise else [units.taps]:
            feeds = {tap.index: noise[tap.index] for tap in group}
            plus, moved = units.moved(feeds)
            before, change = units.zs, plus - units.losses
            if antithetic:
                minus, before = units.moved(jax.tree.map(jnp.negative, feeds))
                change = (plus - minus) / 2
            half = 0.5 if antithetic else 1.0
            moves = feeds if variant == "unbiased" else {i: half * (moved[i] - before[i]) for i in feeds}
            direction = {i: scaled(1 / scale, move) for i, move in moves.items()}
            if variant == "activity":
                direction = _normalised(direction, units.losses.ndim)
            deltas |= {i: times(units.weight * (change / scale), d) for i, d in direction.items()}
        return deltas

    return unit_rule(model, loss, draw, num_samples=num_samples, where=where, batch=batch)


def _normalised(change: Feeds, lead: int) -> Feeds:
    """Returns `N dz / |dz|^2` of changes in units of sigma, over the N units of all taps of an example."""
    num_units = sum(c.size // (c.shape[0] if lead else 1) for c in change.values())
    wide = raised(*change.values())
    squares = (jnp.sum(jnp.square(c.astype(wide)), axis=tuple(range(lead, c.ndim))) for c in change.values())
    square_norm = sum(squares, jnp.zeros((), wide))
    factor = num_units / jnp.maximum(square_norm, num_units * float(jnp.finfo(wide).eps))
    return {i: times(factor, c) for i, c in change.items()}

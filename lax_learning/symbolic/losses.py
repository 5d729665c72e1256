"""Losses and scores of a critic, and a critic's cost of latents that do not look like functions."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import as_array, as_floating, check_choice, check_instance, check_shapes
from lax_learning._precision import promoted, raised
from lax_learning._scaling import norm
from lax_learning.networks import identity
from lax_learning.symbolic.critics import Critic, as_rows
from lax_learning.types import Params

Objective = Literal["bce", "wgan"]
Cost = Literal["linear", "sigmoid", "logsigmoid"]
OBJECTIVES = {"bce": jax.nn.softplus, "wgan": identity}
"""Loss of the logits of fake curves, and of minus the logits of real curves."""
COSTS = {
    "linear": lambda logits: -logits,
    "sigmoid": lambda logits: -jax.nn.sigmoid(logits),
    "logsigmoid": lambda logits: -jax.nn.log_sigmoid(logits),
}


def critic_loss(
    logits_real: ArrayLike, logits_fake: ArrayLike, *, objective: Objective = "bce"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes a critic's losses on real and on fake curves; their sum is minimised.

    `mean(f(-real)), mean(f(fake))` in float32 or wider, `f(z) = log(1 + exp(z))` for "bce", `z` for "wgan"

    Args:
      logits_real, logits_fake: floating-point `[number]`, at least one each; their numbers may differ.
      objective: "bce", sigmoid cross-entropy with labels 1 for real and 0 for fake; or "wgan", the
        difference of the means.

    Example:
      >>> [float(loss) for loss in critic_loss(jnp.ones(2), jnp.array([2.0, 3.0]), objective="wgan")]
      [-1.0, 2.5]

    References:
      Arjovsky et al., Wasserstein GAN, https://arxiv.org/abs/1701.07875, 2017.
    """
    check_choice("objective", objective, OBJECTIVES)
    real, fake = _logits(logits_real, logits_fake)
    of = OBJECTIVES[objective]
    return jnp.mean(of(-real)), jnp.mean(of(fake))


def _logits(logits_real: ArrayLike, logits_fake: ArrayLike) -> tuple[Array, Array]:
    """Returns both as vectors in float32 or wider."""
    real, fake = as_rows("logits_real", logits_real, ()), as_rows("logits_fake", logits_fake, ())
    return real.astype(raised(real, fake)), fake.astype(raised(real, fake))


def _defined(share: Array, *logits: Array) -> Array:
    """Returns the share, or NaN if any logit is NaN."""
    return jnp.where(jnp.isnan(jnp.concatenate(logits)).any(), jnp.nan, share)


def gradient_penalty(
    critic: Critic, params: Params, eps: ArrayLike, real: ArrayLike, fake: ArrayLike
) -> Float[Array, ""]:
    """Penalises a critic's gradient norms other than 1, at points between real and fake curves.

    `mean((|grad_x critic(eps real + (1 - eps) fake)| - 1)^2)`, with the norm over points and channels

    Computed in float32 or wider; its gradient w.r.t. params is finite even where the norm is 0.

    Args:
      critic, params: the critic and its params.
      eps: weight of the real curve in each pair, `[number]`, to be drawn from `U(0, 1)`.
      real, fake: equal numbers of curves, `[number, points]` or `[number, points, channels]`.

    Example:
      >>> from lax_learning import symbolic
      >>> judge = symbolic.critic(2, hidden=())
      >>> params = {"critic": ({"w": jnp.array([[3.0], [4.0]])},), "embedding": ()}
      >>> float(gradient_penalty(judge, params, jnp.full(5, 0.5), jnp.ones((5, 2)), jnp.zeros((5, 2))))
      16.0

    References:
      Gulrajani et al., Improved training of Wasserstein GANs, https://arxiv.org/abs/1704.00028, 2017.
    """
    check_instance("critic", critic, Critic, "a Critic")
    real, fake = (as_rows(n, of, critic.curve_shape) for n, of in (("real", real), ("fake", fake)))
    eps = as_array("eps", eps)
    check_shapes(("fake", "eps"), (fake, eps), (real.shape, real.shape[:1]))
    real, fake = promoted(real, fake)
    eps = jnp.asarray(eps, real.dtype).reshape(-1, *[1] * (real.ndim - 1))
    mixed = eps * real + (1 - eps) * fake
    # Each logit depends on its own curve only, so the gradient of their sum contains that of each.
    slopes = jax.grad(lambda curves: jnp.sum(critic.apply(params, curves)))(mixed)
    slopes = slopes.astype(raised(slopes)).reshape(slopes.shape[0], -1)
    # Scaled by the largest entry, so that squares neither underflow nor overflow.
    unit = jax.lax.stop_gradient(jnp.max(jnp.abs(slopes), axis=1, keepdims=True))
    norms = unit[:, 0] * norm(slopes / jnp.where(unit == 0, 1, unit), axis=1)
    return jnp.mean(jnp.square(norms - 1))


def critic_accuracy(logits_real: ArrayLike, logits_fake: ArrayLike) -> Float[Array, ""]:
    """Computes the share of curves whose logit is on the correct side of 0.

    `(number of real > 0 + number of fake <= 0) / number of all`; NaN if any logit is NaN.

    Takes the arguments of `critic_loss`. For "wgan", the threshold is arbitrary: use `area_under_curve`.

    Example:
      >>> float(critic_accuracy(jnp.array([0.0, 0.1]), jnp.array([0.0, -0.1])))
      0.75
    """
    real, fake = _logits(logits_real, logits_fake)
    return _defined(jnp.mean(jnp.concatenate([real > 0, fake <= 0]), dtype=real.dtype), real, fake)


def area_under_curve(logits_real: ArrayLike, logits_fake: ArrayLike) -> Float[Array, ""]:
    """Computes the area under the receiver operating characteristic: how well logits rank curves.

    `P(real > fake) + P(real = fake) / 2`, over all pairs of a real and a fake curve

    In 0..1, with chance at 1/2; NaN if any logit is NaN. Takes the arguments of `critic_loss`.

    Example:
      >>> float(area_under_curve(jnp.array([2.0, 3.0]), jnp.array([1.0, 2.0])))
      0.875
    """
    real, fake = _logits(logits_real, logits_fake)
    # Few curves are compared pair by pair; for many, ranks are found by sorting.
    method = "compare_all" if real.size * fake.size <= 2**16 else "sort"
    fake = jnp.sort(fake)
    lower, not_higher = (
        jnp.sum(jnp.searchsorted(fake, real, side=side, method=method), dtype=real.dtype)
        for side in ("left", "right")
    )
    return _defined(jnp.minimum((lower + not_higher) / (2 * real.size * fake.size), 1), real, fake)


def critic_cost(logits: ArrayLike, *, cost: Cost = "logsigmoid") -> Float[Array, ""]:
    """Regularises a network with a trained critic: penalises latents that do not look like functions.

    `mean cost(logit)`, to be added to the loss of the network with a weight; the critic stays fixed.

    Args:
      logits: logits of the latents' curves, `critic.apply(critic_params, curves.latents(apply, params))`.
      cost: function of a logit `l`: "linear" `-l`, "sigmoid" `-1 / (1 + exp(-l))` or "logsigmoid"
        `log(1 + exp(-l))`; computed in float32 or wider.

    Example:
      >>> round(float(critic_cost(jnp.zeros(3))), 4)
      0.6931
    """
    check_choice("cost", cost, COSTS)
    logits = as_floating("logits", logits)
    if logits.size == 0:
        raise ValueError(f"logits: expected at least one, got shape {list(logits.shape)}")
    return jnp.mean(COSTS[cost](logits.astype(raised(logits))))

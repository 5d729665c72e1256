"""Weight perturbation: the change in loss times the noise that caused it, without autodiff."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning import _checks as checks
from lax_learning._arrays import as_params
from lax_learning._precision import is_half, raised, shift
from lax_learning.estimators._draws import as_gradient, averaged, join_aux, scaled, split_aux
from lax_learning.estimators._low_rank import FITNESS, low_rank_mean
from lax_learning.noise import NoiseLike, as_noise
from lax_learning.types import Estimator, Key, Params


def weight_perturbation(
    loss_fn: Callable[..., Any],
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    difference: Literal["forward", "central"] = "forward",
    noise: NoiseLike = "normal",
    rank: int | None = None,
    fitness: Literal["loss", "z-scored", "ranked"] = "loss",
    has_aux: bool = False,
) -> Estimator:
    """Estimates the gradient of any loss of any pytree from losses at perturbed parameters.

    `g = 1/K sum_k (L(w + sigma s_k) - L(w)) s_k / sigma` (forward) or
    `g = 1/K sum_k (L(w + sigma s_k) - L(w - sigma s_k)) s_k / (2 sigma)` (central).

    The estimate is unbiased for the gradient of the loss smoothed by the noise, so its bias for the loss
    itself is O(sigma^2). For one example of a linear network, with normal noise and one draw, its variance
    `Var[g_ij] = g_ij^2 + |g|^2` grows with the number of parameters.

    Every leaf of params is perturbed and gets a gradient, even behind `jax.lax.stop_gradient`, which affects
    only differentiation. To freeze parameters, leave them out of the pytree.

    In half precision, steps are rounded to numbers that parameters can store, never to 0, and credit is given
    for the step actually made. The loss itself has to be in float32 or wider, and half-precision operations
    in `loss_fn` round small differences away; the rules on models compute everything in float32. In wider
    dtypes, sigma should be well above the spacing of numbers around the parameters (in float32, 1e-7 times
    their size).

    With `rank=r`, the noise on an `n x m` matrix is `a b^T / sqrt(r)`, with unit noise in a and b. It has the
    mean and covariance of full noise and is never multiplied out. Draws run side by side and keep
    `K r (n + m)` numbers. For one example of a linear layer, the relative variance of a draw is
    `n m + 1 + 2 (n + m + 1) / r`. Matrices and convolution kernels that only products read, unmodified, get
    low-rank noise; everything else (vectors, and parameters that are reshaped, normalised, gathered from or
    used in two ways) gets full noise, in memory for all draws.

    Args:
      loss_fn: `(params, *args) -> loss`, a scalar, or an array with one loss per example, whose differences
        are taken before they are averaged. With `has_aux`, `(loss, aux)`.
      sigma: standard deviation of the noise, in the units of the parameters; may be traced.
      num_samples: number K of draws to average, one in memory at a time.
      difference: "forward" or "central"; central needs one more pass per draw and has a smaller bias.
      noise: "normal", "rademacher" (signs: less variance and 32 times fewer random words), or a function
        `(key, params) -> unit noise`, which can also inject given draws; integers are cast. With `rank`, it
        receives a list of the leaves, with pairs `(a, b)` in place of low-rank ones, all with a leading axis
        of draws.
      rank: rank of the noise on matrices, in float32 or wider; None for full noise.
      fitness: with `rank`, the quantity used for the loss of a draw: "loss"; "z-scored", the losses minus
        their mean, divided by their standard deviation; or "ranked", their ranks from -1/2 to 1/2. The last
        two give a direction, not a gradient; losses of examples are averaged first.
      has_aux: as in `jax.value_and_grad`; aux is that of the unperturbed parameters.

    Returns:
      `estimate(key, params, *args) -> (value, grads)`, where `value` is the loss of the unperturbed
      parameters (with central differences, a compiled program that does not use it does not compute it).

    Example:
      >>> estimate = weight_perturbation(lambda w: jnp.sum(w**2), sigma=0.01, num_samples=4096)
      >>> _, grads = estimate(jax.random.key(0), jnp.array([1.0, 2.0]))
      >>> bool(jnp.all(jnp.abs(grads - jnp.array([2.0, 4.0])) < 0.5))
      True

    References:
      Jabri, Flower, Weight perturbation: an optimal architecture and learning technique for analog VLSI
      feedforward and recurrent multilayer networks, https://doi.org/10.1109/72.105429, 1992.
      Cauwenberghs, A fast stochastic error-descent algorithm for supervised learning and optimization,
      https://proceedings.neurips.cc/paper/1992/hash/c3e878e27f52e2a57ace4d9a76fd9acf-Abstract.html, 1992.
      Sarkar et al., Evolution strategies at the hyperscale, https://arxiv.org/abs/2511.16652, 2025.
    """
    checks.check_positive("sigma", sigma)
    checks.check_samples("num_samples", num_samples)
    checks.check_choice("difference", difference, ("forward", "central"))
    draw_noise, central = as_noise(noise), difference == "central"
    checked = split_aux(loss_fn, has_aux)
    checks.check_choice("fitness", fitness, FITNESS)
    if rank is not None:
        checks.check_count("rank", rank)
    if fitness != "loss" and (rank is None or num_samples < 2):
        raise ValueError(
            f"fitness: expected 'loss' without a rank or with one draw, got {fitness!r} with rank={rank} and "
            f"num_samples={num_samples}"
        )

    def estimate(key: Key, params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Params]:
        checks.check_key("key", key)
        params = as_params(params)
        loss, aux = checked(params, *args, **kwargs)
        checks.check_resolved("sigma", sigma, loss.dtype, *(leaf.dtype for leaf in jax.tree.leaves(params)))
        if is_half(loss.dtype):
            raise TypeError(
                "loss_fn: expected a loss in float32 or wider, in which differences are not rounded away, "
                f"got {checks.describe(loss)}; compute it in float32, as from output.astype(jnp.float32)"
            )

        def perturbed(params: Params) -> Array:
            return checked(params, *args, **kwargs)[0]

        step = jnp.asarray(sigma, raised(loss))

        def draw(key: Key) -> Params:
            leaves, structure = jax.tree.flatten(params)
            noise = jax.tree.leaves(draw_noise(key, params))
            moved = [_moved(w, step, s) for w, s in zip(leaves, noise, strict=True)]
            plus, minus, credited = (structure.unflatten([m[i] for m in moved]) for i in range(3))
            if central:
                slope = jnp.mean(perturbed(plus) - perturbed(minus)) / (2 * step)
            else:
                slope = jnp.mean(perturbed(plus) - loss.astype(step.dtype)) / step
            return jax.tree.map(lambda s: scaled(slope, s), credited)

        if rank is None:
            grads = averaged(draw, num_samples)(key)
        else:
            grads = low_rank_mean(
                lambda params, args, kwargs: checked(params, *args, **kwargs)[0],
                params, (args, kwargs), None if central else loss, key=key, step=step, rank=rank,
                num_samples=num_samples, noise=draw_noise, fitness=fitness,
            )  # fmt: skip
        return join_aux(loss, aux, has_aux), as_gradient(grads, params)

    return estimate


def _moved(w: Array, step: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Returns `w +- step noise` and the noise to credit."""
    if is_half(w.dtype):
        return shift(w, step, noise)
    plus, minus = (w + scaled(by, noise).astype(w.dtype) for by in (step, -step))
    return plus, minus, noise

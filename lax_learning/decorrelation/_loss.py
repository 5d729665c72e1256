"""The distance of vectors from being uncorrelated, without overflow where the distance itself does not."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import as_array, check_probability
from lax_learning._precision import raised


def loss(z: ArrayLike, *, kappa: ArrayLike = 0.5) -> Float[Array, ""]:
    """Computes the distance of vectors from being uncorrelated, and white.

    `((1 - kappa) sum C_off^2 + kappa sum V^2) / size^2`, `C = mean z z^T`, `V = diag(mean z_i^2 - 1)`

    Args:
      z: `[..., size]`.
      kappa: as for `dynamics`; `2 loss(z)` is `mean (C - I)^2` at 1/2.

    Example:
      >>> float(loss(jnp.array([[1.0, 1.0], [1.0, -1.0]])))
      0.0
    """
    check_probability("kappa", kappa)
    z = as_array("z", z)
    if z.ndim < 2 or z.size == 0:
        raise ValueError(f"z: expected shape [..., size] with at least one entry, got {list(z.shape)}")
    z = z.reshape(-1, z.shape[-1]).astype(raised(z))
    return weighted_loss(z, jnp.asarray(kappa, z.dtype))


def weighted_loss(z: Array, kappa: Array) -> Array:
    """Returns `loss` of vectors `[number, size]`."""
    # Scaled by a power of two, which is exact, so that squares overflow only where the loss does.
    largest = jnp.max(jnp.abs(z))
    exponent = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    scaled = jnp.ldexp(z, -exponent)
    off_diagonal = _off_diagonal_squares(scaled)
    for _ in range(4):
        off_diagonal = jnp.ldexp(off_diagonal, exponent)
    variances = jnp.ldexp(jnp.ldexp(jnp.mean(jnp.square(scaled), axis=0), exponent), exponent)
    weights = jnp.stack([1 - kappa, kappa])
    parts = jnp.stack([off_diagonal, jnp.sum(jnp.square(variances - 1))])
    # A part without weight is 0 also where its value is infinite.
    return jnp.sum(jnp.where((weights == 0) & jnp.isinf(parts), 0, weights * parts)) / z.shape[-1] ** 2


def _off_diagonal_squares(z: Array) -> Array:
    """Returns `sum C_off^2`, by the smaller of the matrices `z^T z` and `z z^T`.

    The second has the same sum of all squares, from which those on the diagonal of C are taken. Little is
    lost: the rank of C is then below its size, so that it is not close to a diagonal with equal variances.
    """
    count, size = z.shape
    if count >= size:
        moments = z.T @ z / count
        return jnp.sum(jnp.square(jnp.where(jnp.eye(size, dtype=bool), 0, moments)))
    every = jnp.sum(jnp.square(z @ z.T / count))
    own = jnp.sum(jnp.square(jnp.mean(jnp.square(z), axis=0)))
    return jnp.where(jnp.isinf(every), every, jnp.maximum(every - own, 0))

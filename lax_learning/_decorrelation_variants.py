"""The published rules by which a decorrelating matrix changes, and what each of them lowers."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_choice, check_positive, check_probability, check_scalar, describe

DEAD = 1e-8
"""Mean square below which an input counts as dead: its variance is left alone."""


class Moments(NamedTuple):
    """Second moments of `z = R x`, as far as they are needed: `C R` and the diagonal of `C`."""

    product: Array
    diagonal: Array


class Variant(NamedTuple):
    """A rule for R, the number that it takes and its default, and what it lowers."""

    parameter: str
    default: float
    update: Callable[[Array, Moments, Array, Array], Array]
    loss: Callable[[Array, Array, Array], Array]


def _normaliser(moments: Moments, variance: Array) -> Array:
    """`variance / mean(z_i^2)` for every row, 1 for dead inputs."""
    dead = moments.diagonal < DEAD
    return jnp.where(dead, 1, variance / jnp.where(dead, 1, moments.diagonal))[:, None]


def _seed(r: Array, moments: Moments, eta: Array, variance: Array) -> Array:
    alive = ~(moments.diagonal < DEAD)[:, None]
    return r + eta * jnp.where(alive, _normaliser(moments, variance) * (r - moments.product), 0)


def _scaled(r: Array, moments: Moments, eta: Array, variance: Array) -> Array:
    return _normaliser(moments, variance) * (r - eta * moments.product)


def _excess(moments: Moments) -> Array:
    """`V`: by how much variances exceed 1; nothing for dead inputs, whose rows would grow without bound."""
    return jnp.where(moments.diagonal < DEAD, 0, moments.diagonal - 1)


def _paper(r: Array, moments: Moments, eta: Array, kappa: Array) -> Array:
    off_diagonal = moments.product - moments.diagonal[:, None] * r
    return r - eta * ((1 - kappa) * off_diagonal + kappa * _excess(moments)[:, None] * r)


def _decorbp(r: Array, moments: Moments, eta: Array, kappa: Array) -> Array:
    off_diagonal = moments.product - moments.diagonal[:, None] * r
    return r - eta * ((1 - kappa) * off_diagonal + kappa * r * _excess(moments))


def _distance_from_white(off_diagonal: Array, diagonal: Array, variance: Array) -> Array:
    return (off_diagonal + jnp.sum(jnp.square(diagonal - variance))) / diagonal.size**2


def _weighted(off_diagonal: Array, diagonal: Array, kappa: Array) -> Array:
    excess = jnp.sum(jnp.square(diagonal - 1))
    return (_part(1 - kappa, off_diagonal) + _part(kappa, excess)) / diagonal.size**2


def _part(weight: Array, value: Array) -> Array:
    """`weight value`, 0 for no weight also where the value is beyond the largest number."""
    return jnp.where((weight == 0) & jnp.isinf(value), 0, weight * value)


VARIANTS = {
    "paper": Variant("kappa", 0.5, _paper, _weighted),
    "decorbp": Variant("kappa", 0.5, _decorbp, _weighted),
    "seed": Variant("variance", 1.0, _seed, _distance_from_white),
    "scaled": Variant("variance", 1.0, _scaled, _distance_from_white),
}


def variant_of(
    variant: str, kappa: ArrayLike | None, variance: ArrayLike | None
) -> tuple[Variant, ArrayLike]:
    """The variant and its number; raises if the other number is given."""
    check_choice("variant", variant, VARIANTS)
    chosen = VARIANTS[variant]
    given = {"kappa": kappa, "variance": variance}
    for name, value in given.items():
        if value is not None and name != chosen.parameter:
            raise ValueError(f"{name}: expected none with variant {variant!r}, got {describe(value)}")
    number = given[chosen.parameter]
    number = chosen.default if number is None else number
    (check_probability if chosen.parameter == "kappa" else check_positive)(chosen.parameter, number)
    check_scalar(chosen.parameter, number)
    return chosen, number


def loss_moments(z: Array) -> tuple[Array, Array]:
    """`sum C_off^2` and the diagonal of `C`, without overflow on the way, also where they are infinite."""
    largest = jnp.max(jnp.abs(z))
    exponent = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    scaled = jnp.ldexp(z, -exponent)  # exact
    squares = off_diagonal_squares(scaled)
    for _ in range(4):
        squares = jnp.ldexp(squares, exponent)
    return squares, jnp.ldexp(jnp.ldexp(jnp.mean(jnp.square(scaled), axis=0), exponent), exponent)


def off_diagonal_squares(z: Array) -> Array:
    """`sum C_off^2`.

    The smaller of the matrices `z^T z` and `z z^T` is computed. From the first, entries off the diagonal are
    summed. Of the second, only the sum of all squares is that of C, and those of its diagonal are taken away;
    little is lost, since C then has a lower rank than size, and cannot be diagonal with all variances alike.
    """
    count, size = z.shape
    if count >= size:
        moments = z.T @ z / count
        return jnp.sum(jnp.square(jnp.where(jnp.eye(size, dtype=bool), 0, moments)))
    every = jnp.sum(jnp.square(z @ z.T / count))
    own = jnp.sum(jnp.square(jnp.mean(jnp.square(z), axis=0)))
    return jnp.where(jnp.isinf(every), every, jnp.maximum(every - own, 0))

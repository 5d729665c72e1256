"""Updates of R as in the notebook and its successor, as custom dynamics on the library's interface."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import lax_learning as ll
from lax_learning.decorrelation import Diagnostics, State

DEAD = 1e-8  # mean square below which an input counts as dead and is not rescaled


def dynamics(eta: ArrayLike, *, scaled: bool = False) -> ll.Dynamics:
    """Learns an R whose outputs have variance 1, with `n_i = 1 / mean z_i^2` for every row.

    notebook: `R <- R + eta (n R - n C R)`
    scaled: `R <- n (R - eta C R)`, its successor. It divides by variances instead of standard deviations, so
      scales alternate between s and 1/s and do not converge.

    Args:
      eta: step size.
      scaled: whether to use the successor.

    Returns:
      Dynamics as `ll.decorrelation.dynamics` returns them, with the loss `mean (C - I)^2`.
    """

    def init(size: int) -> State:
        return State(jnp.eye(size), step=jnp.zeros((), jnp.int32))

    def update(key: jax.Array, state: State, x: ArrayLike) -> tuple[State, Diagnostics]:
        z = ll.decorrelation.apply(state, x)
        z = z.reshape(-1, z.shape[-1])
        variances = jnp.mean(jnp.square(z), axis=0)
        dead = variances < DEAD
        n = jnp.where(dead, 1, 1 / jnp.where(dead, 1, variances))[:, None]
        product = z.T @ (z @ state.R) / len(z)  # C R
        if scaled:
            r = n * (state.R - eta * product)
        else:
            r = state.R + eta * jnp.where(dead[:, None], 0, n * (state.R - product))
        return state._replace(R=r, step=state.step + 1), Diagnostics(2 * ll.decorrelation.loss(z))

    return ll.Dynamics(init, update)

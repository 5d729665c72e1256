"""Decorrelation of one data value: how its matrix R is applied and learned (Ahmad et al., 2022)."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from lax_learning import _checks as checks
from lax_learning._arrays import check_counter
from lax_learning._lazily import lazily
from lax_learning._precision import promoted, raised
from lax_learning.types import Dynamics, Key

DEAD = 1e-8
"""Mean square below which an output counts as dead, so that its variance is not rescaled."""


class State(NamedTuple):
    """State of decorrelation, `z = R x + b`, with leading axes for stacked layers and groups.

    Fields:
      R: decorrelation matrix.
      b: bias that removes the mean, or None.
      step: number of calls of `update` so far.
    """

    R: Float[Array, "... size size"]
    b: Float[Array, "... size"] | None = None
    step: Int[ArrayLike, "..."] = 0


class Diagnostics(NamedTuple):
    """Value of `loss` before an update; NaN if R was not updated."""

    loss: Float[Array, ""]


def dynamics(
    eta: ArrayLike,
    *,
    kappa: ArrayLike = 0.5,
    variant: Literal["paper", "decorbp"] = "paper",
    lower: bool = False,
    bias: bool = False,
    every: int = 1,
    subsample: float = 1.0,
) -> Dynamics:
    """Learns a matrix R that decorrelates vectors and, with kappa > 0, gives them unit variance.

    `z = R x`, `C = mean z z^T` over a batch, `C_off` = C without its diagonal, `V = diag(mean z_i^2 - 1)`

    "paper": `R <- R - eta ((1 - kappa) C_off + kappa V) R`
    "decorbp": as in the published class, `kappa R V` instead of `kappa V R`

    As `C R = z^T (z R) / batch`, an update takes three products with the batch and none of cost `size^3`.
    Moments are not centred. R starts as the identity in the default precision; its changes are computed in
    float32 or wider. For dead outputs, with a mean square below 1e-8, V is set to 0.

    Args:
      eta: step size.
      kappa: from 0, decorrelation only, to 1, unit variances only.
      variant: "paper" or "decorbp".
      lower: keep R lower triangular, by changing only that part.
      bias: also remove the mean: `z = R x + b`, `b <- b - eta mean z`.
      every: number of calls per update.
      subsample: share of vectors that moments are computed from, drawn without replacement.

    Returns:
      Dynamics: `init(size) -> State` and `update(key, state, x) -> (state, Diagnostics)`, x `[..., size]`.
      `rule` also takes your own Dynamics with these signatures. At calls without an update, the loss is NaN,
      or infinite if `jax_debug_nans` is on.

    Example:
      >>> learn = dynamics(0.1, kappa=0.5)
      >>> x = jax.random.normal(jax.random.key(0), (20, 3))
      >>> state, diagnostics = jax.jit(learn.update)(jax.random.key(1), learn.init(3), x)
      >>> state.R.shape, diagnostics.loss.shape
      ((3, 3), ())

    References:
      Ahmad et al., Constrained parameter inference, https://arxiv.org/abs/2203.13203, 2022.
      Dalm et al., Decorrelated backpropagation, https://arxiv.org/abs/2405.02385, 2024 ("decorbp").
    """
    checks.check_not_negative("eta", eta)
    checks.check_probability("kappa", kappa)
    checks.check_choice("variant", variant, ("paper", "decorbp"))
    checks.check_flag("lower", lower)
    checks.check_flag("bias", bias)
    checks.check_count("every", every, maximum=checks.MAX_ENTRIES)
    if isinstance(subsample, Tracer):
        raise TypeError(f"subsample: expected a concrete number, got {checks.describe(subsample)}")
    checks.check_positive("subsample", subsample)
    checks.check_probability("subsample", subsample)

    def init(size: int) -> State:
        checks.check_count("size", size)
        checks.check_memory("size", [(size, size)])
        return State(jnp.eye(size), jnp.zeros(size) if bias else None, jnp.zeros((), jnp.int32))

    def learn(key: Key, state: State, x: Array, eta: Array, kappa: Array) -> tuple[State, Array]:
        v = x.reshape(-1, x.shape[-1])
        count = max(1, round(subsample * len(v)))
        v = v if count == len(v) else v[jax.random.permutation(key, len(v))[:count]]
        dtype = raised(state.R)
        r, v, eta, kappa = (value.astype(dtype) for value in (state.R, v, eta, kappa))
        b = None if state.b is None else state.b.astype(dtype)
        z = _affine(r, b, v)
        variances = jnp.mean(jnp.square(z), axis=0)
        off_diagonal = z.T @ (z @ r) / count - variances[:, None] * r
        excess = jnp.where(variances < DEAD, 0, variances - 1)
        scaled = excess[:, None] * r if variant == "paper" else r * excess
        after = r - eta * ((1 - kappa) * off_diagonal + kappa * scaled)
        after = (jnp.tril(after) if lower else after).astype(state.R.dtype)
        if b is not None:
            b = (b - eta * jnp.mean(z, axis=0)).astype(state.R.dtype)
        return state._replace(R=after, b=b), _loss(z, kappa)

    def update(key: Key, state: State, x: ArrayLike) -> tuple[State, Diagnostics]:
        checks.check_key("key", key)
        checks.check_instance("state", state, State, "a State, from init")
        check_counter("state.step", state.step)
        if (state.b is not None) != bias:
            got = "none" if state.b is None else checks.describe(state.b)
            raise ValueError(f"state.b: expected b from init with bias={bias}, got {got}")
        x = checks.as_floating("x", x)
        _matrix_for(x, state)

        def wait(key: Key, state: State, *rest: Array) -> tuple[State, Array]:
            none = jnp.inf if jax.config.jax_debug_nans else jnp.nan  # pyright: ignore[reportAttributeAccessIssue]
            return state, jnp.full((), none, raised(state.R))

        operands = (key, state, x, jnp.asarray(eta), jnp.asarray(kappa))
        if every == 1:
            after, value = learn(*operands)
        else:
            after, value = lazily(jnp.asarray(state.step) % every == 0, learn, wait, *operands)
        return after._replace(step=state.step + 1), Diagnostics(value)

    return Dynamics(init, update)


def checked_state(name: str, state: Any, shape: tuple[int, ...] | None = None) -> tuple[Array, Array | None]:
    """Returns R and b, or None; raises unless R has the shape (by default, any square) and b fits."""
    r, b = checks.as_floating(f"{name}.R", getattr(state, "R", None)), getattr(state, "b", None)
    got = r.shape
    if not got or got != (shape or got[:1] * 2):
        expected = list(shape) if shape else "[size, size]"
        raise ValueError(f"{name}.R: expected shape {expected}, got {list(got)}")
    if b is not None:
        b = checks.as_floating(f"{name}.b", b)
        checks.check_shapes([f"{name}.b"], [b], [got[:-1]])
    return r, b


def _matrix_for(x: Array, state: State) -> tuple[Array, Array | None]:
    """Returns R and b, or None; raises unless x holds at least one vector of their size."""
    r, b = checked_state("state", state)
    if x.ndim == 0 or x.shape[-1] != len(r) or x.size == 0:
        raise ValueError(f"x: expected non-empty shape [..., {len(r)}], got {list(x.shape)}")
    return r, b


def apply(state: State, x: ArrayLike) -> Float[Array, "... size"]:
    """Applies R to vectors `x [..., size]`: `z = R x`, or `R x + b`; the state has no leading axes.

    Example:
      >>> apply(State(2 * jnp.eye(3)), jnp.ones((5, 3))).shape
      (5, 3)
    """
    x = checks.as_array("x", x)
    r, b = _matrix_for(x, state)
    x, r, *bias = promoted(x, r, *(() if b is None else (b,)))
    return _affine(r, bias[0] if bias else None, x)


def _affine(r: Array, b: Array | None, x: Array) -> Array:
    z = x @ r.T
    return z if b is None else z + b


def loss(z: ArrayLike, *, kappa: ArrayLike = 0.5) -> Float[Array, ""]:
    """Computes how far vectors are from being uncorrelated with unit variance.

    `((1 - kappa) sum C_off^2 + kappa sum V^2) / size^2`, `C = mean z z^T`, `V = diag(mean z_i^2 - 1)`

    Args:
      z: `[..., size]`.
      kappa: as for `dynamics`; with 1/2, `2 loss(z)` is `mean (C - I)^2`.

    Example:
      >>> float(loss(jnp.array([[1.0, 1.0], [1.0, -1.0]])))
      0.0
    """
    checks.check_probability("kappa", kappa)
    z = checks.as_array("z", z)
    if z.ndim < 2 or z.size == 0:
        raise ValueError(f"z: expected shape [..., size] with at least one entry, got {list(z.shape)}")
    z = z.reshape(-1, z.shape[-1]).astype(raised(z))
    return _loss(z, jnp.asarray(kappa, z.dtype))


def _loss(z: Array, kappa: Array) -> Array:
    """Returns `loss` of vectors `[number, size]`."""
    # Scaling by a power of two is exact; squares then overflow only if the loss does.
    largest = jnp.max(jnp.abs(z))
    exponent = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    scaled = jnp.ldexp(z, -exponent)
    off_diagonal = _off_diagonal_squares(scaled)
    for _ in range(4):
        off_diagonal = jnp.ldexp(off_diagonal, exponent)
    variances = jnp.ldexp(jnp.ldexp(jnp.mean(jnp.square(scaled), axis=0), exponent), exponent)
    weights = jnp.stack([1 - kappa, kappa])
    parts = jnp.stack([off_diagonal, jnp.sum(jnp.square(variances - 1))])
    # A part with weight 0 counts as 0 even if its value is infinite.
    return jnp.sum(jnp.where((weights == 0) & jnp.isinf(parts), 0, weights * parts)) / z.shape[-1] ** 2


def _off_diagonal_squares(z: Array) -> Array:
    """Returns `sum C_off^2`, from the smaller of `z^T z` and `z z^T`, which have the same sum of squares."""
    count, size = z.shape
    if count >= size:
        moments = z.T @ z / count
        return jnp.sum(jnp.square(jnp.where(jnp.eye(size, dtype=bool), 0, moments)))
    # Little is lost by subtraction: the rank of C is below its size, so it is far from diagonal.
    every = jnp.sum(jnp.square(z @ z.T / count))
    own = jnp.sum(jnp.square(jnp.mean(jnp.square(z), axis=0)))
    return jnp.where(jnp.isinf(every), every, jnp.maximum(every - own, 0))

"""Decorrelation: a matrix before the weights makes their inputs uncorrelated (Ahmad et al., 2022)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from lax_learning._checks import (
    MAX_ENTRIES,
    as_array,
    as_floating,
    as_sizes,
    check_count,
    check_counter,
    check_flag,
    check_floating,
    check_instance,
    check_key,
    check_memory,
    check_not_negative,
    check_positive,
    check_probability,
    check_scalar,
    check_sequence,
    check_shapes,
    describe,
)
from lax_learning._decorrelation_variants import Moments, loss_moments, off_diagonal_squares, variant_of
from lax_learning._lazily import lazily
from lax_learning._precision import promoted, raised
from lax_learning._structure import mapping_like, sequence_like
from lax_learning.types import Dynamics, Key


class DecorrelationState(NamedTuple):
    """State of the decorrelation transform.

    Fields:
      layers: for every layer `{"R": [size, size]}`, and `"b": [size]` where the mean is removed.
      step: number of updates seen.
    """

    layers: tuple[dict[str, Array], ...]
    step: Int[Array, ""]


class Decorrelated(NamedTuple):
    """Correlation of the inputs before an update.

    Fields:
      loss: of every layer, as `decorrelation_loss`.
    """

    loss: Float[Array, " layers"]


def decorrelation(
    eta: ArrayLike,
    *,
    kappa: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    variant: str = "paper",
    lower: bool = False,
    bias: bool = False,
    every: int = 1,
    subsample: float = 1.0,
) -> Dynamics:
    """Learns, for every layer, a matrix R that makes its inputs uncorrelated, and white if asked for.

    `z = R x`, `C = mean z z^T` over a batch; with `C_off` off its diagonal and `V = diag(mean z_i^2 - 1)`

    "paper": `R <- R - eta ((1 - kappa) C_off + kappa V) R`
    "decorbp": the published class, `kappa R V` for `kappa V R`
    "seed": an earlier one, `R <- R + eta (n R - n C R)` with `n_i = variance / mean z_i^2` for every row
    "scaled": its successor, `R <- n (R - eta C R)`; it divides by variances, not by standard deviations,
      so that scales alternate between s and 1/s rather than settle

    `C R = z^T (z R) / batch`: three products of the size of the batch, none of `size^3`. Moments are not
    centred. R starts as the identity, in the default precision; it is no parameter of the loss. Whatever the
    dtype of R, changes are computed in float32 or wider. An output whose mean square is below 1e-8 counts as
    dead: a division by it, and its excess V, are left out.

    Args:
      eta: step size.
      kappa: from 0, pure decorrelation, to 1, unit variances alone; for "paper" and "decorbp", 0.5 by
        default.
      variance: which the inputs are to have; for "seed" and "scaled", 1 by default.
      variant: "paper", "decorbp", "seed" or "scaled".
      lower: R stays lower triangular: only that part of the change is made.
      bias: remove the mean as well: `z = R x + b`, `b <- b - eta mean z`.
      every: update at every k-th call only.
      subsample: share of the vectors that moments are taken from, drawn without replacement.

    Returns:
      Dynamics: `init(sizes) -> DecorrelationState`, one size a layer, and
      `update(key, state, inputs) -> (state, Decorrelated)` with inputs `[..., size]` for every layer. Where
      nothing is updated the loss is NaN; it is infinite while `jax_debug_nans` is on.

    Raises:
      TypeError, ValueError: for a negative eta, kappa outside 0..1, a variance <= 0, a subsample outside
        (0, 1], an unknown variant, or at the call inputs of other sizes.

    Example:
      >>> dynamics = decorrelation(0.1, kappa=0.5)
      >>> state = dynamics.init((3,))
      >>> x = jax.random.normal(jax.random.key(0), (20, 3))
      >>> state, diagnostics = dynamics.update(jax.random.key(1), state, (x,))
      >>> state.layers[0]["R"].shape, diagnostics.loss.shape
      ((3, 3), (1,))

    References:
      Ahmad, Schrader, van Gerven, Constrained parameter inference as a principle for learning,
      https://arxiv.org/abs/2203.13203, 2022; Dalm, Offergeld, Ahmad, van Gerven, Efficient deep learning with
      decorrelated backpropagation, https://arxiv.org/abs/2405.02385, 2024.
    """
    check_not_negative("eta", eta)
    check_scalar("eta", eta)
    check_flag("lower", lower)
    check_flag("bias", bias)
    chosen, number = variant_of(variant, kappa, variance)
    check_count("every", every)
    if every > MAX_ENTRIES:
        raise ValueError(f"every: expected at most {MAX_ENTRIES}, got {every}")
    if isinstance(subsample, Tracer):
        raise TypeError(f"subsample: expected a number that is not traced, got {describe(subsample)}")
    check_positive("subsample", subsample)
    check_probability("subsample", subsample)

    def init(sizes: Sequence[int]) -> DecorrelationState:
        sizes = as_sizes("sizes", sizes, "one size a layer")
        if not sizes:
            raise ValueError("sizes: expected at least one layer, got none")
        check_memory("sizes", [(size, size) for size in sizes])
        layers = tuple({"R": jnp.eye(n), **({"b": jnp.zeros(n)} if bias else {})} for n in sizes)
        return DecorrelationState(layers, jnp.zeros((), jnp.int32))

    def update(
        key: Key, state: DecorrelationState, inputs: Sequence[ArrayLike]
    ) -> tuple[DecorrelationState, Decorrelated]:
        check_key("key", key)
        sizes = check_state(state)
        check_sequence("inputs", inputs, "a sequence with one array a layer")
        if len(inputs) != len(sizes):
            raise ValueError(f"inputs: expected {len(sizes)} layers, got {len(inputs)}")
        for i, layer in enumerate(state.layers):
            if ("b" in layer) != bias:
                raise ValueError(
                    f"state.layers[{i}]: expected {['R', 'b'] if bias else ['R']} as init with bias={bias} "
                    f"makes them, got {sorted(layer)}"
                )
        inputs = tuple(as_floating(f"inputs[{i}]", x) for i, x in enumerate(inputs))
        for i, (x, size) in enumerate(zip(inputs, sizes, strict=True)):
            if x.ndim == 0 or x.shape[-1] != size or x.size == 0:
                raise ValueError(f"inputs[{i}]: expected vectors of {size}, got shape {list(x.shape)}")

        def learn(key: Key, layers: _Layers, inputs: _Inputs, eta: Array, number: Array) -> _Learned:
            keys = jax.random.split(key, len(layers))
            learned = [
                learn_layer(k, layer, x.reshape(-1, x.shape[-1]), eta, number)
                for k, layer, x in zip(keys, layers, inputs, strict=True)
            ]
            losses = jnp.stack([loss.astype(dtype) for _, loss in learned])
            return sequence_like(layers, [layer for layer, _ in learned]), losses

        def wait(key: Key, layers: _Layers, inputs: _Inputs, eta: Array, number: Array) -> _Learned:
            return layers, jnp.full(len(layers), none, dtype)

        dtype = promoted(*(layer["R"] for layer in state.layers))[0].dtype
        none = jnp.inf if jax.config.jax_debug_nans else jnp.nan  # pyright: ignore[reportAttributeAccessIssue]
        operands = (key, state.layers, inputs, jnp.asarray(eta), jnp.asarray(number))
        if every == 1:
            layers, losses = learn(*operands)
        else:
            layers, losses = lazily(state.step % every == 0, learn, wait, *operands)
        return DecorrelationState(layers, state.step + 1), Decorrelated(losses)

    def learn_layer(
        key: Key, layer: dict[str, Array], v: Array, eta: Array, number: Array
    ) -> tuple[dict[str, Array], Array]:
        total = v.shape[0]
        count = max(1, round(subsample * total))
        v = v if count == total else v[jax.random.permutation(key, total)[:count]]
        dtype = raised(layer["R"])
        wide = {name: layer[name].astype(dtype) for name in (("R", "b") if bias else ("R",))}
        r = wide["R"]
        v, eta, number = v.astype(dtype), eta.astype(dtype), number.astype(dtype)
        z = decorrelate(wide, v)
        diagonal = jnp.mean(jnp.square(z), axis=0)
        changed = chosen.update(r, Moments(z.T @ (z @ r) / count, diagonal), eta, number)
        after = {"R": jnp.tril(changed) if lower else changed}
        if bias:
            after["b"] = wide["b"] - eta * jnp.mean(z, axis=0)
        after = {name: value.astype(layer[name].dtype) for name, value in after.items()}
        return mapping_like(layer, **after), chosen.loss(off_diagonal_squares(z), diagonal, number)

    return Dynamics(init, update)


def check_state(state: Any) -> tuple[int, ...]:
    """The sizes of all layers; raises unless every layer has a square R, and b to fit if it has one."""
    check_instance("state", state, DecorrelationState, "a DecorrelationState, from init")
    check_sequence("state.layers", state.layers, "a tuple with a dict a layer")
    check_counter("state.step", state.step)
    return tuple(check_layer(f"state.layers[{i}]", layer) for i, layer in enumerate(state.layers))


def check_layer(name: str, layer: Any) -> int:
    """The size of a layer; raises unless it has a square R, and b to fit if it has one."""
    if not isinstance(layer, Mapping) or "R" not in layer:
        got = sorted(layer) if isinstance(layer, Mapping) else describe(layer)
        raise ValueError(f"{name}: expected a dict with the entry 'R', got {got}")
    for entry in ("R", "b"):
        if entry in layer:
            check_floating(f"{name}[{entry!r}]", layer[entry])
    shape = jnp.shape(layer["R"])
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name}['R']: expected shape [size, size], got {list(shape)}")
    if "b" in layer:
        check_shapes([f"{name}['b']"], [layer["b"]], [shape[:1]])
    return shape[0]


_Layers = tuple[dict[str, Array], ...]
_Inputs = tuple[Array, ...]
_Learned = tuple[_Layers, Array]


def decorrelate(layer: dict[str, Array], x: ArrayLike) -> Float[Array, "... size"]:
    """Applies R to inputs: `z = R x`, or `R x + b`.

    Args:
      layer: of a `DecorrelationState`.
      x: `[..., size]`.

    Returns:
      `[..., size]`.

    Raises:
      TypeError, ValueError: for another size, or a layer that is none.

    Example:
      >>> decorrelate({"R": 2 * jnp.eye(3)}, jnp.ones((5, 3))).shape
      (5, 3)
    """
    x = as_array("x", x)
    size = check_layer("layer", layer)
    if x.ndim == 0 or x.shape[-1] != size:
        raise ValueError(f"x: expected shape [..., {size}], got {list(x.shape)}")
    x, r, *b = promoted(x, layer["R"], *([layer["b"]] if "b" in layer else []))
    z = x @ r.T
    return z + b[0] if b else z


def decorrelation_loss(
    z: ArrayLike,
    *,
    kappa: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    variant: str = "paper",
) -> Float[Array, ""]:
    """Computes the distance of vectors from being uncorrelated.

    `((1 - kappa) sum C_off^2 + kappa sum V^2) / size^2` for "paper" and "decorbp",
    `mean (C - variance I)^2` for "seed" and "scaled"; `C = mean z z^T`

    Args:
      z: `[..., size]`.
      kappa, variance, variant: as for `decorrelation`.

    Returns:
      A scalar >= 0, in float32 or wider.

    Raises:
      TypeError, ValueError: as `decorrelation`, and for z without vectors.

    Example:
      >>> float(decorrelation_loss(jnp.array([[1.0, 1.0], [1.0, -1.0]])))
      0.0
    """
    chosen, number = variant_of(variant, kappa, variance)
    z = as_array("z", z)
    if z.ndim < 2 or z.size == 0:
        raise ValueError(f"z: expected shape [..., size] with at least one entry, got {list(z.shape)}")
    z = z.reshape(-1, z.shape[-1]).astype(raised(z))
    return chosen.loss(*loss_moments(z), jnp.asarray(number, z.dtype))

"""Decorrelation: a matrix before the weights makes their inputs uncorrelated (Ahmad et al., 2022)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from lax_learning._checks import (
    check_count,
    check_floating,
    check_not_negative,
    check_positive,
    check_probability,
)
from lax_learning._decorrelation_variants import Moments, sum_of_squares, variant_of
from lax_learning._lazily import lazily
from lax_learning.layers import Reads, rows
from lax_learning.networks import Network
from lax_learning.types import Dynamics, Key


class DecorrelationState(NamedTuple):
    """What decorrelation has learned.

    Fields:
      layers: for every layer `{"R": [size, size]}`, and `"b": [size]` where the mean is removed.
      step: number of updates seen.
    """

    layers: tuple[dict[str, Array], ...]
    step: Int[Array, ""]


class Decorrelated(NamedTuple):
    """How decorrelated the inputs were before an update.

    Fields:
      loss: of every layer, as `decorrelation_loss`.
    """

    loss: Float[Array, " layers"]


def reads_of(network: Network) -> tuple[Reads, ...]:
    """What the weights of every layer read; raises unless all layers say."""
    for i, layer in enumerate(network.layers):
        if layer.reads is None:
            raise ValueError(f"network.layers[{i}]: expected a layer that says what it reads, got None")
    return tuple(layer.reads for layer in network.layers if layer.reads is not None)


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
    centred. R starts as the identity, in the default precision; it is no parameter of the loss.

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
      Dynamics: `init(sizes) -> DecorrelationState`, the sizes one a layer or those of a network, and
      `update(key, state, inputs) -> (state, Decorrelated)` with inputs `[..., size]` for every layer.
      `update(key, state, inputs, network)` takes the presynaptic activities of a network's layers, and its
      patches from them where they are convolutions. Where nothing is updated the loss is NaN.

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
    chosen, number = variant_of(variant, kappa, variance)
    check_count("every", every)
    check_positive("subsample", subsample)
    check_probability("subsample", subsample)

    def init(sizes: Sequence[int] | Network) -> DecorrelationState:
        if isinstance(sizes, Network):
            sizes = [reads.size for reads in reads_of(sizes)]
        layers = []
        for i, size in enumerate(sizes):
            check_count(f"sizes[{i}]", size)
            layers.append({"R": jnp.eye(size), **({"b": jnp.zeros(size)} if bias else {})})
        return DecorrelationState(tuple(layers), jnp.zeros((), jnp.int32))

    def update(
        key: Key, state: DecorrelationState, inputs: Sequence[ArrayLike], network: Network | None = None
    ) -> tuple[DecorrelationState, Decorrelated]:
        sizes = [layer["R"].shape[0] for layer in state.layers]
        every_reads = [rows(size) for size in sizes] if network is None else reads_of(network)
        if not len(inputs) == len(every_reads) == len(sizes):
            raise ValueError(f"inputs: expected {len(sizes)} layers, got {len(inputs)}")
        for i, layer in enumerate(state.layers):
            if ("b" in layer) != bias:
                raise ValueError(
                    f"state.layers[{i}]: expected {['R', 'b'] if bias else ['R']} as init with bias={bias} "
                    f"makes them, got {sorted(layer)}"
                )
        inputs = tuple(jnp.asarray(x) for x in inputs)
        for i, (x, reads) in enumerate(zip(inputs, every_reads, strict=True)):
            check_floating(f"inputs[{i}]", x)
            if reads.number(x) == 0:
                raise ValueError(f"inputs[{i}]: expected vectors of {reads.size}, got shape {list(x.shape)}")

        def learn(key: Key, layers: _Layers, inputs: _Inputs, eta: Array, number: Array) -> _Learned:
            keys = jax.random.split(key, len(layers))
            learned = [
                learn_layer(k, layer, reads, x, eta, number)
                for k, layer, reads, x in zip(keys, layers, every_reads, inputs, strict=True)
            ]
            return tuple(layer for layer, _ in learned), jnp.stack([loss for _, loss in learned])

        def wait(key: Key, layers: _Layers, inputs: _Inputs, eta: Array, number: Array) -> _Learned:
            return layers, jnp.full(len(layers), jnp.nan, jnp.result_type(*(layer["R"] for layer in layers)))

        operands = (key, state.layers, inputs, jnp.asarray(eta), jnp.asarray(number))
        if every == 1:
            layers, losses = learn(*operands)
        else:
            layers, losses = lazily(state.step % every == 0, learn, wait, *operands)
        return DecorrelationState(layers, state.step + 1), Decorrelated(losses)

    def learn_layer(
        key: Key, layer: dict[str, Array], reads: Reads, x: Array, eta: Array, number: Array
    ) -> tuple[dict[str, Array], Array]:
        total = reads.number(x)
        count = max(1, round(subsample * total))
        v = reads.take(x, None if count == total else jax.random.permutation(key, total)[:count])
        r = layer["R"]
        v, eta, number = v.astype(r.dtype), eta.astype(r.dtype), number.astype(r.dtype)
        z = decorrelate(layer, v)
        diagonal = jnp.mean(jnp.square(z), axis=0)
        changed = chosen.update(r, Moments(z.T @ (z @ r) / count, diagonal), eta, number)
        after = {"R": jnp.tril(changed) if lower else changed}
        if bias:
            after["b"] = layer["b"] - eta * jnp.mean(z, axis=0)
        return after, chosen.loss(sum_of_squares(z), diagonal, number)

    return Dynamics(init, update)


_Layers = tuple[dict[str, Array], ...]
_Inputs = tuple[Array, ...]
_Learned = tuple[_Layers, Array]


def decorrelate(layer: dict[str, Array], x: ArrayLike) -> Float[Array, "... size"]:
    """What R makes of inputs: `z = R x`, or `R x + b`.

    Args:
      layer: of a `DecorrelationState`.
      x: `[..., size]`.

    Returns:
      `[..., size]`.

    Raises:
      ValueError: for another size.

    Example:
      >>> decorrelate({"R": 2 * jnp.eye(3)}, jnp.ones((5, 3))).shape
      (5, 3)
    """
    x = jnp.asarray(x)
    size = layer["R"].shape[0]
    if x.ndim == 0 or x.shape[-1] != size:
        raise ValueError(f"x: expected shape [..., {size}], got {list(x.shape)}")
    z = x @ layer["R"].T
    return z + layer["b"] if "b" in layer else z


def decorrelation_loss(
    z: ArrayLike,
    *,
    kappa: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    variant: str = "paper",
) -> Float[Array, ""]:
    """How far vectors are from being uncorrelated.

    `((1 - kappa) sum C_off^2 + kappa sum V^2) / size^2` for "paper" and "decorbp",
    `mean (C - variance I)^2` for "seed" and "scaled"; `C = mean z z^T`

    Args:
      z: `[..., size]`.
      kappa, variance, variant: as for `decorrelation`.

    Returns:
      A scalar.

    Raises:
      ValueError: as `decorrelation`, and for a scalar z.

    Example:
      >>> float(decorrelation_loss(jnp.array([[1.0, 1.0], [1.0, -1.0]])))
      0.0
    """
    chosen, number = variant_of(variant, kappa, variance)
    z = jnp.asarray(z)
    if z.ndim < 2:
        raise ValueError(f"z: expected shape [..., size], got {list(z.shape)}")
    z = z.reshape(-1, z.shape[-1])
    return chosen.loss(sum_of_squares(z), jnp.mean(jnp.square(z), axis=0), jnp.asarray(number, z.dtype))

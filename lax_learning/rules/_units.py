"""Noise on units: a model at a batch, whose pre-activations can be moved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._precision import is_half, widened
from lax_learning._sites._batch import as_batch
from lax_learning._sites._equations import vary_as
from lax_learning._sites._plan import Tap
from lax_learning._sites._run import Hooks
from lax_learning.estimators._draws import scaled
from lax_learning.models import Model, Split
from lax_learning.rules._common import Sites, add, cut, joined, losses_of, masked, named, select
from lax_learning.rules._runs import by_batch, by_example, check_uncoupled
from lax_learning.types import Key, Loss, Params, Signals, Where

Taps = dict[int, Array]
"""Values by the index of a tap, with an axis of examples in front where credit goes by example."""


class Units(NamedTuple):
    """The selected pre-activations of a model at a batch.

    Fields:
      taps: in order.
      zs: the pre-activations.
      losses: what credit is given for: the loss of every example, or that of the batch.
      weight: derivative of the mean loss by one of `losses`.
      value: first result of `value_and_grad`.
      dtypes: of the parameters.
      moved: `feeds -> (losses, zs)` with something added to some of the pre-activations.
      pull_back: `deltas -> grads`.
      signals: `deltas -> signals` of a batch of one.
    """

    taps: list[Tap]
    zs: Taps
    losses: Array
    weight: float
    value: Any
    dtypes: list[Any]
    moved: Callable[[Taps], tuple[Array, Taps]]
    pull_back: Callable[[Taps], Params]
    signals: Callable[[Taps], Signals]

    def shapes(self, *, shared: bool = False) -> dict[int, jax.ShapeDtypeStruct]:
        """Shapes of noise: steps of scans first, as scans read it, then examples, one if `shared`."""
        lead = [1 if shared else length for length in self.losses.shape]
        return {
            tap.index: jax.ShapeDtypeStruct(
                (*tap.shape[: tap.steps], *lead, *tap.shape[tap.steps :]), tap.dtype
            )
            for tap in self.taps
        }

    def placed(self, noise: Taps) -> Taps:
        """Returns noise of these shapes in the shape of the pre-activations."""

        def of(tap: Tap) -> Array:
            z, drawn = self.zs[tap.index], noise[tap.index]
            drawn = jnp.moveaxis(drawn, tap.steps, 0) if self.losses.ndim else drawn
            return jnp.broadcast_to(drawn, z.shape).astype(z.dtype)

        return {tap.index: of(tap) for tap in self.taps}


def at_units(
    model: Model, loss: Loss, key: Key, params: Params, x: Any, y: Any, *, where: Where, batch: bool
) -> Units:
    """Runs a model on a batch and opens its pre-activations.

    Args:
      model, loss, key, params, x, y: as of a rule.
      where: which parameters' units are opened.
      batch: whether credit is for the mean loss of the batch.
    """
    x, size = as_batch(x)
    x = vary_as(x, key)
    if not batch:
        check_uncoupled(model, params, x, "pass batch=True for credit by the loss of the batch")
    split = Split(model, params)
    # Half precision would round the noise away: the passes run in float32, on the same parameters.
    wide_params, wide_x = widened((split.merge(split.parameters), x))
    program, run = (by_batch if batch else by_example)(model, wide_params, wide_x)
    sites = select(program, where)
    _check_taps(sites)
    parameters = program.split.parameters

    def credited(output: Any) -> tuple[Array, Array]:
        losses = losses_of(loss, output, y, size)
        mean = jnp.mean(losses)
        return (mean if batch else losses), mean

    def clean(parameters: list[Any]) -> tuple[Taps, Any]:
        output, zs = run(parameters, cut(sites.taps), None)
        return zs, output

    def moved(feeds: Taps) -> tuple[Array, Taps]:
        output, zs = run(parameters, Hooks(end=add), feeds)
        return credited(output)[0], zs

    def pull_back(deltas: Taps) -> Params:
        (grads,) = transpose({i: delta.astype(zs[i].dtype) for i, delta in deltas.items()})
        grads = [g.astype(w.dtype) for g, w in zip(grads, split.parameters, strict=True)]
        return split.gradients(masked(grads, sites))

    zs, transpose, output = jax.vjp(clean, parameters, has_aux=True)
    losses, mean = credited(output)
    return Units(
        taps=sites.taps,
        zs=zs,
        losses=losses,
        weight=1.0 if batch else 1 / size,
        value=joined(mean, model(params, x)[1] if model.has_aux else None, model),
        dtypes=[leaf.dtype for leaf in split.parameters],
        moved=moved,
        pull_back=pull_back,
        signals=lambda deltas: Signals(named({i: d if batch else d[0] for i, d in deltas.items()}, program)),
    )


def times(factors: Array, value: Array) -> Array:
    """Multiplies the values of every example by its factor, or all by one."""
    return scaled(factors.reshape(*factors.shape, *(1,) * (value.ndim - factors.ndim)), value)


def _check_taps(sites: Sites) -> None:
    """Raises TypeError if the model itself casts pre-activations to half precision."""
    for tap in sites.taps:
        if is_half(tap.dtype):
            names = ", ".join(sites.program.split.paths[i] for site in tap.sites for i in sorted(site.leaves))
            raise TypeError(
                "apply: expected pre-activations in float32 or wider, in which noise is not rounded away, "
                f"got {jnp.dtype(tap.dtype).name} at {names}; leave the casts of the model out"
            )

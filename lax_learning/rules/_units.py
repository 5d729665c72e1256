"""Rules with noise on units: a model at a batch, whose pre-activations can be perturbed."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_flag, check_key, check_samples
from lax_learning._precision import is_half, widened
from lax_learning._sites._batch import as_batch
from lax_learning._sites._coupling import check_uncoupled
from lax_learning._sites._equations import shard_as, vary_as
from lax_learning._sites._plan import Tap
from lax_learning._sites._program import Program
from lax_learning._sites._run import Feeds, Hooks
from lax_learning.estimators._draws import averaged, scaled
from lax_learning.models import Model, Split, check_where
from lax_learning.noise import Noise
from lax_learning.rules import _common as common
from lax_learning.rules._common import Result
from lax_learning.types import Key, Loss, Params, Rule, Where


class Units(NamedTuple):
    """The selected pre-activations of a model at a batch, with a leading axis of examples if not by batch."""

    taps: list[Tap]  # in order
    zs: Feeds  # the pre-activations
    losses: Array  # losses that units get credit for: of every example, or of the batch
    weight: float  # derivative of the mean loss with respect to one of `losses`
    dtypes: list[Any]  # of the parameters
    moved: Callable[[Feeds], tuple[Array, Feeds]]  # losses and zs after adding values to some of the zs

    def noise(self, draw: Noise, key: Key, scale: Array | None = None, *, shared: bool = False) -> Feeds:
        """Returns noise on the pre-activations, times `scale`; if `shared`, the same for all examples."""
        # It is drawn with steps of scans first, as scans read it, then examples.
        lead = [1 if shared else length for length in self.losses.shape]
        shapes = {tap: (*tap.shape[: tap.steps], *lead, *tap.shape[tap.steps :]) for tap in self.taps}
        unit = draw(key, {tap.index: jax.ShapeDtypeStruct(of, tap.dtype) for tap, of in shapes.items()})
        drawn = unit if scale is None else {i: scaled(scale, n) for i, n in unit.items()}

        def placed(tap: Tap) -> Array:
            z, n = self.zs[tap.index], drawn[tap.index]
            n = jnp.moveaxis(n, tap.steps, 0) if self.losses.ndim else n
            return shard_as(jnp.broadcast_to(n, z.shape).astype(z.dtype), z)

        return {tap.index: placed(tap) for tap in self.taps}


def unit_rule(
    model: Model,
    loss: Loss,
    draw: Callable[[Units, Key], Feeds],
    *,
    num_samples: int,
    where: Where,
    batch: bool,
) -> Rule:
    """Returns a rule whose teaching signals are the mean of `draw(units, key)` over `num_samples` draws."""
    common.check_parts(model, loss)
    check_samples("num_samples", num_samples)
    check_where("where", where)
    check_flag("batch", batch)

    def value_and_grad(
        key: Key, params: Params, state: Any, x: Any, y: Any, *, opened: bool = False
    ) -> Result:
        check_key("key", key)
        x, size = as_batch(x)
        x = vary_as(x, key)
        if not batch:
            check_uncoupled(model, params, x, "pass batch=True for credit by the loss of the batch")
        split = Split(model, params)
        # Half precision would round the noise away: the passes run in float32, on the same parameters.
        wide_params, wide_x = widened((split.merge(split.parameters), x))
        program = Program(model, wide_params, wide_x, by_example=not batch)
        sites = common.select(program, where)
        missed = [program.split.paths[i] for i in sorted(program.plan.untapped & sites.leaves)]
        if missed:
            raise TypeError(
                f"apply: expected real pre-activations, which get noise, got complex ones at {missed} "
                "that reach the output directly; use a rule that perturbs weights"
            )
        for tap in sites.taps:
            if is_half(tap.dtype):
                got = f"{jnp.dtype(tap.dtype).name} at {program.names(*tap.sites)}"
                raise TypeError(
                    "apply: expected pre-activations in float32 or wider, in which noise is not rounded "
                    f"away, got {got}; remove the casts from the model"
                )
        parameters = program.split.parameters
        run, clean = program.runner(Hooks(end=common.add)), program.runner(common.cut(sites.taps))

        def credited(output: Any) -> Array:
            losses = common.losses_of(loss, output, y, size)
            return jnp.mean(losses) if batch else losses

        def clean_run(parameters: list[Any]) -> tuple[Feeds, Any]:
            output, _, zs = clean(parameters, wide_x)
            return zs, output

        def moved(feeds: Feeds) -> tuple[Array, Feeds]:
            output, _, zs = run(parameters, wide_x, feeds=feeds)
            return credited(output), zs

        zs, pull_back, output = jax.vjp(clean_run, parameters, has_aux=True)
        losses, dtypes = credited(output), [leaf.dtype for leaf in split.parameters]
        units = Units(sites.taps, zs, losses, 1.0 if batch else 1 / size, dtypes, moved)
        deltas = averaged(partial(draw, units), num_samples)(key)
        value = common.value_of(losses, model, params, x)
        if opened:
            return value, common.result(program, True, deltas), state
        (grads,) = pull_back({i: delta.astype(zs[i].dtype) for i, delta in deltas.items()})
        grads = [g.astype(dtype) for g, dtype in zip(grads, dtypes, strict=True)]
        return value, split.gradients(common.masked(grads, sites)), state

    return common.delta_rule(model, common.stateless(model), value_and_grad, masks=where is not None)


def times(factors: Array, value: Array) -> Array:
    """Multiplies the values of every example by its factor, or all values by a single factor."""
    return scaled(factors.reshape(*factors.shape, *(1,) * (value.ndim - factors.ndim)), value)

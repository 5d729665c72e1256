"""Shared parts of the rules: losses, selection of sites, gradients and teaching signals."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._arrays import as_arrays, by_path, is_numbers
from lax_learning._checks import check_callable, check_floating, check_key, describe
from lax_learning._precision import is_half, raised
from lax_learning._sites import _equations as equations
from lax_learning._sites._batch import as_batch
from lax_learning._sites._plan import Tap
from lax_learning._sites._program import Program
from lax_learning._sites._run import Feeds, Hooks
from lax_learning.models import Model, Split, check_model, selects
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where

Result = tuple[Any, Any, Any]
"""`(loss, grads, state)`, or signals in place of gradients if a rule is called with `opened`."""


def delta_rule(
    model: Model, init: Any, value_and_grad: Callable[..., Result], *, masks: bool = False
) -> Rule:
    """Returns a rule whose gradients are the pull-back of teaching signals.

    `value_and_grad(..., opened=False)` returns signals in place of gradients if `opened`. With `masks`, it
    sets some gradients to zero, so signals do not determine gradients, and the rule has none.
    """

    def signals(key: Key, params: Params, state: Any, x: Any, y: Any) -> Signals:
        _, size = as_batch(x)
        if size != 1:
            raise ValueError(f"x: expected a batch of one example, got {size}")
        return value_and_grad(key, params, state, x, y, opened=True)[1]

    return Rule(init, value_and_grad, model.trainable, None if masks else signals)


def stateless(model: Model) -> Callable[[Key, Params, Any], tuple[()]]:
    """Returns the init of a rule without state, which only checks its arguments."""

    def init(key: Key, params: Params, x: Any) -> tuple[()]:
        check_key("key", key)
        Split(model, params)
        as_batch(x, only_shapes=True)
        return ()

    return init


def starting(program: Program, opened: bool) -> Any:
    """Returns the variables of differentiation: parameters, or zeros at the taps if signals are wanted."""
    if not opened:
        return program.split.parameters
    lead = (1,) if program.by_example else ()
    return {tap.index: jnp.zeros((*lead, *tap.shape), tap.dtype) for tap in program.plan.all_taps}


def result(program: Program, opened: bool, found: Any, sites: "Sites | None" = None) -> Params | Signals:
    """Returns derivatives with respect to the variables from `starting`, as signals or gradients.

    Signals are zero at taps that are not among the variables.
    """
    if not opened:
        return program.split.gradients(found if sites is None else masked(found, sites))
    deltas: Feeds = {i: d[0] if program.by_example else d for i, d in found.items()}
    taps = program.named_taps.items()
    return Signals({name: deltas.get(tap.index, jnp.zeros(tap.shape, tap.dtype)) for name, tap in taps})


def check_parts(model: Any, loss: Any) -> None:
    """Raises TypeError unless a rule is given a model and a loss."""
    check_model(model)
    check_loss(loss)


def check_loss(loss: Any) -> None:
    """Raises TypeError unless a loss is a function of two arguments."""
    expected = "a function (output, y) -> losses, such as squared_error"
    check_callable("loss", loss, expected, num_arguments=2)


def losses_of(loss: Loss, output: Any, y: Any, size: int) -> Array:
    """Returns `loss(output, y)` in float32 or wider, checked to be one number per example."""

    def check_axis(at: str, leaf: Any, expected: str) -> None:
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(f"{at}: expected {expected} as in x, got {describe(leaf)}")

    for leaf in jax.tree.leaves(output):
        check_axis("apply", leaf, f"an output with a leading axis of {size} examples")
    y = as_arrays("y", y, is_numbers)
    by_path("y", lambda at, leaf: check_axis(at, leaf, f"{size} examples"), y)
    losses = loss(output, y)
    check_floating("loss", losses)
    losses = jnp.asarray(losses)
    if losses.shape != (size,):
        expected = f"one number per example, shape [{size}]"
        raise ValueError(f"loss: expected {expected}, got {describe(losses)}; the rule itself takes the mean")
    return losses.astype(raised(losses))


def error_of(loss: Loss, output: Any, y: Any, size: int, weight: float) -> tuple[Array, Any]:
    """Returns the losses of all examples, and `weight` times the derivative of their sum at the output."""
    losses, transpose = jax.vjp(lambda output: losses_of(loss, output, y, size), output)
    (error,) = transpose(jnp.full_like(losses, weight))
    return losses, error


def joined(loss: Array, aux: Any, model: Model) -> Any:
    """Returns the first result of `value_and_grad`."""
    return (loss, aux) if model.has_aux else loss


def value_of(losses: Array, model: Model, params: Params, x: Any) -> Any:
    """Returns the first result of `value_and_grad`, with aux from another run of the model on the batch."""
    return joined(jnp.mean(losses), model(params, x)[1] if model.has_aux else None, model)


class Sites(NamedTuple):
    """A program, with the taps and parameters that `where=` selects."""

    program: Program
    taps: list[Tap]  # in order
    leaves: frozenset[int]  # positions of the parameters


def select_paths(where: Where, split: Split) -> list[str]:
    """Returns the paths of the selected parameters; raises ValueError if there are none."""
    paths = [path for path in split.parameter_paths if selects(where, path)]
    if not paths:
        expected = f"to select a parameter out of {split.parameter_paths}"
        raise ValueError(f"where: expected {expected}, got {where!r}, which selects none")
    return paths


def select(program: Program, where: Where) -> Sites:
    """Selects parameters by path, and the taps of their sites; raises ValueError if a site is split."""
    paths = select_paths(where, program.split)
    chosen = frozenset(i for i, path in enumerate(program.split.paths) if path in paths)
    for site in program.plan.all_sites:
        if site.leaves & chosen and site.leaves - chosen:
            raise ValueError(
                f"where: expected all or none of the parameters {program.names(site)} of the site "
                f"{site.operation!r}, got {where!r}, which selects only some{site.at_source}"
            )
    taps = [tap for tap in program.plan.all_taps if any(site.leaves & chosen for site in tap.sites)]
    return Sites(program, taps, chosen)


def masked(grads: list[Array], sites: Sites) -> list[Array]:
    """Returns gradients, set to zero for parameters that are not selected."""
    places = [i for i, trained in enumerate(sites.program.split.trained) if trained]
    return [g if i in sites.leaves else jnp.zeros_like(g) for i, g in zip(places, grads, strict=True)]


def check_wide(model: Model, params: Params, x: Any) -> None:
    """Raises TypeError if a model casts to half precision before or at its products or its output."""
    body, _ = equations.trace(lambda params, x: model(params, x)[0], params, x)
    products = (e for e in equations.all_equations(body.jaxpr) if e.primitive.name in equations.BILINEAR)
    results: list[Any] = [*body.jaxpr.outvars, *(var for equation in products for var in equation.outvars)]
    for var in results:
        if jnp.issubdtype(var.aval.dtype, jnp.floating) and is_half(var.aval.dtype):
            raise TypeError(
                "apply: expected products and an output in float32 or wider, in which differences are not "
                f"rounded away, got {describe(var.aval)}; remove the casts from the model"
            )


def cut(taps: list[Tap]) -> Hooks:
    """Returns the hooks of a run in which taps emit z and stop the gradient after it."""
    indices = {tap.index for tap in taps}

    def end(tap: Tap, z: Array, feed: Any) -> tuple[Array, Any]:
        return (jax.lax.stop_gradient(z), z) if tap.index in indices else (z, None)

    return Hooks(end=end)


def add(tap: Tap, z: Array, feed: Any) -> tuple[Array, Any]:
    """Adds the value fed to a tap, if any, and emits the sum."""
    return (z, None) if feed is None else (z + feed, z + feed)

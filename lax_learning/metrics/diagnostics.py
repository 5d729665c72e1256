"""Diagnostics: scales by depth, agreement between batches, frozen blocks, steps to an equal decrease."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._arrays import as_real, as_real_leaves, check_same_structure
from lax_learning._checks import check_instance, check_positive
from lax_learning._precision import raised, widened
from lax_learning._scaling import divided, norm, root_mean_square, scale_of
from lax_learning._sites._program import Program
from lax_learning._sites.tapped import tapped
from lax_learning.metrics.moments import count_of
from lax_learning.metrics.quality import Estimate, jackknife
from lax_learning.metrics.sources import as_batch_of_one, as_examples
from lax_learning.models import Model, check_model, check_where, selects
from lax_learning.types import Key, Params, Rule, Where


class Scales(NamedTuple):
    """Root mean squares over examples and units, by the name of the tap; `[steps]` inside a scan.

    Fields:
      activity: of the pre-activations `z`.
      signal: of the teaching signals of single examples, which replace `dL/dz`.
    """

    activity: dict[str, Array]
    signal: dict[str, Array]


def depth_scales(model: Model, rule: Rule, key: Key, params: Params, state: Any, x: Any, y: Any) -> Scales:
    """Measures the size of activities and teaching signals at every depth of a model.

    `sqrt(mean z^2)` and `sqrt(mean delta^2)`. Each step of a scan has its own scale; for stacked layers,
    steps are depths. Costs one forward pass, plus the signals of each example.

    Args:
      model: the model of the rule; `ll.tapped(model).shapes(params, x)` lists its taps by depth.
      rule: any rule with teaching signals (`rule.signals`), so not weight perturbation.
      key: PRNG key for the draws of the rule.
      params, state: parameters of the model, and state of the rule.
      x, y: a batch and its targets.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda w, x: 4 * (x @ w))
      >>> rule, key, x = ll.backprop(model, ll.squared_error), jax.random.key(0), jnp.ones((3, 2))
      >>> scales = depth_scales(model, rule, key, jnp.eye(2), (), x, 3 * x)
      >>> float(scales.activity[""]), float(scales.signal[""])  # z = 1, and 2 (4 z - 3) 4
      (1.0, 8.0)
    """
    check_model(model)
    check_instance("rule", rule, Rule, "a Rule")
    if rule.signals is None:
        raise ValueError("rule: expected a rule with teaching signals, got one without")
    signals, examples = rule.signals, as_examples(key, x, y)
    deltas = jax.vmap(lambda one: signals(*as_batch_of_one(one, params, state)).deltas, out_axes=-1)(examples)
    activities = tapped(model).run(params, examples[1]).pre_activations
    steps = {name: tap.steps for name, tap in Program(model, params, examples[1]).named_taps.items()}
    expected, got = ([f"{name}: {z.size}" for name, z in sorted(of.items())] for of in (activities, deltas))
    if got != expected:
        raise ValueError(f"rule: expected signals at the taps of model, with sizes {expected}, got {got}")
    return Scales(*(
        {name: root_mean_square(z, tuple(range(steps[name], z.ndim))) for name, z in values.items()}
        for values in widened((activities, deltas))
    ))  # fmt: skip


def pairwise_cosine(samples: PyTree) -> Estimate:
    """Computes the mean cosine over all pairs of gradients, which measures the stability of their direction.

    `sum_{s != t} cos(g_s, g_t) / (T (T - 1))`, with a jackknife standard error: 1 if all gradients have the
    same direction, about 0 if their directions are unrelated, or if all are zero. In many dimensions, it is
    about `S / (1 + S)`, where `S = |E g|^2 / tr Cov g` is the signal-to-noise ratio.

    `samples` is a pytree whose leaves have a leading axis of T >= 3 gradients, for example of T batches.

    Example:
      >>> gradients = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
      >>> round(float(jax.jit(pairwise_cosine)(gradients).value), 3)
      0.333
    """
    samples = as_real_leaves("samples", samples)
    count = count_of("samples", samples)
    units = jax.vmap(_unit)(samples)
    total = jnp.sum(units, axis=0)
    squares, along = jnp.sum(jnp.square(units), axis=1), units @ total
    pairs = jnp.sum(squares) - squares, jnp.sum(jnp.square(total)) - 2 * along + squares
    left_out = (pairs[1] - pairs[0]) / ((count - 1) * (count - 2))
    value = (jnp.sum(jnp.square(total)) - jnp.sum(squares)) / (count * (count - 1))
    return jackknife(jnp.clip(value, -1, 1), left_out)


def _unit(tree: PyTree) -> Array:
    """Returns a pytree as one vector of length 1, or of zeros."""
    leaves = jax.tree.leaves(tree)
    vector = jnp.concatenate([leaf.astype(raised(*leaves)).ravel() for leaf in leaves])
    vector = divided(vector, scale_of(vector))
    length = norm(vector)
    return vector / jnp.where(length == 0, 1, length)


def train_only(model: Model, where: Where) -> Model:
    """Returns the model with all but some parameters held constant: a baseline with frozen random blocks.

    `where` selects the trained part: a glob on paths such as `"readout/*"`, or a predicate `path -> bool`.
    Parameters that the model does not train stay constant too. The gradients of constants are zero; weight
    decay still changes them, unless the optimiser is wrapped in `optax.masked`.

    Example:
      >>> import lax_learning as ll
      >>> model = train_only(ll.mlp((3, 4, 2)), "1/*")
      >>> rule, key = ll.backprop(model, ll.squared_error), jax.random.key(0)
      >>> params = model.init(key)
      >>> _, grads, _ = rule.value_and_grad(key, params, (), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> bool(grads[0]["w"].any()), bool(grads[1]["w"].any())
      (False, True)
    """
    check_model(model)
    check_where("where", where)
    return replace(
        model, trainable=lambda path: selects(where, path) and selects(model.trainable, path, "trainable")
    )


def steps_to_decrease(losses: Any, decrease: Any, steps: Any = None) -> Array:
    """Returns the number of steps after which a loss has first fallen by a given amount.

    The first crossing of `losses[0] - decrease`, with linear interpolation. To compare two rules at equal
    decrease, take the ratio of their steps in training; to compare a direction `g` with the gradient, the
    ratio of the lengths `t |g|` along `params - t g`, which is `1 / cos(g, gradient)` for short steps.

    Infinite if the loss never falls that far, NaN if an earlier loss is NaN. There is no interpolation from
    an infinite loss.

    Args:
      losses: `[n]`, always on the same examples.
      decrease: amount by which the loss falls, > 0.
      steps: `[n]`, increasing: number of updates, or length, at each loss. By default 0, 1, 2, ...

    Example:
      >>> float(steps_to_decrease([2.0, 1.75, 1.25, 1.0], 0.5))
      1.5
    """
    losses = as_real("losses", losses)
    check_positive("decrease", decrease)
    if losses.ndim != 1 or losses.size < 2:
        raise ValueError(f"losses: expected shape [n] with n >= 2, got {list(losses.shape)}")
    steps = as_real("steps", jnp.asarray(jnp.arange(losses.size) if steps is None else steps, losses.dtype))
    check_same_structure(("steps", "losses"), (steps, losses))
    level = losses[0] - decrease
    reached = (losses <= level) & (losses < losses[0])  # even if the decrease is lost in rounding
    after = jnp.argmax(reached)  # 0 if never
    before = jnp.maximum(after - 1, 0)
    share = (losses[before] - level) / (losses[before] - losses[after])
    share = jnp.where(jnp.isinf(losses[before]), 1, share)
    crossing = steps[before] + share * (steps[after] - steps[before])
    never = jnp.where(jnp.any(jnp.isnan(losses)), jnp.nan, jnp.inf)
    unknown = jnp.any(jnp.isnan(losses) & (jnp.arange(losses.size) < after))
    return jnp.where(jnp.any(reached), jnp.where(unknown, jnp.nan, crossing), never)

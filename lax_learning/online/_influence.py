"""Learning while a sequence runs: the influence of every weight on the state, carried forwards in time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import check_key, check_memory
from lax_learning._precision import raised, widened
from lax_learning._sites._batch import as_batch
from lax_learning._sites._coupling import check_uncoupled
from lax_learning._sites._equations import vary_as
from lax_learning.models import Model, Split
from lax_learning.online._recurrent import Recurrent, as_steps
from lax_learning.rules._common import losses_of
from lax_learning.types import Key, Loss, Online, Params

Step = Callable[[Params, Any, Any], tuple[Any, Any]]
"""`(params, h, x) -> (h, output)` of one example as a batch of one."""

Cotangent = tuple[Any, Array]
"""By the next state, and by the loss."""


class Memory(NamedTuple):
    """Memory of an online rule between two steps of a sequence.

    Fields:
      h: state of the network, `[batch, ...]`.
      influence: by weight of the cell, `[batch, entries of the state, *weight]`: the derivative of the state
        by the weight. For rules that follow a unit's own state alone, the entries are those of the unit that
        the weight belongs to: one, or as many as the state has leaves.
    """

    h: Any
    influence: PyTree


class Entries(NamedTuple):
    """The entries of the state whose influence is kept.

    Fields:
      number: `h -> int`, of a batch of one.
      directions: `h -> cotangents of h`, with a leading axis of entries.
      mix: `(cotangent of h, influence) -> cotangent of the weight`, by the influence of the weight on h.
    """

    number: Callable[[Any], int]
    directions: Callable[[Any], Any]
    mix: Callable[[Any, Array], Array]


def through_steps(
    online: Online, after: Callable[[Any, Array], Any] = lambda state, losses: state
) -> Callable[..., Any]:
    """The `value_and_grad` that is a scan of the steps.

    Args:
      online: the rule step by step.
      after: `(state, losses [steps]) -> state` at the end of the sequences.
    """

    def value_and_grad(key: Key, params: Params, state: Any, x: Any, y: Any) -> tuple[Any, Params, Any]:
        check_key("key", key)
        xs, ys = as_steps(x, y)
        memory = online.start(params, jax.tree.map(lambda leaf: leaf[0], xs))
        zeros = jax.tree.map(jnp.zeros_like, params)
        begin = vary_as((memory, zeros), params, x, y, state, key)
        keys = jax.random.split(key, jax.tree.leaves(xs)[0].shape[0])

        def step(carry: Any, inputs: Any) -> tuple[Any, Array]:
            memory, grads = carry
            step_key, x, y = inputs
            loss, found, memory = online.step(step_key, params, state, memory, x, y)
            return (memory, jax.tree.map(jnp.add, grads, found)), loss

        (_, grads), losses = jax.lax.scan(step, begin, (keys, xs, ys))
        return losses.sum(), grads, after(state, losses)

    return value_and_grad


def online(
    net: Recurrent, loss: Loss, entries: Entries, step_at: Callable[[Params, Any, Any, Any], Step]
) -> Online:
    """Carries the influence of weights on the state forwards.

    `P_t = (dh_t/dh_{t-1}) P_{t-1} + dh_t/dw`, `dw_t = (dl_t/dh_{t-1}) P_{t-1} + dl_t/dw`

    Args:
      net, loss: as of a rule.
      entries: which entries of the state are followed.
      step_at: `(params, state, h, x) -> step`, whose derivatives are those of the rule; of h and x, both of
        one example, only shapes are used.
    """

    def start(params: Params, x: Any) -> Memory:
        x, size = as_batch(x)
        Split(net, params)
        params, x = widened((params, x))
        h = net.carry(params, x)
        number = entries.number(first(h))
        shapes = [(size, number, *w.shape) for w in jax.tree.leaves(params["cell"])]
        check_memory("params", shapes)
        influence = jax.tree.map(lambda w: jnp.zeros((size, number, *w.shape), w.dtype), params["cell"])
        return Memory(h, vary_as(influence, params, x))

    def step(
        key: Key, params: Params, state: Any, memory: Memory, x: Any, y: Any
    ) -> tuple[Any, Params, Memory]:
        check_key("key", key)
        x, size = as_batch(x)
        wide, x, memory = vary_as((*widened((params, x)), memory), params, state, memory, x, y)
        check_examples(net, wide, memory.h, x)
        run = step_at(wide, state, first(memory.h), first(x))

        def example(h: Any, influence: PyTree, x: Any, y: Any) -> tuple[Any, PyTree, Array, Params]:
            h, x, y = jax.tree.map(lambda leaf: leaf[None], (h, x, y))

            def forward(params: Params, h: Any) -> tuple[Any, Array]:
                h, output = run(params, h, x)
                return h, losses_of(loss, output, y, 1)[0]

            (after, value), pull_back = jax.vjp(forward, wide, h)

            def through(cotangent: Cotangent) -> Params:
                direct, at_h = pull_back(cotangent)
                by_past = jax.tree.map(lambda p: entries.mix(at_h, p), influence)
                return {**direct, "cell": jax.tree.map(jnp.add, direct["cell"], by_past)}

            nothing = jnp.zeros_like(value)
            directions = vary_as(entries.directions(after), after)
            moved = jax.vmap(lambda at: through((at, nothing))["cell"])(directions)
            grads = through((jax.tree.map(jnp.zeros_like, after), jnp.ones_like(value)))
            return jax.tree.map(lambda leaf: leaf[0], after), moved, value, grads

        after, moved, values, grads = jax.vmap(example)(*memory, x, y)
        # The mean over examples as a product: on CPUs XLA takes six times as long for a sum over their axis.
        grads = jax.tree.map(
            lambda g, w: jnp.tensordot(jnp.full(size, 1 / size, g.dtype), g, 1).astype(w.dtype), grads, params
        )
        return jnp.mean(values), grads, Memory(after, moved)

    return Online(start, step)


def as_model(net: Recurrent) -> Model:
    """The step of a network as a model of `(h, x)`."""
    return Model(lambda params, inputs: net.step(params, *inputs))


def check_examples(net: Recurrent, params: Params, h: Any, x: Any) -> None:
    """Raises ValueError if the examples of a batch depend on each other."""
    remedy = "use running statistics in the place of those of the batch"
    check_uncoupled(as_model(net), params, (h, x), remedy)


def first(batch: Any) -> Any:
    """The first example, as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[:1], batch)


def _ravel(h: Any) -> Array:
    leaves = jax.tree.leaves(h)
    dtype = raised(*leaves)
    return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves])


def _unit_vectors(h: Any) -> Any:
    leaves, structure = jax.tree.flatten(h)
    sizes = [leaf.size for leaf in leaves]
    rows, places, at = jnp.eye(sum(sizes)), [], 0
    for leaf, size in zip(leaves, sizes, strict=True):
        columns = rows[:, at : at + size].reshape(-1, *leaf.shape)
        places.append(columns.astype(leaf.dtype))
        at += size
    return jax.tree.unflatten(structure, places)


EVERY = Entries(
    number=lambda h: _ravel(h).size,
    directions=_unit_vectors,
    mix=lambda at_h, influence: jnp.tensordot(_ravel(at_h), influence, 1),
)
"""All entries of the state: exact, for any cell."""


def _one_leaf_each(h: Any) -> Any:
    leaves, structure = jax.tree.flatten(h)
    each = [jnp.zeros((len(leaves), *leaf.shape), leaf.dtype).at[i].set(1) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, each)


def _of_own_unit(at_h: Any, influence: Array) -> Array:
    """Sums over the leaves of the state; units are the last axis of state and weights."""
    return sum(
        (leaf.reshape(-1) * influence[i] for i, leaf in enumerate(jax.tree.leaves(at_h))),
        jnp.zeros(influence.shape[1:], influence.dtype),
    )


OWN = Entries(number=lambda h: len(jax.tree.leaves(h)), directions=_one_leaf_each, mix=_of_own_unit)
"""For every weight the state of its own unit alone, where the step has no derivative to others."""

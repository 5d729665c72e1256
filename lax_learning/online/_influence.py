"""Online learning: the influence of every weight on the state, propagated forward in time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from lax_learning._checks import check_key, check_memory
from lax_learning._precision import raised, widened
from lax_learning._sites._batch import as_batch
from lax_learning._sites._equations import vary_as
from lax_learning.estimators._draws import as_gradient
from lax_learning.models import Split
from lax_learning.online._recurrent import Recurrent, as_steps, check_examples, first
from lax_learning.rules._common import losses_of
from lax_learning.types import Key, Loss, Online, Params

Step = Callable[[Params, Any, Any], tuple[Any, Any]]
"""`(params, h, x) -> (h, output)` of one example as a batch of one."""


class Memory(NamedTuple):
    """The state of the network, and its derivatives w.r.t. cell weights, `[batch, entries, *weight]`.

    The entries are the whole state, or only the state of the weight's own unit, one entry per leaf.
    """

    h: Any
    influence: PyTree


def through_steps(
    online: Online, after: Callable[[Any, Array], Any] = lambda state, losses: state
) -> Callable[..., Any]:
    """Returns a `value_and_grad` that scans over steps; `after(state, losses)` is the new state."""

    def value_and_grad(key: Key, params: Params, state: Any, x: Any, y: Any) -> tuple[Any, Params, Any]:
        check_key("key", key)
        xs, ys = as_steps(x, y)
        memory = online.start(params, jax.tree.map(lambda leaf: leaf[0], xs))
        zeros = vary_as(jax.tree.map(jnp.zeros_like, params), params)
        begin = vary_as(memory, params, x, y, state, key), zeros
        keys = jax.random.split(key, jax.tree.leaves(xs)[0].shape[0])

        def step(carry: Any, inputs: Any) -> tuple[Any, Array]:
            memory, grads = carry
            step_key, x, y = inputs
            loss, found, memory = online.step(step_key, params, state, memory, x, y)
            return (memory, jax.tree.map(jnp.add, grads, found)), loss

        (_, grads), losses = jax.lax.scan(step, begin, (keys, xs, ys))
        return losses.sum(), grads, after(state, losses)

    return value_and_grad


def _raveled(h: Any) -> tuple[Array, Callable[[Array], Any]]:
    return ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(raised(*jax.tree.leaves(h))), h))


def _every_entry(h: Any) -> Any:
    flat, unravel = _raveled(h)
    vectors = jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
    return jax.tree.map(lambda vector, leaf: vector.astype(leaf.dtype), vectors, h)


def _of_every_entry(at_h: Any, influence: Array) -> Array:
    return jnp.tensordot(_raveled(at_h)[0], influence, 1)


def online(
    net: Recurrent,
    loss: Loss,
    step_at: Callable[[Params, Any, Any, Any], Step],
    entries: Callable[[Any], Any] = _every_entry,
    mix: Callable[[Any, Array], Array] = _of_every_entry,
) -> Online:
    """Propagates the influence of weights on the state forward in time.

    `P_t = (dh_t/dh_{t-1}) P_{t-1} + dh_t/dw`, `dw_t = (dl_t/dh_{t-1}) P_{t-1} + dl_t/dw`

    Args:
      net, loss: as for the rules.
      step_at: `(params, state, h, x) -> step` that is differentiated; uses only the shapes of h and x.
      entries: `h -> cotangents of h`, one for each entry of the state whose influence is kept.
      mix: `(cotangent of h, influence of a weight on h) -> cotangent of the weight`.
    """

    def start(params: Params, x: Any) -> Memory:
        x, size = as_batch(x)
        Split(net, params)
        params, x = widened((params, x))
        h = net.carry(params, x)
        number = jax.tree.leaves(jax.eval_shape(entries, first(h)))[0].shape[0]
        check_memory("params", [(size, number, *w.shape) for w in jax.tree.leaves(params["cell"])])
        influence = jax.tree.map(lambda w: jnp.zeros((size, number, *w.shape), w.dtype), params["cell"])
        return Memory(h, vary_as(influence, params, x))

    def step(
        key: Key, params: Params, state: Any, memory: Memory, x: Any, y: Any
    ) -> tuple[Any, Params, Memory]:
        check_key("key", key)
        x, size = as_batch(x)
        wide, x, memory = vary_as((*widened((params, x)), memory), params, state, memory, x, y)
        check_examples(net, wide, memory.h, x)
        run = step_at(wide, vary_as(state, wide), first(memory.h), first(x))

        def example(h: Any, influence: PyTree, x: Any, y: Any) -> tuple[Any, PyTree, Array, Params]:
            h, x, y = jax.tree.map(lambda leaf: leaf[None], (h, x, y))

            def forward(params: Params, h: Any) -> tuple[Any, Array]:
                h, output = run(params, h, x)
                return h, losses_of(loss, output, y, 1)[0]

            (after, value), pull_back = jax.vjp(forward, wide, h)

            def through(of_state: Any, of_loss: Array) -> Params:
                direct, at_h = pull_back((of_state, of_loss))
                by_past = jax.tree.map(lambda p: mix(at_h, p), influence)
                return {**direct, "cell": jax.tree.map(jnp.add, direct["cell"], by_past)}

            cotangents = vary_as(entries(after), after)
            moved = jax.vmap(lambda at: through(at, jnp.zeros_like(value))["cell"])(cotangents)
            grads = through(jax.tree.map(jnp.zeros_like, after), jnp.ones_like(value))
            return jax.tree.map(lambda leaf: leaf[0], after), moved, value, grads

        after, moved, values, grads = jax.vmap(example)(*memory, x, y)
        # The mean over examples as a product: on CPUs, a sum over their axis takes XLA six times as long.
        grads = jax.tree.map(lambda g: jnp.tensordot(jnp.full(size, 1 / size, g.dtype), g, 1), grads)
        return jnp.mean(values), as_gradient(grads, params), Memory(after, moved)

    return Online(start, step)

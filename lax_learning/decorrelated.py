"""Networks on decorrelated inputs, so that any rule runs on them without knowing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    as_array,
    check_function,
    check_instance,
    check_key,
    check_layers,
    check_sequence,
    check_shapes,
)
from lax_learning._precision import raised
from lax_learning._structure import mapping_like, sequence_like
from lax_learning.decorrelation import DecorrelationState, check_state, reads_of
from lax_learning.layers import Linear, Reads
from lax_learning.networks import Network
from lax_learning.types import Dynamics, Key, Params, Rule, StatefulRule


def decorrelated(network: Network, state: DecorrelationState) -> Network:
    """The network with the inputs of every layer decorrelated: `z_l = linear(w_l, R_l a_{l-1})`.

    Its params are those of the network, and every rule takes it in place of the network. R is no parameter:
    gradients have the structure of the params, and flow on through `R^T`. A convolution runs with one
    fused kernel, `w R`. R is cast to the dtype of the inputs, so that a network keeps its precision.

    Args:
      network: of layers that say what they read, such as dense ones and convolutions.
      state: of `decorrelation`; it may be traced.

    Returns:
      The network.

    Raises:
      ValueError: for a layer that does not say what it reads, or another number of layers or sizes.

    Example:
      >>> import jax.numpy as jnp
      >>> from lax_learning.decorrelation import decorrelation
      >>> from lax_learning.networks import mlp
      >>> network = mlp((3, 4, 2))
      >>> state = decorrelation(0.1).init(network)
      >>> params = network.init(jax.random.key(0))
      >>> decorrelated(network, state).apply(params, jnp.ones((5, 3))).shape
      (5, 2)
    """
    every_reads = _fitting_reads(network, state)
    layers = [
        layer._replace(linear=_decorrelated_linear(layer.linear, reads, learned))
        for layer, reads, learned in zip(network.layers, every_reads, state.layers, strict=True)
    ]
    return Network(tuple(layers), network.input_shape)


def _decorrelated_linear(linear: Linear, reads: Reads, learned: dict[str, Array]) -> Linear:
    """`linear(w, R x + b)`, with R and b in the dtype of x: a network keeps its precision."""

    def apply(w: Array, x: Array) -> Array:
        r = jnp.asarray(learned["R"], x.dtype)
        b = jnp.asarray(learned["b"], x.dtype) if "b" in learned else None
        return reads.transformed(linear, r, b)(w, x)

    return apply


def fold(network: Network, params: Params, state: DecorrelationState) -> Params:
    """Plain weights, with which the network itself does what it does on decorrelated inputs.

    `w <- R^T w`, `b <- b + b_R w`

    Args:
      network: the network, not decorrelated.
      params: learned on decorrelated inputs.
      state: of `decorrelation`.

    Returns:
      Params of the network, in their dtypes and containers; entries other than `w` and `b` as they are.

    Raises:
      ValueError: as `decorrelated`, and for params that are not the network's.

    Example:
      >>> from lax_learning.decorrelation import decorrelation
      >>> from lax_learning.networks import mlp
      >>> network = mlp((3, 4, 2))
      >>> params = network.init(jax.random.key(0))
      >>> fold(network, params, decorrelation(0.1).init(network))[0]["w"].shape
      (3, 4)
    """
    every_reads = _fitting_reads(network, state)
    check_sequence("params", params, "a sequence with the weights of every layer")
    check_layers("params", params, len(network.layers))
    folded = []
    for weights, reads, learned in zip(params, every_reads, state.layers, strict=True):
        w = jnp.asarray(weights["w"])
        dtype = raised(w, learned["R"])
        matrix = reads.flat(w).astype(dtype)
        r = jnp.asarray(learned["R"], dtype)
        plain = {"w": reads.unflat(r.T @ matrix, w.shape).astype(w.dtype)}
        if "b" in learned:
            b = jnp.asarray(weights["b"]) if "b" in weights else jnp.zeros(matrix.shape[1:], w.dtype)
            check_shapes([f"params[{len(folded)}]['b']"], [b], [matrix.shape[1:]])
            plain["b"] = (jnp.asarray(learned["b"], dtype) @ matrix + b.astype(dtype)).astype(b.dtype)
        folded.append(mapping_like(weights, **plain))
    return sequence_like(params, folded)


def decorrelated_rule(
    make_rule: Callable[[Network], Rule], network: Network, dynamics: Dynamics
) -> StatefulRule:
    """Any rule on decorrelated inputs, with the update of R in the same step.

    Args:
      make_rule: `network -> rule`, for example `lambda network: feedback_alignment(network, loss)`.
      network: the network.
      dynamics: from `decorrelation`.

    Returns:
      A rule with state for `make_train`. R is learned from the inputs without noise, before the weights
      change.

    Raises:
      ValueError: as `decorrelated`.

    Example:
      >>> import jax.numpy as jnp
      >>> from lax_learning.decorrelation import decorrelation
      >>> from lax_learning.losses import squared_error
      >>> from lax_learning.networks import mlp
      >>> from lax_learning.rules import backprop
      >>> rule = decorrelated_rule(lambda n: backprop(n, squared_error), mlp((3, 4, 2)), decorrelation(0.1))
      >>> params, state = rule.init(jax.random.key(0))
      >>> x, y = jnp.ones((5, 3)), jnp.ones((5, 2))
      >>> loss, grads, state = rule.value_and_grad(jax.random.key(1), params, state, x, y)
      >>> sorted(grads[0])
      ['b', 'w']
    """
    check_function("make_rule", make_rule, "a function from a network to a rule", network)
    check_instance("dynamics", dynamics, Dynamics, "Dynamics, from decorrelation")
    reads_of(network)

    def rule_on(network: Network) -> Rule:
        rule = make_rule(network)
        check_instance("make_rule", rule, Rule, "a function from a network to a Rule")
        return rule

    def init(key: Key) -> tuple[Params, DecorrelationState]:
        check_key("key", key)
        return rule_on(network).init(key), dynamics.init(network)

    def value_and_grad(
        key: Key, params: Params, state: DecorrelationState, x: ArrayLike, y: ArrayLike
    ) -> tuple[Array, Params, DecorrelationState]:
        check_key("key", key)
        check_sequence("params", params, "a sequence with the weights of every layer")
        x, y = as_array("x", x), as_array("y", y)
        rule_key, update_key = jax.random.split(key)
        on_decorrelated = decorrelated(network, state)
        loss, grads = rule_on(on_decorrelated).value_and_grad(rule_key, params, x, y)
        inputs = on_decorrelated.forward(params, x).inputs
        return loss, grads, dynamics.update(update_key, state, inputs, network)[0]

    def plain(params: Params, state: DecorrelationState) -> Params:
        return fold(network, params, state)

    return StatefulRule(init, value_and_grad, plain)


def _fitting_reads(network: Network, state: DecorrelationState):
    every_reads = reads_of(network)
    expected = [reads.size for reads in every_reads]
    got = list(check_state(state))
    if got != expected:
        raise ValueError(f"state: expected R of sizes {expected}, as the network reads, got {got}")
    return every_reads

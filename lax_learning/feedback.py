"""Feedback weights: products whose backward pass runs through other weights than the forward pass.

Also what an optimiser needs to know about them: feedback weights live under the name `feedback` in the
dict of their layer, and `forward_mask` tells them from the weights of the forward pass.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from lax_learning._checks import (
    as_floating,
    as_tuple,
    check_callable,
    check_flag,
    check_instance,
    check_key,
    check_positive,
)
from lax_learning.networks import Network
from lax_learning.types import Key, Params

Linear = Callable[[Array, Array], Array]


def with_feedback(linear: Linear, *, learn: bool = False) -> Callable[[Array, Array, Array], Array]:
    """Gives a product of weights and input another backward pass.

    Forward `z = linear(w, x)`. Backward, with `delta` the cotangent of `z`: the cotangent of `x` is that
    of `linear(feedback, x)`, the cotangent of `w` is the true one, and the cotangent of `feedback` is
    zero, or with `learn` the same as that of `w` (Kolen-Pollack).

    A gradient through the result is the rule's signal, not the gradient of the loss, and forward-mode
    differentiation (`jax.jvp`) cannot pass: reference gradients take the plain product.

    Args:
      linear: `(w, x) -> z`, linear in both, for example `dense_product` or a convolution.
      learn: whether `feedback` receives the cotangent of `w`.

    Returns:
      `product(w, feedback, x) -> z`.

    Raises:
      TypeError: for a `linear` that is no function or a `learn` that is no bool; at trace time, for arrays
        that are not floating.
      ValueError: at trace time, if `w` and `feedback` differ in shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> product = with_feedback(lambda w, x: x @ w)
      >>> w, feedback, x = jnp.ones((3, 2)), jnp.full((3, 2), 5.0), jnp.ones((1, 3))
      >>> jax.grad(lambda x: product(w, feedback, x).sum())(x).tolist()
      [[10.0, 10.0, 10.0]]

    References:
      Lillicrap et al., Random synaptic feedback weights support error backpropagation for deep
      learning, https://doi.org/10.1038/ncomms13276, 2016.
    """

    check_callable("linear", linear, "a function (w, x) -> z")
    check_flag("learn", learn)

    @jax.custom_vjp
    def product(w: Array, feedback: Array, x: Array) -> Array:
        return linear(w, x)

    def product_forward(w: Array, feedback: Array, x: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        return linear(w, x), (w, feedback, x)

    def product_backward(residuals: tuple[Array, Array, Array], delta: Array) -> tuple[Array, Array, Array]:
        w, feedback, x = residuals
        (dw,) = jax.vjp(lambda w: linear(w, x), w)[1](delta)
        routed, transpose = jax.vjp(lambda x: linear(feedback, x), x)
        (dx,) = transpose(delta.astype(routed.dtype))
        return dw, dw.astype(feedback.dtype) if learn else jnp.zeros_like(feedback), dx

    product.defvjp(product_forward, product_backward)

    def checked(w: Array, feedback: Array, x: Array) -> Array:
        w, feedback, x = as_floating("w", w), as_floating("feedback", feedback), as_floating("x", x)
        if w.shape != feedback.shape:
            raise ValueError(f"feedback: expected the shape {w.shape} of w, got {feedback.shape}")
        return product(w, feedback, x)

    return checked


def init_feedback(network: Network, key: Key) -> Params:
    """The network's params, and feedback weights for every layer that passes an error on.

    They are drawn as `w`, independently of it. A first layer without state needs none.
    """
    check_key("key", key)
    network_key, feedback_key = jax.random.split(key)
    layers = zip(network.init(network_key), network.init(feedback_key), network.passes_error_on, strict=True)
    return tuple(
        {**weights, "feedback": other["w"]} if passes_on else weights for weights, other, passes_on in layers
    )


def init_forward(network: Network, key: Key) -> Params:
    """The same params as `init_feedback` gives for the same key, without the feedback weights."""
    check_key("key", key)
    network_key, _ = jax.random.split(key)
    return network.init(network_key)


def _is_feedback(path: tuple) -> bool:
    return bool(path) and getattr(path[-1], "key", getattr(path[-1], "name", None)) == "feedback"


def forward_mask(params: PyTree) -> PyTree:
    """True for every leaf of `params` but the feedback weights: a mask for optax.

    Args:
      params: any pytree whose feedback weights stand under the key or attribute `feedback`.

    Returns:
      A pytree of bools with the structure of `params`.

    Example:
      >>> import optax
      >>> decay = optax.add_decayed_weights(1e-4, mask=forward_mask)
      >>> forward_mask(({"w": 1.0}, {"w": 1.0, "feedback": 1.0}))
      ({'w': True}, {'feedback': False, 'w': True})
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_feedback(path), params)


def clip_by_forward_norm(max_norm: float) -> optax.GradientTransformation:
    """Global-norm clipping that leaves the feedback weights out of the norm.

    `g <- g min(1, max_norm / |g_forward|)`. The factor applies to every leaf, so that a Kolen-Pollack
    pair keeps receiving one and the same update.

    Args:
      max_norm: the largest norm of the gradients of the forward weights.

    Returns:
      An optax transformation.

    Raises:
      ValueError: unless `max_norm > 0`.

    Example:
      >>> import jax.numpy as jnp
      >>> clip = clip_by_forward_norm(1.0)
      >>> grads = {"w": jnp.array([4.0]), "feedback": jnp.array([4.0])}
      >>> updates, _ = clip.update(grads, clip.init(grads))
      >>> updates["w"].tolist(), updates["feedback"].tolist()
      ([1.0], [1.0])
    """
    check_positive("max_norm", max_norm)

    def update(updates: PyTree) -> PyTree:
        forward = jax.tree.map(
            lambda keep, g: g if keep else jnp.zeros_like(g), forward_mask(updates), updates
        )
        norm = optax.tree.norm(forward)
        factor = jnp.minimum(1.0, max_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        return jax.tree.map(lambda g: (factor * g).astype(g.dtype), updates)

    return optax.stateless(lambda updates, params: update(updates))


def without_feedback(params: Params) -> Params:
    """The weights of the forward pass alone: what the gradients of all rules have in common.

    Example:
      >>> without_feedback(({"w": 1.0}, {"w": 2.0, "feedback": 3.0}))
      ({'w': 1.0}, {'w': 2.0})
    """
    return without_feedback_of("params", params)


def without_feedback_of(name: str, params: Params) -> Params:
    """`without_feedback` of an argument that errors call by its name."""
    layers = as_tuple(name, params, "a sequence with the weights of each layer")
    for i, weights in enumerate(layers):
        check_instance(f"{name}[{i}]", weights, Mapping, "a dict with the weights of a layer")
    return tuple({k: v for k, v in weights.items() if k != "feedback"} for weights in layers)

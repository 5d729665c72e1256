"""How two gradients, or forward and feedback weights, point: cosine, angle, relative norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lax_learning._precision import raised

Scalar = Float[Array, ""]


def inner_product(a: PyTree, b: PyTree) -> Scalar:
    """`sum_i a_i b_i` over all leaves, in float32 or wider."""
    import chex  # takes a third of the library's own time to import

    chex.assert_trees_all_equal_shapes(a, b, exception_type=ValueError, custom_message="a and b")

    def leaf(u: Array, v: Array) -> Array:
        dtype = raised(u, v)
        return jnp.sum(jnp.asarray(u, dtype) * jnp.asarray(v, dtype))

    return jax.tree.reduce(jnp.add, jax.tree.map(leaf, a, b))


def cosine_similarity(a: PyTree, b: PyTree) -> Scalar:
    """The cosine of the angle between two pytrees taken as vectors.

    `cos(a, b) = a . b / (|a| |b|)`; 0 where either is zero.

    Args:
      a: any pytree of arrays, for example gradients.
      b: another of the same structure and shapes.

    Returns:
      A number in -1..1.

    Raises:
      ValueError: if structures or shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> float(cosine_similarity({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}))
      0.0
    """
    norms = jnp.sqrt(inner_product(a, a)) * jnp.sqrt(inner_product(b, b))
    return jnp.where(norms > 0, inner_product(a, b) / jnp.where(norms > 0, norms, 1), 0.0)


def angle_degrees(a: PyTree, b: PyTree) -> Scalar:
    """The angle between two pytrees taken as vectors, in degrees: `arccos cos(a, b)`.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(angle_degrees(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))), 3)
      90.0
    """
    return jnp.degrees(jnp.arccos(jnp.clip(cosine_similarity(a, b), -1.0, 1.0)))


def relative_norm(a: PyTree, b: PyTree) -> Scalar:
    """How long `a` is in units of `b`: `|a| / |b|`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(relative_norm(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])))
      2.5
    """
    import chex  # takes a third of the library's own time to import

    chex.assert_trees_all_equal_shapes(a, b, exception_type=ValueError, custom_message="a and b")
    return jnp.sqrt(inner_product(a, a)) / jnp.sqrt(inner_product(b, b))


def by_layer(metric: Callable[..., Any], *trees: Any) -> tuple[Any, ...]:
    """The metric of every layer: of the first entries of the trees, of the second, and so on.

    Args:
      metric: a function of as many pytrees.
      trees: sequences with one entry a layer, for example params or gradients of a network.

    Returns:
      One result a layer.

    Example:
      >>> import jax.numpy as jnp
      >>> a = ({"w": jnp.array([1.0])}, {"w": jnp.array([1.0])})
      >>> b = ({"w": jnp.array([2.0])}, {"w": jnp.array([-1.0])})
      >>> [float(c) for c in by_layer(cosine_similarity, a, b)]
      [1.0, -1.0]
    """
    return tuple(metric(*layer) for layer in zip(*trees, strict=True))


def weight_alignment(params: PyTree) -> tuple[Scalar, ...]:
    """The cosine between forward and feedback weights of every layer that keeps feedback of `w`'s shape.

    Args:
      params: one dict a layer, as rules make them.

    Returns:
      One cosine for each layer with feedback, in order.

    Raises:
      ValueError: if no layer has feedback, or its shape differs from that of `w`.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.array([[1.0, 2.0]])
      >>> [round(float(c), 3) for c in weight_alignment(({"w": w}, {"w": w, "feedback": 3 * w}))]
      [1.0]
    """
    pairs = [(weights["w"], weights["feedback"]) for weights in params if "feedback" in weights]
    if not pairs:
        raise ValueError("params: expected at least one layer with an entry 'feedback', got none")
    return tuple(cosine_similarity(w, feedback) for w, feedback in pairs)

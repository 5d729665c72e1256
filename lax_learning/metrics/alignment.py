"""Alignment of two gradients, or of forward and feedback weights: cosine, angle, relative norm.

The result does not depend on the scale of the vectors, over the whole range of their type; NaN anywhere
gives NaN. Leaves may be floating-point arrays, Python numbers and integers of up to 16 bits.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lax_learning._checks import as_real, as_real_leaves, check_callable, check_same_structure, describe
from lax_learning._precision import raised
from lax_learning._scaling import divided, norm, scale_of
from lax_learning.metrics._entries import entries_of, like_entries

Scalar = Float[Array, ""]


def _as_vectors(a: PyTree, b: PyTree) -> tuple[list[Array], list[Array]]:
    """The leaves of both in one dtype, float32 or wider; raises unless they match."""
    a, b = as_real_leaves("a", a), as_real_leaves("b", b)
    check_same_structure(("a", "b"), (a, b))
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    dtype = raised(*a, *b)
    return [leaf.astype(dtype) for leaf in a], [leaf.astype(dtype) for leaf in b]


def _scaled(leaves: list[Array]) -> tuple[list[Array], Scalar]:
    scale = scale_of(*leaves)
    return [divided(leaf, scale) for leaf in leaves], scale


def _dot(a: list[Array], b: list[Array]) -> Scalar:
    return sum((jnp.sum(u * v) for u, v in zip(a, b, strict=True)), start=jnp.zeros((), a[0].dtype))


def _norm(leaves: list[Array]) -> Scalar:
    return norm(jnp.stack([norm(leaf) for leaf in leaves]))


def inner_product(a: PyTree, b: PyTree) -> Scalar:
    """`sum_i a_i b_i` over all leaves, in float32 or wider.

    Args:
      a: any pytree of arrays, for example gradients.
      b: another of the same structure and shapes.

    Returns:
      A number; infinite or NaN where a product leaves the range of the type.

    Raises:
      ValueError: if structures or shapes differ, or there are no arrays.
      TypeError: for a leaf that is no array of real numbers, or an array of wide integers.

    Example:
      >>> float(inner_product([1.0, 2.0], [3.0, 4.0]))
      11.0
    """
    return _dot(*_as_vectors(a, b))


def cosine_similarity(a: PyTree, b: PyTree) -> Scalar:
    """The cosine of the angle between two pytrees taken as vectors.

    `cos(a, b) = a . b / (|a| |b|)`; 0 where either is zero, NaN where either holds NaN or infinity.

    Args:
      a: any pytree of arrays, for example gradients.
      b: another of the same structure and shapes.

    Returns:
      A number in -1..1.

    Raises:
      ValueError: if structures or shapes differ, or there are no arrays.
      TypeError: for a leaf that is no array of real numbers, or an array of wide integers.

    Example:
      >>> import jax.numpy as jnp
      >>> float(cosine_similarity({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}))
      0.0
    """
    (a, _), (b, _) = map(_scaled, _as_vectors(a, b))
    norm_a, norm_b = _norm(a), _norm(b)
    cosine = _dot(a, b) / jnp.where(norm_a == 0, 1, norm_a) / jnp.where(norm_b == 0, 1, norm_b)
    # A direction of its own has only what is not zero: there, the constant 0 has the derivative 0.
    cosine = jnp.where((norm_a == 0) | (norm_b == 0), jax.lax.stop_gradient(cosine), cosine)
    return jnp.clip(cosine, -1, 1)


def angle_degrees(a: PyTree, b: PyTree) -> Scalar:
    """The angle between two pytrees taken as vectors, in degrees: `arccos cos(a, b)`, in 0..180.

    90 where either is zero, NaN where either holds NaN or infinity; otherwise as `cosine_similarity`.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(angle_degrees(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))), 3)
      90.0
    """
    return jnp.clip(jnp.degrees(jnp.arccos(cosine_similarity(a, b))), 0, 180)


def relative_norm(a: PyTree, b: PyTree) -> Scalar:
    """The length of `a` in units of `b`: `|a| / |b|`.

    Infinite where only `b` is zero, NaN where both are or where either holds NaN. Arguments and errors are
    those of `cosine_similarity`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(relative_norm(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])))
      2.5
    """
    (a, scale_a), (b, scale_b) = map(_scaled, _as_vectors(a, b))
    # Scales are powers of four. Their ratio may leave the range where the result does not; its root does not.
    root = jnp.sqrt(scale_a) / jnp.sqrt(scale_b)
    return _norm(a) / _norm(b) * root * root


def by_layer(metric: Callable[..., Any], *trees: Any) -> Any:
    """The metric of every layer: of each entry at the top of the trees.

    Args:
      metric: a function of as many pytrees.
      trees: sequences with one entry a layer, for example params or gradients of a network, or mappings
        with one, for example the `params` of a Flax module.

    Returns:
      One result a layer: a tuple for sequences, a dict with the same keys for mappings.

    Raises:
      ValueError: for trees of other kinds, or with other entries than the first.

    Example:
      >>> import jax.numpy as jnp
      >>> a = ({"w": jnp.array([1.0])}, {"w": jnp.array([1.0])})
      >>> b = ({"w": jnp.array([2.0])}, {"w": jnp.array([-1.0])})
      >>> [float(c) for c in by_layer(cosine_similarity, a, b)]
      [1.0, -1.0]
    """
    if not trees:
        raise ValueError("trees: expected at least one, got none")
    check_callable("metric", metric, "a function of pytrees")
    first, *others = [entries_of(f"trees[{i}]", tree) for i, tree in enumerate(trees)]
    for i, (tree, entries) in enumerate(zip(trees[1:], others, strict=True), start=1):
        same_kind = isinstance(tree, Mapping) == isinstance(trees[0], Mapping)
        if not same_kind or entries.keys() != first.keys():
            raise ValueError(
                f"trees[{i}]: expected the entries {list(first)} as in trees[0], got {list(entries)}"
                + ("" if same_kind else f" of a {type(tree).__name__}")
            )
    check_callable("metric", metric, f"a function of {len(trees)} pytrees", num_arguments=len(trees))
    return like_entries(
        trees[0], {key: metric(first[key], *(entries[key] for entries in others)) for key in first}
    )


def weight_alignment(params: PyTree) -> Any:
    """The cosine between forward and feedback weights of every layer that keeps feedback of `w`'s shape.

    Args:
      params: one dict a layer, as rules make them, in a sequence or a mapping.

    Returns:
      One cosine for each layer with feedback: a tuple in order, or a dict by name where params are a mapping.

    Raises:
      ValueError: if no layer has feedback, or its shape differs from that of `w`.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.array([[1.0, 2.0]])
      >>> [round(float(c), 3) for c in weight_alignment(({"w": w}, {"w": w, "feedback": 3 * w}))]
      [1.0]
    """
    cosines = {}
    for key, weights in entries_of("params", params).items():
        name = f"params[{key!r}]"
        if not isinstance(weights, Mapping):
            raise ValueError(f"{name}: expected a dict with the weights of a layer, got {describe(weights)}")
        if "feedback" not in weights:
            continue
        if "w" not in weights:
            raise ValueError(f"{name}: expected the entry 'w' beside 'feedback', got {sorted(weights)}")
        w = as_real(f"{name}['w']", weights["w"])
        feedback = as_real(f"{name}['feedback']", weights["feedback"])
        check_same_structure((f"{name}['feedback']", f"{name}['w']"), (feedback, w))
        cosines[key] = cosine_similarity(w, feedback)
    if not cosines:
        raise ValueError("params: expected at least one layer with an entry 'feedback', got none")
    return like_entries(params, cosines)

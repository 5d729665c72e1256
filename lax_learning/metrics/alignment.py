"""Alignment of two gradients, or of forward and feedback weights: cosine, angle, relative norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lax_learning._arrays import as_real_leaves, check_same_structure
from lax_learning._checks import check_callable, check_count
from lax_learning._precision import raised
from lax_learning._scaling import divided, norm, scale_of

Scalar = Float[Array, ""]


def _as_vectors(a: PyTree, b: PyTree) -> tuple[list[Array], list[Array]]:
    """Returns the leaves of both in a common dtype, float32 or wider; raises unless they match."""
    a, b = as_real_leaves("a", a), as_real_leaves("b", b)
    check_same_structure(("a", "b"), (a, b))
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    dtype = raised(*a, *b)
    return [jnp.asarray(leaf, dtype) for leaf in a], [jnp.asarray(leaf, dtype) for leaf in b]


def _scaled(leaves: list[Array]) -> tuple[list[Array], Scalar]:
    scale = scale_of(*leaves)
    return [divided(leaf, scale) for leaf in leaves], scale


def _dot(a: list[Array], b: list[Array]) -> Scalar:
    return sum((jnp.sum(u * v) for u, v in zip(a, b, strict=True)), start=jnp.zeros((), a[0].dtype))


def _norm(leaves: list[Array]) -> Scalar:
    return norm(jnp.stack([norm(leaf) for leaf in leaves]))


def inner_product(a: PyTree, b: PyTree) -> Scalar:
    """Computes `sum_i a_i b_i` over all leaves; infinite or NaN if a product overflows.

    Example:
      >>> float(inner_product([1.0, 2.0], [3.0, 4.0]))
      11.0
    """
    return _dot(*_as_vectors(a, b))


def cosine_similarity(a: PyTree, b: PyTree) -> Scalar:
    """Computes the cosine of the angle between two pytrees of the same structure, each taken as one vector.

    `cos(a, b) = a . b / (|a| |b|)`, in -1..1; 0 if either is zero, NaN if either contains NaN or infinity.

    Example:
      >>> float(cosine_similarity({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}))
      0.0
    """
    (a, _), (b, _) = map(_scaled, _as_vectors(a, b))
    norm_a, norm_b = _norm(a), _norm(b)
    cosine = _dot(a, b) / jnp.where(norm_a == 0, 1, norm_a) / jnp.where(norm_b == 0, 1, norm_b)
    # A vector of zeros has no direction: its cosine is the constant 0, with derivative 0.
    cosine = jnp.where((norm_a == 0) | (norm_b == 0), jax.lax.stop_gradient(cosine), cosine)
    return jnp.clip(cosine, -1, 1)


def angle_degrees(a: PyTree, b: PyTree) -> Scalar:
    """Computes the angle between two pytrees in degrees, `arccos(cos(a, b))`: 90 if either is zero.

    Example:
      >>> round(float(angle_degrees(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))), 3)
      90.0
    """
    return jnp.clip(jnp.degrees(jnp.arccos(cosine_similarity(a, b))), 0, 180)


def relative_norm(a: PyTree, b: PyTree) -> Scalar:
    """Computes the norm of `a` relative to that of `b`, `|a| / |b|`.

    Infinite if only `b` is zero, NaN if both are.

    Example:
      >>> float(relative_norm(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])))
      2.5
    """
    (a, scale_a), (b, scale_b) = map(_scaled, _as_vectors(a, b))
    # Scales are powers of four. Their ratio may overflow even if the result does not; its root cannot.
    root = jnp.sqrt(scale_a) / jnp.sqrt(scale_b)
    return _norm(a) / _norm(b) * root * root


def by_prefix(tree: Any, depth: int | None) -> dict[str, dict[str, Any]]:
    """Groups leaves by the first `depth` parts of their paths (or all), in dicts by the whole path."""
    if depth is not None:
        check_count("depth", depth)
    groups: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        prefix, whole = (jax.tree_util.keystr(p, simple=True, separator="/") for p in (path[:depth], path))
        group = groups.setdefault(prefix, {})
        if whole in group:  # as in {"a/b": x, "a": {"b": y}}
            raise ValueError(f"trees: expected one leaf at each path, got several at {whole!r}")
        group[whole] = leaf
    return groups


def by_path(metric: Callable[..., Any], *trees: PyTree, depth: int | None = None) -> dict[str, Any]:
    """Applies a metric to every leaf, or to groups of leaves whose paths have the same prefix.

    Returns results by path, such as `params/Dense_0/kernel`, or by prefix.

    Args:
      metric: a function of as many pytrees as there are `trees`.
      trees: pytrees of the same structure, for example two gradients.
      depth: number of path parts that define a group; 1 gives the layers of a network whose params are a
        sequence or a dict of layers. By default, every leaf is its own group.

    Example:
      >>> a = ({"w": jnp.array([1.0])}, {"w": jnp.array([1.0])})
      >>> b = ({"w": jnp.array([2.0])}, {"w": jnp.array([-1.0])})
      >>> {path: float(c) for path, c in by_path(cosine_similarity, a, b).items()}
      {'0/w': 1.0, '1/w': -1.0}
    """
    if not trees:
        raise ValueError("trees: expected at least one, got none")
    check_callable("metric", metric, f"a function of {len(trees)} pytrees", num_arguments=len(trees))
    first, *others = (by_prefix(tree, depth) for tree in trees)
    if not first:
        raise ValueError("trees[0]: expected at least one leaf, got none")
    for i, groups in enumerate(others, start=1):
        expected, got = ([path for group in each.values() for path in group] for each in (first, groups))
        if got != expected:
            raise ValueError(f"trees[{i}]: expected the leaves {expected} as in trees[0], got {got}")
    return {path: metric(group, *(groups[path] for groups in others)) for path, group in first.items()}


def weight_alignment(params: PyTree, feedback: PyTree) -> dict[str, Scalar]:
    """Computes the cosine between every parameter and its feedback weights, by path.

    Args:
      params: the parameters of a model.
      feedback: from the state of a feedback rule; has the structure of params, None where no error passes.

    Example:
      >>> w = jnp.array([[1.0, 2.0]])
      >>> alignment = weight_alignment({"a": w, "b": w}, {"a": None, "b": 3 * w})
      >>> {path: round(float(cosine), 3) for path, cosine in alignment.items()}
      {'b': 1.0}
    """
    own, held = ({p: group[p] for p, group in by_prefix(tree, None).items()} for tree in (params, feedback))
    if unknown := held.keys() - own.keys():
        raise ValueError(f"feedback: expected paths of params, {list(own)}, got {sorted(unknown)}")
    b, w = as_real_leaves("feedback", held), as_real_leaves("params", {path: own[path] for path in held})
    check_same_structure(("feedback", "params"), (b, w))
    return {path: cosine_similarity(w[path], b[path]) for path in held}

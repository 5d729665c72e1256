"""Comparison of pytrees, leaf by leaf, with the path of the leaf that differs; cases that are slow."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll


def squares(output: Any, y: Any) -> jax.Array:
    """Loss of each example."""
    return jnp.sum(jnp.square(output - y), axis=tuple(range(1, output.ndim)))


def normal(seed: int, *shape: int) -> jax.Array:
    """Normal numbers from NumPy, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.zeros(()).dtype)


def noise_by_shape(key: Any, like: Any) -> Any:
    """Noise that depends on the shapes alone."""
    return jax.tree.map(lambda leaf: normal(leaf.size, *leaf.shape).astype(leaf.dtype), like)


def flat(tree: Any) -> np.ndarray:
    """All numbers of a pytree, in double precision."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def uses(jaxpr: Any, primitive: str, within: bool = False) -> Iterator[bool]:
    """For each use of a primitive, in nested programs too, whether it is inside of a condition."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield within
        inside = within or equation.primitive.name == "cond"
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from uses(inner, primitive, inside)


def update(rule: ll.Rule, key: Any, params: Any, x: Any, y: Any, **state: Any) -> Any:
    """`(state before, loss, grads, state after)` of one update, as one program; `state` has other entries."""
    return updates([rule], key, params, x, y, **state)[0]


def updates(rules: Iterable[ll.Rule], key: Any, params: Any, x: Any, y: Any, **state: Any) -> list[Any]:
    """`update` of several rules, as one program."""

    def of(rule: ll.Rule, params: Any) -> Any:
        before = rule.init(key, params, x)
        before = before._replace(**state) if state else before
        return before, *rule.value_and_grad(key, params, before, x, y)

    return jax.jit(lambda params: [of(rule, params) for rule in rules])(params)


def draws_of(function: Any, key: Any, number: int) -> Any:
    """`function(key)` for many keys, as one program."""
    return jax.jit(jax.vmap(function))(jax.random.split(key, number))


def assert_mean(draws: Any, expected: Any, *, atol: float = 0.0) -> None:
    """The mean over draws is within 5 standard errors of what is expected, and `atol` where both have a bias.

    A right estimator fails a given coordinate with odds of 6e-7.
    """
    for path, found, exact in _pairs(draws, expected):
        found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
        allowed = 5 * found.std(axis=0, ddof=1) / len(found) ** 0.5 + atol
        off = np.abs(found.mean(axis=0) - exact)
        assert (off <= allowed).all(), f"{path}: off by up to {off.max()}, {allowed.max()} allowed"


def slow_but(fast: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases of a parametrised test, those that are not in `fast` marked slow."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if case in fast else pytest.mark.slow
        )
        for case in cases
    ]


def _pairs(a: Any, b: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    leaves = jax.tree_util.tree_leaves_with_path(a)
    rest = jax.tree.leaves(b)
    return [(jax.tree_util.keystr(p), _array(u), _array(v)) for (p, u), v in zip(leaves, rest, strict=True)]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _array(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, dtypes included."""
    for path, u, v in _pairs(a, b):
        assert u.dtype == v.dtype, f"{path}: {u.dtype} and {v.dtype}"
        np.testing.assert_array_equal(u, v, err_msg=path)


def assert_near(a: Any, b: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """`np.testing.assert_allclose`, leaf by leaf."""
    for path, u, v in _pairs(a, b):
        np.testing.assert_allclose(u, v, rtol=rtol, atol=atol, err_msg=path)


def assert_close(a: Any, b: Any, *, ulps: float) -> None:
    """Equal up to `ulps` roundings of the largest entry of the leaf, in the leaf's own precision."""
    for path, u, v in _pairs(a, b):
        assert u.dtype == v.dtype, f"{path}: {u.dtype} and {v.dtype}"
        if not jnp.issubdtype(u.dtype, np.floating):
            np.testing.assert_array_equal(u, v, err_msg=path)
            continue
        epsilon = float(jnp.finfo(u.dtype).eps)
        u, v = u.astype(np.float64), v.astype(np.float64)
        scale = max(np.abs(v).max(initial=0.0), 1e-30)
        error = np.abs(u - v).max(initial=0.0) / (scale * epsilon)
        assert error <= ulps, f"{path}: differs by {error:.1f} roundings, at most {ulps} expected"


def differs(a: Any, b: Any) -> bool:
    """Returns whether any entry of any leaf differs."""
    return any(not np.array_equal(u, v) for _, u, v in _pairs(a, b))


def member(tree: Any, index: Any) -> Any:
    """One member of a stacked pytree, or several."""
    return jax.tree.map(lambda leaf: leaf[index] if _is_key(leaf) else np.asarray(leaf)[index], tree)

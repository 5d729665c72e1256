"""Flat programs: the same values, no calls left, nothing computed twice but what does more than compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, subjaxprs  # pyright: ignore[reportPrivateImportUsage]

from lax_learning._flat import COMPILER_OPTIONS, flat

KEY = jax.random.key(0)
X = jnp.linspace(-2, 2, 6).reshape(2, 3)

twice = jax.jit(lambda x: 2 * jnp.sin(x))


def looped(x):
    """Calls in the body and the condition of a loop, in a scan and in branches."""
    x = jax.lax.while_loop(lambda x: jnp.clip(x, 0, 5).sum() < 3, lambda x: x + jnp.abs(twice(x)), x)
    x, sums = jax.lax.scan(lambda x, key: (twice(x), jax.random.normal(key).sum()), x, jax.random.split(KEY))
    return jax.lax.cond(x.sum() > 0, twice, lambda x: -jnp.clip(x, 0, 1), x), sums


FUNCTIONS = {
    "nothing": lambda x: x,
    "a constant": lambda x: {"x": 3.0, "of": (x, None)},
    "a call of a call": jax.jit(lambda x: (twice(twice(x)), jnp.linalg.norm(x, axis=0))),
    "loops": looped,
    "custom derivatives": lambda x: jax.nn.relu(x) + jax.nn.silu(x),
    "gradients": jax.grad(lambda x: jnp.sum(jax.nn.relu(twice(x)) ** 2 + jax.scipy.special.logsumexp(x))),
    "gradients of a scan": jax.grad(
        lambda x: jax.lax.scan(lambda x, _: (twice(x), None), x, length=2)[0].sum()
    ),
    "keys": lambda x: (jax.random.fold_in(KEY, 1), jax.random.uniform(KEY, x.shape), x),
    "many members": jax.vmap(lambda row: (looped(row)[0], jnp.argsort(row), jnp.where(row > 0, row, 0))),
}


def lines(program: ClosedJaxpr | Jaxpr) -> list[str]:
    """Names of all that a program does, in its loops and branches too."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    inner = [name for sub in subjaxprs(jaxpr) for name in lines(sub)]
    return [equation.primitive.name for equation in jaxpr.eqns] + inner


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_values_without_calls(name: str) -> None:
    function = FUNCTIONS[name]
    wanted, got = jax.jit(function)(X), jax.jit(flat(function))(X)
    assert jax.tree.structure(wanted) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        assert jax.typeof(a) == jax.typeof(b)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(b, a, rtol=1e-6)
    assert "jit" not in lines(jax.make_jaxpr(flat(function))(X))


def test_calls_are_there_without_it() -> None:
    assert {"jit", "while", "scan", "cond"} <= set(lines(jax.make_jaxpr(looped)(X)))


def test_nothing_is_computed_twice() -> None:
    def sums(x):
        return twice(x) + twice(x) + 2 * jnp.sin(x), jax.random.bits(KEY) + jax.random.bits(KEY)

    names = lines(jax.make_jaxpr(flat(sums))(X))
    assert (names.count("sin"), names.count("random_bits")) == (1, 1)
    assert lines(jax.make_jaxpr(sums)(X)).count("sin") == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (1 / (x * 0.0), 1 / (x * -0.0)),
        lambda x: (x * np.float32(0.01), x * np.nextafter(np.float32(0.01), np.float32(1))),
        lambda x: (jnp.full(3, 1, jnp.int32), jnp.full(3, np.int32(1).view(np.float32))),
        lambda x: (x.sum(axis=0), x.sum(axis=1)),
        lambda x: (x - 2 * x, 2 * x - x),
        lambda x: (jax.random.bits(KEY, x.shape), jax.random.bits(jax.random.key(1), x.shape)),
    ],
    ids=["signs of zero", "last digits", "dtypes", "axes", "order", "keys"],
)
def test_what_only_looks_the_same(function) -> None:
    for wanted, got in zip(function(X), flat(function)(X), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_what_is_read_again_may_have_changed() -> None:
    def counted(x):
        held = jax.new_ref(x)
        before = held[...]
        held[...] = before + 1
        return before, held[...]

    assert [float(x) for x in jax.jit(flat(counted))(1.0)] == [1.0, 2.0]


def test_compiler_takes_the_options() -> None:
    def program(options):
        lowered = jax.jit(lambda x: (jnp.sin(x), jax.lax.optimization_barrier(x), jnp.sin(x))).lower(X)
        return str(lowered.compile(compiler_options=options).as_text()).count(" sine(")

    assert program(COMPILER_OPTIONS) > program(None)

"""Decorrelation on models of other libraries: closed forms, sharing, whitening, folding."""

# pyright: reportArgumentType=false

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from lax_learning._sites.decorrelation import _checked_places, _vectors, decorrelated, decorrelated_rule, fold

import lax_learning as ll
from lax_learning._sites._program import Program
from lax_learning.models import Model
from tests.refusal import parametrize_cases, refuses

KEY = jax.random.key(0)


def squares(output: Any, y: Any) -> jax.Array:
    return jnp.sum(jnp.square(output - y), axis=tuple(range(1, output.ndim)))


def rule_of(model: Model, eta: float = 0.1, **options: Any) -> Any:
    dynamics = ll.decorrelation(eta, **options)
    return decorrelated_rule(lambda model: ll.backprop(model, squares), model, dynamics)


def drawn_like(layers: Any, key: Any = KEY) -> Any:
    """Matrices and shifts near those of a start, none like another."""
    leaves, structure = jax.tree.flatten(layers)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [leaf + 0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)],
    )


# Layouts: `op(w, x) = vectors(x) @ matrix(w)`, for any order of axes.

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
PRODUCTS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "rows": (lambda w, x: x @ w, (3, 4), (5, 3)),
    "columns": (lambda w, x: jax.lax.dot_general(w, x, (((1,), (1,)), ((), ()))), (4, 3), (5, 3)),
    "two axes contracted": (lambda w, x: jnp.einsum("bij,ojik->bok", x, w), (6, 4, 3, 2), (5, 3, 4)),
    "groups": (lambda w, x: jnp.einsum("bei,eio->beo", x, w), (2, 3, 4), (5, 2, 3)),
    "convolution": (
        lambda w, x: jax.lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=NHWC),
        (3, 2, 2, 4),
        (2, 7, 6, 2),
    ),
    "grouped, dilated convolution, channels first": (
        lambda w, x: jax.lax.conv_general_dilated(
            x, w, (1, 1), [(1, 2), (0, 1)], rhs_dilation=(1, 2), feature_group_count=2, dimension_numbers=NCHW
        ),
        (6, 2, 2, 3),
        (2, 4, 7, 8),
    ),
    "transposed convolution": (
        lambda w, x: jax.lax.conv_general_dilated(
            x, w, (1, 1), [(2, 1), (2, 2)], lhs_dilation=(2, 2), dimension_numbers=NHWC
        ),
        (3, 3, 2, 4),
        (2, 4, 4, 2),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_layout(name):
    op, w_shape, x_shape = PRODUCTS[name]
    w, x = jax.random.normal(KEY, w_shape), jax.random.normal(jax.random.key(1), x_shape)
    (site,) = Program(Model(lambda w, x: op(w, x)), w, x).plan.all_sites
    layout = site.layout
    assert layout is not None
    vectors, matrix = layout.vectors(x), layout.matrix(w)
    assert vectors.shape[:-2] == matrix.shape[:-2] == layout.groups
    assert vectors.shape[-1] == matrix.shape[-2] == layout.size
    np.testing.assert_array_equal(layout.unmatrix(matrix), w)
    z = op(w, x)
    product = vectors @ matrix
    assert product.size == z.size
    np.testing.assert_allclose(jnp.sort(product.ravel()), jnp.sort(z.ravel()), rtol=1e-5, atol=1e-5)
    # Decorrelated vectors, once more by the plain operation on each unit vector's share.
    r = jax.random.normal(jax.random.key(2), (*layout.groups, layout.size, layout.size))
    b = jax.random.normal(jax.random.key(3), (*layout.groups, layout.size))
    found = layout.transformed(op, w, x, r, b)
    moved = (vectors @ jnp.swapaxes(r, -1, -2) + b[..., None, :]) @ matrix
    np.testing.assert_allclose(jnp.sort(found.ravel()), jnp.sort(moved.ravel()), rtol=1e-4, atol=1e-4)


# Sharing.


class Block(linen.Module):
    """A transformer block; centred inputs, as of LayerNorm, could not become white in every direction."""

    @linen.compact
    def __call__(self, x):
        h = linen.RMSNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2)(h, h)
        return x + linen.Dense(6)(linen.gelu(linen.Dense(12)(linen.RMSNorm()(x))))


class Convolution(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3), strides=2)(x))
        return linen.Conv(3, (2, 2), feature_group_count=1)(x).mean((1, 2))


def linen_model(module: Any, x: Any) -> tuple[Model, Any]:
    return Model(module.apply), module.init(KEY, x)


def recurrent_model() -> tuple[Model, Any]:
    cell = nnx.GRUCell(5, 4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell)

    def apply(params, x):
        cell = nnx.merge(graph, params)
        carry = jnp.zeros((len(x), 4))

        def step(carry, x):
            return cell(carry, x)

        return jax.lax.scan(step, carry, x.swapaxes(0, 1))[0]

    return Model(apply), params


def test_one_matrix_for_a_value_one_a_stacked_layer():
    x = jax.random.normal(KEY, (3, 5, 6))
    model, params = linen_model(Block(), x)
    layers = rule_of(model).init(KEY, params, x).layers
    shapes = {name.rsplit("/", 2)[1]: layer["R"].shape for name, layer in layers.items()}
    # Query, key and value read one x, and so share its matrix, which has the name of the first.
    assert shapes == {"query": (6, 6), "out": (6, 6), "Dense_1": (6, 6), "Dense_0": (12, 12)}

    def stacked(p, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)
        return h

    params = jax.random.normal(KEY, (4, 3, 3))
    layers = rule_of(Model(stacked)).init(KEY, params, jnp.ones((5, 3))).layers
    assert {name: layer["R"].shape for name, layer in layers.items()} == {"": (4, 3, 3)}
    model, params = recurrent_model()
    layers = rule_of(model).init(KEY, params, jnp.ones((2, 7, 5))).layers
    assert all(layer["R"].ndim == 2 for layer in layers.values())


def test_layers_and_steps_are_those_of_a_loop():
    """Stacked layers in a scan over layers, around a scan over time."""

    def layer(w, h):
        return jax.lax.scan(lambda c, x: (c, jnp.tanh(x @ w["in"] + c)), jnp.zeros((5, 3)), h)[1]

    def scanned(p, x):
        h, _ = jax.lax.scan(lambda h, w: (layer(w, h), None), x.swapaxes(0, 1), p)
        return h[-1]

    def looped(p, x):
        h = x.swapaxes(0, 1)
        for i in range(2):
            h = layer(jax.tree.map(lambda w, i=i: w[i], p), h)
        return h[-1]

    params, x = {"in": jax.random.normal(KEY, (2, 3, 3))}, jax.random.normal(KEY, (5, 4, 3))
    y, found = jnp.ones((5, 3)), []
    for apply in (scanned, looped):
        rule = rule_of(Model(apply), bias=True)
        state = rule.init(KEY, params, x)
        drawn = drawn_like({"R": jnp.stack([jnp.eye(3)] * 2), "b": jnp.zeros((2, 3))})
        parts = (
            [drawn] if apply is scanned else [jax.tree.map(lambda leaf, i=i: leaf[i], drawn) for i in (0, 1)]
        )
        of_layer = dict(zip(state.layers, parts, strict=True))
        loss, grads, state = jax.jit(rule.value_and_grad)(KEY, params, state._replace(layers=of_layer), x, y)
        (first, *rest) = state.layers.values()
        after = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *rest) if rest else first
        found.append((loss, grads, after))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *found)


# Learning.


def correlated(shape: tuple[int, ...]) -> jax.Array:
    mixing = jnp.eye(shape[-1]) + 0.5
    return jax.random.normal(KEY, shape) @ mixing


def transformer() -> tuple[Model, Any, Any]:
    x = correlated((40, 5, 6))
    return *linen_model(Block(), x), x


def convolution() -> tuple[Model, Any, Any]:
    x = correlated((30, 8, 8, 2))
    return *linen_model(Convolution(), x), x


def recurrent() -> tuple[Model, Any, Any]:
    return *recurrent_model(), correlated((40, 6, 5))


@pytest.mark.parametrize("problem", [convolution, recurrent, transformer])
def test_inputs_become_white_and_weights_fold(problem):
    model, params, x = problem()
    y = jnp.zeros(jax.eval_shape(model.apply, params, x).shape)
    rule = rule_of(model, 0.05, kappa=0.5)
    state = rule.init(KEY, params, x)

    @jax.jit
    def run(state):
        def update(state, key):
            return rule.value_and_grad(key, params, state, x, y)[2], None

        return jax.lax.scan(update, state, jax.random.split(KEY, 600))[0]

    after = run(state)
    before_loss, after_loss = (
        jax.jit(partial(losses_of, model))(params, s.layers, x) for s in (state, after)
    )
    for name, loss in after_loss.items():
        assert loss < 0.2 * before_loss[name] + 1e-4, (name, loss, before_loss[name])
    opened = decorrelated(model, after.layers)
    try:
        plain = jax.jit(partial(fold, model))(params, after.layers, x)
    except ValueError as error:
        assert problem is recurrent, error
        return
    np.testing.assert_allclose(model.apply(plain, x), opened.apply(params, x), rtol=1e-3, atol=1e-4)


def losses_of(model: Model, params: Any, layers: Any, x: Any) -> dict[str, Any]:
    """Decorrelation loss of what each product of the decorrelated model reads."""
    program = Program(model, params, x)
    places = _checked_places(program, None, layers)
    emitted = _vectors(program, places, layers, x)
    return {
        name: ll.decorrelation_loss(ll.decorrelate(layers[name], vectors))
        for name, vectors in emitted.items()
    }


# Products and refusals.


def test_no_product_of_three_sizes():
    """`C R = z^T (z R) / batch` and `R^T w`: nothing of the size cubed."""
    model, params, x = convolution()
    y = jnp.zeros(jax.eval_shape(model.apply, params, x).shape)
    rule = rule_of(model)
    state = rule.init(KEY, params, x)
    sizes = {layer["R"].shape[0] for layer in state.layers.values()}

    def shapes_of(program: Any) -> Any:
        for equation in program.eqns:
            if equation.primitive.name == "dot_general":
                yield [operand.aval.shape for operand in equation.invars]
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    yield from shapes_of(getattr(inner, "jaxpr", inner))

    found = list(shapes_of(jax.make_jaxpr(rule.value_and_grad)(KEY, params, state, x, y).jaxpr))
    assert found and sizes == {18, 16}
    assert not any(a == b == (size, size) for a, b in found for size in sizes)


def tied(params, x):
    return jnp.tanh(x @ params["w"]) @ params["w"].T


X, W = jnp.ones((5, 3)), {"w": jnp.eye(3)}
PLAIN = Model(lambda p, x: x @ p["w"])
BAD: dict[str, Any] = {
    "a sum is no product": (
        lambda: rule_of(Model(lambda p, x: x + p["w"])).init(KEY, {"w": jnp.ones(3)}, X),
        ValueError,
        r"^where: expected to select a product",
    ),
    "a rule on networks": (
        lambda: decorrelated_rule(lambda model: 3, PLAIN, ll.decorrelation(0.1)).init(KEY, W, X),
        TypeError,
        r"^make_rule: expected",
    ),
    "a matrix of another size": (
        lambda: decorrelated(PLAIN, {"w": {"R": jnp.eye(2)}}).apply(W, X),
        ValueError,
        r"^state\.layers\['w'\]\['R'\]: expected shape \[3, 3\], got \[2, 2\]",
    ),
    "matrices of another model": (
        lambda: decorrelated(PLAIN, {"v": {"R": jnp.eye(3)}}).apply(W, X),
        ValueError,
        r"^state\.layers: expected the entries \['w'\]",
    ),
    "a weight that is read twice": (
        lambda: fold(Model(tied), W, rule_of(Model(tied)).init(KEY, W, X).layers, X),
        ValueError,
        r"^params: expected parameters that one product reads as they are, got 'w'",
    ),
    "a weight that is scaled": (
        lambda: fold(Model(lambda p, x: x @ (2 * p["w"])), W, {"w": {"R": jnp.eye(3)}}, X),
        ValueError,
        r"^params: expected parameters that one product reads as they are, got 'w'",
    ),
    "a mean that is removed": (
        lambda: fold(PLAIN, W, {"w": {"R": jnp.eye(3), "b": jnp.ones(3)}}, X),
        ValueError,
        r"^layers\['w'\]: expected no mean to remove",
    ),
}


@parametrize_cases(BAD)
def test_bad_input(call, error, pattern):
    refuses(call, error, pattern)

"""Decorrelation against matrices written out, under every rule, and on models of any library."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lax_learning as ll
from experiments.decorrelation import notebook
from lax_learning._sites._equations import all_equations
from lax_learning._sites._program import Program
from lax_learning.decorrelation import State
from tests.compare import assert_close, assert_same, differs, draws_of, normal, slow_but, squares
from tests.registry import RULES

KEY = jax.random.key(0)


def moved(layers: Any) -> Any:
    """Layers of the same shapes after some learning: R near the identity, without any structure."""
    rng = np.random.default_rng(0)

    def near(layer: Any) -> State:
        noise: Any = [a if a is None else np.float32(0.3 * rng.normal(size=a.shape)) for a in layer[:2]]
        r, b = noise
        return State(np.eye(r.shape[-1], dtype=np.float32) + r, b, np.zeros(np.shape(layer.step), np.int32))

    return {name: near(layer) for name, layer in layers.items()}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("variant", "lower", "bias"), [("paper", False, True), ("decorbp", True, False)])
def test_an_update_is_that_of_the_matrices(variant: Any, lower: bool, bias: bool) -> None:
    size, eta, rng = 5, 0.07, np.random.default_rng(1)
    make = partial(ll.decorrelation.dynamics, variant=variant, lower=lower, bias=bias)

    @jax.jit
    def update(r: Any, b: Any, x: Any, eta: Any, kappa: Any) -> Any:
        return make(eta, kappa=kappa).update(KEY, State(r, b), x)

    r: Any = rng.normal(size=(size, size))
    r, b = np.tril(r) if lower else r, rng.normal(size=size) if bias else None
    assert (make(eta).init(size).b is not None) == bias
    for kappa in (0.3, 1.0):
        for batch in ((3,), (2, 4)):  # fewer vectors than numbers in them, and more
            x = rng.normal(size=(*batch, size))
            z = x.reshape(-1, size) @ r.T + (0 if b is None else b)
            c = z.T @ z / len(z)
            off_diagonal, excess = c - np.diag(np.diag(c)), np.diag(np.diag(c) - 1)
            scaled = excess @ r if variant == "paper" else r @ excess
            expected = r - eta * ((1 - kappa) * off_diagonal @ r + kappa * scaled)
            shifted = None if b is None else b - eta * z.mean(axis=0)
            loss = ((1 - kappa) * np.sum(off_diagonal**2) + kappa * np.sum(excess**2)) / size**2
            after, diagnostics = update(r, b, x, eta, kappa)
            assert_close(after[:2], (np.tril(expected) if lower else expected, shifted), ulps=256)
            assert_close(diagnostics.loss, np.asarray(loss), ulps=256)
            assert after.step == 1


def test_an_update_costs_three_products_of_the_size_of_the_batch() -> None:
    size, batch, costs = 64, 8, []
    dynamics = ll.decorrelation.dynamics(0.1, lower=True, bias=True)
    program = jax.make_jaxpr(dynamics.update)(KEY, dynamics.init(size), jnp.ones((batch, size)))
    for equation in all_equations(program.jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            costs.append(terms * math.prod(equation.outvars[0].aval.shape))
    assert sorted(costs) == [batch**2 * size] + [batch * size**2] * 3  # the first is the loss


# Dynamics, and what becomes of an entry 1 of R by the mean square of a living and of a dead input.
DEAD: list[tuple[ll.Dynamics, Any, Any]] = [
    (ll.decorrelation.dynamics(0.1, kappa=1.0), lambda s: 1 + 0.1 * (1 - s), lambda s: 1.0),
    (notebook.dynamics(0.1), lambda s: 1 + 0.1 * (1 - s) / s, lambda s: 1.0),
    (notebook.dynamics(0.1, scaled=True), lambda s: (1 - 0.1 * s) / s, lambda s: 1 - 0.1 * s),
]


def test_dead_inputs_zeros_and_nan() -> None:
    """A mean square below 1e-8 is left alone. Zeros teach nothing, and NaN reaches every row."""
    update = jax.jit(lambda x: [of.update(KEY, of.init(2), x) for of, *_ in DEAD])
    for square in (0.5e-8, 2e-8):
        x = np.float32(np.stack([np.ones(8), np.sqrt(square) * np.resize([1, -1], 8)], axis=1))
        for (after, _), (_, alive, dead) in zip(update(x), DEAD, strict=True):
            np.testing.assert_allclose(after.R[1, 1], (alive if square > 1e-8 else dead)(square), rtol=1e-6)
    for after, diagnostics in update(np.zeros((8, 2), np.float32)):
        np.testing.assert_array_equal(after.R, np.eye(2))
        np.testing.assert_allclose(diagnostics.loss, 0.5, rtol=1e-6)
    # Also the row of the input itself: its mean square is not small, but undefined.
    for after, diagnostics in update(normal(1, 8, 2).at[0, 0].set(jnp.nan)):
        assert jnp.isnan(after.R).any(axis=1).all() and jnp.isnan(diagnostics.loss)


def test_every_third_call() -> None:
    make = partial(ll.decorrelation.dynamics, 0.1, subsample=0.5, bias=True)
    update, always = jax.jit(make(every=3).update), jax.jit(make().update)
    after = make().init(4)
    for i, (key, x) in enumerate(zip(jax.random.split(KEY, 5), normal(1, 5, 6, 4), strict=True)):
        before, (after, diagnostics) = after, update(key, after, x)
        assert after.step == i + 1
        if i % 3:
            assert_same(after[:2], before[:2])
            assert np.isnan(diagnostics.loss)
        else:
            assert differs(after[:2], before[:2])
            assert_close((after, diagnostics), always(key, before, x), ulps=64)


@pytest.mark.parametrize(("share", "count"), [(1e-9, 1), (0.93, 19)])
def test_a_share_counts_every_vector_once_and_all_as_often(share: float, count: int) -> None:
    # Each vector moves one entry of the diagonal; those that are not drawn are dead.
    number, size = 400, 20
    dynamics = ll.decorrelation.dynamics(0.1, kappa=1.0, subsample=share)
    start, x = dynamics.init(size), math.sqrt(4.0 * count) * np.eye(size, dtype=np.float32)
    after = draws_of(lambda key: dynamics.update(key, start, x)[0].R, KEY, number)
    diagonal = np.diagonal(after, axis1=1, axis2=2)
    moved, p = diagonal < 0.9, count / size
    np.testing.assert_allclose(diagonal, np.where(moved, 1 - 0.1 * (4 - 1), 1), rtol=1e-5)
    np.testing.assert_array_equal(moved.sum(axis=1), count)
    assert np.all(np.abs(moved.mean(axis=0) - p) <= 5 * math.sqrt(p * (1 - p) / number))


def grouped(w: Any, x: Any) -> jax.Array:
    """A dilated convolution in groups, channels first."""
    options: Any = {"rhs_dilation": (1, 2), "feature_group_count": 2}
    numbers = ("NCHW", "OIHW", "NCHW")
    return lax.conv_general_dilated(x, w, (1, 1), [(1, 2), (0, 1)], dimension_numbers=numbers, **options)


def contracted(w: Any, x: Any) -> jax.Array:
    return jnp.einsum("bij,ojik->bok", x, w)


@pytest.mark.parametrize(
    ("op", "w", "x"),
    [
        (contracted, normal(1, 6, 4, 3, 2), normal(2, 5, 3, 4)),
        (grouped, normal(1, 6, 2, 2, 3), normal(2, 2, 4, 7, 8)),
    ],
)
def test_layout(op: Any, w: Any, x: Any) -> None:
    (site,) = Program(ll.Model(op), w, x).plan.all_sites
    layout = site.layout
    assert layout is not None
    groups, size = layout.groups, layout.size
    r, b = normal(3, *groups, size, size), normal(4, *groups, size)

    def over_time(w: Any, xs: Any) -> Any:
        return lax.scan(lambda z, x: (z + op(w, x), None), 0 * op(w, x), xs.swapaxes(0, 1))[0]

    @jax.jit
    def run(w: Any, x: Any) -> Any:
        vectors, matrix = layout.vectors(x), layout.matrix(w)
        xs, layers = jnp.stack([x, 2 * x], axis=1), {"": State(r)}
        steps = ll.decorrelation.inputs(ll.Model(over_time), w, layers, xs)[""]
        return vectors, matrix, steps, layout.unmatrix(matrix), op(w, x), layout.transformed(op, w, x, r, b)

    vectors, matrix, steps, restored, plain, transformed = map(np.asarray, run(w, x))
    assert vectors.shape[:-2] == matrix.shape[:-2] == groups
    assert vectors.shape[-1] == matrix.shape[-2] == size
    np.testing.assert_array_equal(restored, w)
    np.testing.assert_array_equal(steps, np.concatenate([vectors, 2 * vectors], axis=-2))
    assert_close(np.sort(plain, None), np.sort(vectors @ matrix, None), ulps=64)
    expected = (vectors @ np.swapaxes(r, -1, -2) + b[..., None, :]) @ matrix
    assert_close(np.sort(transformed, None), np.sort(expected, None), ulps=256)


def rule_of(model: ll.Model, make_rule: Any = ll.backprop, where: Any = None, **options: Any) -> ll.Rule:
    dynamics = ll.decorrelation.dynamics(0.1, **options)
    return ll.decorrelation.rule(lambda m: make_rule(m, squares), model, dynamics, where=where)


DENSE = ll.mlp((5, 4, 3), activation=jnp.tanh)
PARAMS = tuple(
    {"w": normal(i, *shape), "b": normal(i + 2, shape[1])} for i, shape in enumerate(((5, 4), (4, 3)))
)
X, Y = normal(10, 6, 5), normal(11, 6, 3)


def written_out(layers: Any) -> ll.Model:
    """The dense model on decorrelated inputs."""

    def apply(params: Any, x: Any) -> Any:
        (first, second), (one, two) = layers.values(), params
        hidden = jnp.tanh((x @ first.R.T + first.b) @ one["w"] + one["b"])
        return (hidden @ second.R.T + second.b) @ two["w"] + two["b"]

    return ll.Model(apply)


@pytest.mark.parametrize("name", slow_but(["feedback_alignment", "node_perturbation"], RULES))
def test_a_step_is_the_rule_on_the_model_written_out_and_an_update(name: str) -> None:
    """Errors go through R^T, and the noise of a rule does not enter the moments."""
    make_rule, dynamics = RULES[name], ll.decorrelation.dynamics(0.1, bias=True)
    rule = rule_of(DENSE, make_rule, bias=True)
    layers = moved(jax.eval_shape(rule.init, KEY, PARAMS, X).layers)
    assert list(layers) == ["0/w", "1/w"]
    plain = partial(make_rule, loss=squares)

    @jax.jit
    def run(layers: Any) -> Any:
        start = rule.init(KEY, PARAMS, X)._replace(layers=layers)
        key, model = jax.random.split(KEY)[0], written_out(layers)
        expected = plain(model).value_and_grad(key, PARAMS, start.rule, X, Y)
        vectors = ll.decorrelation.inputs(DENSE, PARAMS, layers, X)
        u = X @ layers["0/w"].R.T + layers["0/w"].b
        read = {"0/w": X, "1/w": jnp.tanh(u @ PARAMS[0]["w"] + PARAMS[0]["b"])}
        learned = {n: dynamics.update(KEY, layer, read[n]) for n, layer in layers.items()}
        return rule.value_and_grad(KEY, PARAMS, start, X, Y), expected, vectors, read, learned

    (loss, grads, state), expected, vectors, read, learned = run(layers)
    assert_close((loss, grads), expected[:2], ulps=256)
    assert_close(vectors, read, ulps=32)
    for n, (layer, diagnostics) in learned.items():
        assert layer.step == 1
        assert_close((state.layers[n], state.losses[n]), (layer, diagnostics.loss), ulps=64)


def attention(p: Any, x: Any) -> jax.Array:
    """Two heads, whose queries and keys read one x."""
    q, k = (jnp.einsum("bti,ihd->bthd", x, p[name]) for name in ("query", "key"))
    return jnp.einsum("bhts,bsi->bti", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), x)


def stacked(p: Any, x: Any) -> jax.Array:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]


PROBLEMS: dict[str, tuple[Any, Any, tuple[int, ...], Any, dict[str, tuple[int, ...]]]] = {
    "attention": (
        ll.Model(attention),
        {name: 0.5 * normal(i, 6, 2, 3) for i, name in enumerate(("key", "query"))},
        (5, 6),
        None,
        {"query": (6, 6)},
    ),
    "convolution": (
        ll.convnet((7, 8, 2), (3,), (4, 3), kernel=3, stride=2),
        None,
        (7, 8, 2),
        None,
        {"0/w": (18, 18), "1/w": (48, 48), "2/w": (4, 4)},
    ),
    "selected": (DENSE, PARAMS, (5,), "1/*", {"1/w": (4, 4)}),
    "stacked": (ll.Model(stacked), normal(1, 4, 3, 3), (3,), None, {"": (4, 3, 3)}),
}
"""A model, its params (None for drawn ones), the shape of an input, a selection, and the shapes of R."""


@pytest.mark.parametrize("name", slow_but(["attention", "selected", "stacked"], PROBLEMS))
def test_one_matrix_for_a_value_one_a_stacked_layer_and_folded_weights(name: str) -> None:
    model, params, shape, where, shapes = PROBLEMS[name]
    params = model.init(KEY) if params is None else params
    x, rule = normal(5, 3, *shape) @ (jnp.eye(shape[-1]) + 0.5), rule_of(model, where=where)
    state = jax.eval_shape(rule.init, KEY, params, x)
    assert {path: layer.R.shape for path, layer in state.layers.items()} == shapes
    state = state._replace(layers=moved(state.layers))
    folded = ll.decorrelation.fold(model, params, state.layers, x, where=where)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, params)
    apply = jax.jit(model.apply)
    expected = jax.jit(rule.model_at(model, state).apply)(params, x)
    assert_close(apply(folded, x), expected, ulps=256)
    assert differs(apply(params, x), expected)
    after = jax.eval_shape(rule.value_and_grad, KEY, params, state, x, expected)[2]
    assert jax.tree.map(jnp.shape, after.layers) == jax.tree.map(jnp.shape, state.layers)


def test_layers_and_steps_are_those_of_a_loop() -> None:
    """Stacked layers in a scan over layers, around a scan over time."""

    def layer(h: Any, w: Any) -> Any:
        return lax.scan(lambda c, x: (c, jnp.tanh(x @ w + c)), jnp.zeros((5, 3)), h)[1], None

    def scanned(w: Any, x: Any) -> Any:
        return lax.scan(layer, x.swapaxes(0, 1), w)[0][-1]

    def looped(w: Any, x: Any) -> Any:
        return layer(layer(x.swapaxes(0, 1), w[0])[0], w[1])[0][-1]

    params, x, y = normal(1, 2, 3, 3), normal(2, 5, 4, 3), jnp.ones((5, 3))
    layers = moved({"": State(jnp.zeros((2, 3, 3)), jnp.zeros((2, 3)))})[""]

    @jax.jit
    def run(layers: Any) -> Any:
        found, each = [], [State(layers.R[i], layers.b[i]) for i in (0, 1)]
        for apply, given in ((scanned, [layers]), (looped, each)):
            rule = rule_of(ll.Model(apply), bias=True)
            state = rule.init(KEY, params, x)
            state = state._replace(layers=dict(zip(state.layers, given, strict=True)))
            loss, grads, state = rule.value_and_grad(KEY, params, state, x, y)
            found.append((loss, grads, *state.layers.values()))
        return found

    (*one, layers), (*other, first, second) = run(layers)
    assert_close((one, layers), (other, jax.tree.map(lambda *a: np.stack(a), first, second)), ulps=64)

"""Decorrelation against matrices written out, under every rule, and on models of any library."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lax_learning as ll
from experiments.decorrelation import notebook
from lax_learning._sites._equations import all_equations
from lax_learning._sites._program import Program
from lax_learning.decorrelation import State
from tests.compare import assert_close, assert_same, differs, normal, slow_but, squares
from tests.registry import AT_REST, INPUT_SHAPES, NETWORKS, RULES

KEY = jax.random.key(0)
SIGMAS = 5.0


def moved(layers: Any) -> Any:
    """As after some learning: R near the identity, without any structure."""
    rng = np.random.default_rng(0)

    def by_noise(leaf: Any) -> Any:
        noise = 0.3 * rng.normal(size=leaf.shape)
        return leaf + jnp.asarray(noise, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(by_noise, layers)


# --- one update, against matrices written out


def explicit(variant: str, state: State, x: np.ndarray, eta: float, kappa: float) -> tuple[Any, Any, Any]:
    """R, b and the loss of an update by the matrix of moments itself."""
    r, b = np.asarray(state.R), state.b
    z = np.stack([r @ vector + (0 if b is None else b) for vector in x.reshape(-1, len(r))])
    c = np.mean([np.outer(vector, vector) for vector in z], axis=0)
    off_diagonal, excess = c - np.diag(np.diag(c)), np.diag(np.diag(c) - 1)
    change = (1 - kappa) * off_diagonal @ r + kappa * (excess @ r if variant == "paper" else r @ excess)
    loss = ((1 - kappa) * np.sum(off_diagonal**2) + kappa * np.sum(excess**2)) / len(c) ** 2
    return r - eta * change, None if b is None else b - eta * z.mean(axis=0), loss


FORMS: list[tuple[Any, dict[str, Any]]] = [
    ("paper", {}),
    ("paper", {"lower": True, "bias": True}),
    ("decorbp", {"lower": True, "bias": True}),
    ("paper", {"bias": True}),
    ("decorbp", {}),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("variant", "options"), slow_but(FORMS[1:4], FORMS), ids=str)
def test_an_update_is_that_of_the_matrices(variant: Any, options: dict[str, Any]) -> None:
    size, eta, rng = 5, 0.07, np.random.default_rng(1)
    make = partial(ll.decorrelation.dynamics, variant=variant, **options)

    @jax.jit
    def update(state: Any, x: Any, eta: Any, kappa: Any) -> Any:
        return make(eta, kappa=kappa).update(KEY, state, x)

    r = rng.normal(size=(size, size))
    start = make(eta).init(size)
    assert (start.b is not None) == options.get("bias", False)
    state = start._replace(R=jnp.asarray(np.tril(r) if options.get("lower") else r))
    if start.b is not None:
        state = state._replace(b=jnp.asarray(rng.normal(size=size)))
    for kappa in (0.3, 1.0):
        for batch in ((3,), (2, 4)):  # fewer vectors than numbers in them, and more
            x = rng.normal(size=(*batch, size))
            after, diagnostics = update(state, x, eta, kappa)
            r, b, loss = explicit(variant, state, x, eta, kappa)
            assert_close((after.R, after.b), (np.tril(r) if options.get("lower") else r, b), ulps=256)
            assert_close(diagnostics.loss, np.asarray(loss), ulps=256)
            assert after.step == 1


# --- what is computed, and what never is


def multiply_adds(equations: Iterable[Any]) -> list[int]:
    """Of every matrix product."""
    found = []
    for equation in equations:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            found.append(terms * math.prod(equation.outvars[0].aval.shape))
    return found


def test_an_update_costs_three_products_of_the_size_of_the_batch() -> None:
    size, batch = 64, 8
    dynamics = ll.decorrelation.dynamics(0.1, lower=True, bias=True)
    args = KEY, dynamics.init(size), jnp.ones((batch, size))
    costs = multiply_adds(all_equations(jax.make_jaxpr(dynamics.update)(*args).jaxpr))
    assert sorted(costs) == [batch**2 * size] + [batch * size**2] * 3  # the first is the loss
    analysis: Any = jax.jit(dynamics.update).lower(*args).compile().cost_analysis()
    assert 6 * batch * size**2 <= analysis["flops"] < 9 * batch * size**2 < 2 * size**3


WIDTHS = (37, 41, 43)  # primes, so that no product is met by chance


@pytest.mark.parametrize(
    "name", slow_but(["node_perturbation"], ["kolen_pollack", "node_perturbation", "weight_perturbation"])
)
def test_no_array_of_batch_times_weights_and_no_product_of_sizes_cubed_in_a_training_step(name: str) -> None:
    batch, model = 31, ll.mlp(WIDTHS, activation=jnp.tanh)
    data = ll.data.Splits(*[ll.data.Dataset(jnp.ones((40, WIDTHS[0])), jnp.ones((40, WIDTHS[-1])))] * 3)
    rule = rule_of(model, make_rule=RULES[name], bias=True, every=2, subsample=0.5)
    train = ll.make_train(rule, optax.sgd(0.1), init=model.init, num_updates=2, batch_size=batch)
    state = jax.eval_shape(train.init, KEY, data)
    found = list(all_equations(jax.make_jaxpr(train.advance)(state, 0, data).jaxpr))
    sizes = [math.prod(v.aval.shape) for e in found for v in e.outvars if hasattr(v.aval, "shape")]
    assert batch * max(WIDTHS) <= max(sizes) < batch * WIDTHS[0] * WIDTHS[1]
    assert max(multiply_adds(found)) <= batch * WIDTHS[1] * WIDTHS[2]


# --- where learning ends

SIZE = 8


def test_correlated_inputs_end_white() -> None:
    # Near the end a deviation D of C from the identity changes by -eta (D + N) for kappa 0.5, where half of
    # C - I counts on either side. N is the noise of the moments of a batch, of variance
    # (1 + delta_ij) / batch. Hence Var D = eta / (2 - eta) Var N.
    batch, eta, rng = 64, 0.04, np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    covariance = 1.5 * basis @ np.diag(np.geomspace(0.25, 4.0, SIZE)) @ basis.T
    root = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)
    dynamics = ll.decorrelation.dynamics(eta)

    @jax.jit
    def learn(start: Any, keys: Any) -> Any:
        def step(state: Any, key: Any) -> Any:
            return dynamics.update(key, state, jax.random.normal(key, (batch, SIZE)) @ root.T)

        return lax.scan(step, start, keys)

    state, diagnostics = learn(dynamics.init(SIZE), jax.random.split(KEY, 600))
    r = np.asarray(state.R, np.float64)
    standard_error = np.sqrt(eta / (2 - eta) * (1 + np.eye(SIZE)) / batch)
    assert np.all(np.abs(r @ covariance @ r.T - np.eye(SIZE)) < SIGMAS * standard_error)
    assert np.abs(covariance - np.eye(SIZE)).max() > 1
    assert np.mean(diagnostics.loss[-50:]) < np.mean(diagnostics.loss[:5]) / 5


Entry = Callable[[float], float]
DEAD: dict[str, tuple[ll.Dynamics, Entry, Entry]] = {
    "paper": (ll.decorrelation.dynamics(0.1, kappa=1.0), lambda s: 1 + 0.1 * (1 - s), lambda s: 1.0),
    "decorbp": (
        ll.decorrelation.dynamics(0.1, kappa=1.0, variant="decorbp"),
        lambda s: 1 + 0.1 * (1 - s), lambda s: 1.0,
    ),
    "notebook": (notebook.dynamics(0.1), lambda s: 1 + 0.1 * (1 - s) / s, lambda s: 1.0),
    "scaled": (notebook.dynamics(0.1, scaled=True), lambda s: (1 - 0.1 * s) / s, lambda s: 1 - 0.1 * s),
}  # fmt: skip
"""Dynamics, and what becomes of an entry 1 of R by the mean square of a living and of a dead input."""


@pytest.mark.parametrize("name", slow_but(["paper"], DEAD))
def test_dead_inputs_zeros_and_nan(name: str) -> None:
    """A mean square below 1e-8 is left alone. Zeros teach nothing, and NaN reaches every row."""
    dynamics, alive, dead = DEAD[name]
    update, start = jax.jit(dynamics.update), dynamics.init(2)
    for square in (0.5e-8, 2e-8):
        x = np.float32(np.stack([np.ones(8), np.sqrt(square) * np.resize([1, -1], 8)], axis=1))
        expected = (alive if square > 1e-8 else dead)(square)
        np.testing.assert_allclose(update(KEY, start, x)[0].R[1, 1], expected, rtol=1e-6)
    after, diagnostics = update(KEY, start, np.zeros((8, 2), np.float32))
    assert_same(after.R, start.R)
    assert_close(diagnostics.loss, jnp.asarray(0.5), ulps=4)
    # Also the row of the input itself: its mean square is not small, but undefined.
    after, diagnostics = update(KEY, start, normal(1, 8, 2).at[0, 0].set(jnp.nan))
    assert jnp.isnan(after.R).any(axis=1).all() and jnp.isnan(diagnostics.loss)


# --- every k-th call, and a share of the vectors


@jax.jit
def run_lazily(start: Any, keys: Any, xs: Any, eta: Any) -> Any:
    dynamics = ll.decorrelation.dynamics(eta, every=3, subsample=0.5, bias=True)

    def step(state: Any, args: Any) -> Any:
        state, diagnostics = dynamics.update(args[0], state, args[1])
        return state, (state, diagnostics.loss)

    return lax.scan(step, start, (keys, xs))[1]


def test_every_third_call() -> None:
    always = jax.jit(ll.decorrelation.dynamics(0.1, subsample=0.5, bias=True).update)
    keys, xs = jax.random.split(KEY, 5), normal(1, 5, 6, 4)
    before = ll.decorrelation.dynamics(0.1, bias=True).init(4)
    states, losses = run_lazily(before, keys, xs, 0.1)
    np.testing.assert_array_equal(np.isnan(losses), [i % 3 != 0 for i in range(5)])
    for i in range(5):
        after = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        assert after.step == i + 1
        if i % 3:
            assert_same(after[:2], before[:2])
        else:
            expected, diagnostics = always(keys[i], before, xs[i])
            assert differs(after[:2], before[:2])
            assert_close((after, losses[i]), (expected, diagnostics.loss), ulps=64)
        before = after


@pytest.mark.parametrize(
    ("subsample", "count"),
    slow_but([(1e-9, 1), (0.97, 19), (0.99, 20)], [(1e-9, 1), (0.26, 5), (0.5, 10), (0.97, 19), (0.99, 20)]),
)
def test_a_share_counts_every_vector_once(subsample: float, count: int) -> None:
    # Each vector moves one entry of the diagonal; those that are not drawn are dead.
    dynamics = ll.decorrelation.dynamics(0.1, kappa=1.0, subsample=subsample)
    x = math.sqrt(4.0 * count) * jnp.eye(20)
    diagonal = np.diag(jax.jit(dynamics.update)(KEY, dynamics.init(20), x)[0].R)
    expected = [1 - 0.1 * (4 - 1)] * count + [1.0] * (20 - count)
    np.testing.assert_allclose(np.sort(diagonal), expected, rtol=1e-5)


def test_a_share_is_unbiased_and_drawn_without_replacement() -> None:
    x, count = normal(1, 12, 3) @ normal(2, 3, 3), 2000
    dynamics = ll.decorrelation.dynamics(1.0, kappa=0.0, subsample=0.5)  # R = I - C_off after one update
    state = dynamics.init(3)
    after = jax.jit(jax.vmap(lambda key: dynamics.update(key, state, x)[0].R))
    estimates = np.eye(3) - np.asarray(after(jax.random.split(KEY, count)), np.float64)
    off_diagonal = ~np.eye(3, dtype=bool)
    error = (estimates.mean(axis=0) - np.asarray(x.T @ x / 12, np.float64))[off_diagonal]
    spread = estimates.std(axis=0, ddof=1)[off_diagonal]
    assert np.all(np.abs(error) < SIGMAS * spread / math.sqrt(count))
    # 6 of 12 without replacement: Var = s^2 / 6 (1 - 6 / 12); with replacement it would be twice that.
    terms = np.einsum("ni,nj->nij", x, x)
    expected = terms.var(axis=0, ddof=1)[off_diagonal] / 6 * (1 - 6 / 12)
    np.testing.assert_allclose(spread**2, expected, rtol=SIGMAS * math.sqrt(2 * 2 / count))


# --- the contract of an update


# --- products and convolutions as matrices, whatever their axes are called

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
PRODUCTS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "rows": (lambda w, x: x @ w, (3, 4), (5, 3)),
    "columns": (lambda w, x: lax.dot_general(w, x, (((1,), (1,)), ((), ()))), (4, 3), (5, 3)),
    "two axes contracted": (lambda w, x: jnp.einsum("bij,ojik->bok", x, w), (6, 4, 3, 2), (5, 3, 4)),
    "grouped, dilated convolution, channels first": (
        lambda w, x: lax.conv_general_dilated(
            x, w, (1, 1), [(1, 2), (0, 1)], rhs_dilation=(1, 2), feature_group_count=2, dimension_numbers=NCHW
        ),
        (6, 2, 2, 3),
        (2, 4, 7, 8),
    ),
    "transposed convolution": (
        lambda w, x: lax.conv_general_dilated(
            x, w, (1, 1), [(2, 1), (2, 2)], lhs_dilation=(2, 2), dimension_numbers=NHWC
        ),
        (3, 3, 2, 4),
        (2, 4, 4, 2),
    ),
}


@pytest.mark.parametrize("name", slow_but(list(PRODUCTS)[2:4], PRODUCTS))
def test_layout(name: str) -> None:
    op, w_shape, x_shape = PRODUCTS[name]
    w, x = normal(1, *w_shape), normal(2, *x_shape)
    (site,) = Program(ll.Model(lambda w, x: op(w, x)), w, x).plan.all_sites
    layout = site.layout
    assert layout is not None
    vectors, matrix = layout.vectors(x), layout.matrix(w)
    assert vectors.shape[:-2] == matrix.shape[:-2] == layout.groups
    assert vectors.shape[-1] == matrix.shape[-2] == layout.size
    np.testing.assert_array_equal(layout.unmatrix(matrix), w)
    assert_close(jnp.sort((vectors @ matrix).ravel()), jnp.sort(op(w, x).ravel()), ulps=64)
    r, b = normal(3, *layout.groups, layout.size, layout.size), normal(4, *layout.groups, layout.size)
    found = layout.transformed(op, w, x, r, b)
    expected = (vectors @ jnp.swapaxes(r, -1, -2) + b[..., None, :]) @ matrix
    assert_close(jnp.sort(found.ravel()), jnp.sort(expected.ravel()), ulps=256)


# --- models on decorrelated inputs


def rule_of(model: ll.Model, eta: Any = 0.1, make_rule: Any = ll.backprop, **options: Any) -> ll.Rule:
    return ll.decorrelation.rule(
        lambda m: make_rule(m, squares), model, ll.decorrelation.dynamics(eta, **options)
    )


INIT = jax.nn.initializers.uniform(1.0)
DENSE = ll.mlp((5, 4, 3), activation=jnp.tanh, w_init=INIT, b_init=INIT)
PARAMS, X, Y = DENSE.init(KEY), normal(10, 6, 5), normal(11, 6, 3)
LAYERS = moved(rule_of(DENSE, bias=True).init(KEY, PARAMS, X).layers)


ON_NETWORKS = [("dense", n) for n in RULES if not n.endswith(("_2", "_3", "_signs", "_shared"))] + [
    (kind, name)
    for kind in ("convolutional", "recurrent")
    for name in ("direct_feedback_alignment", "node_perturbation")
]
"""Every rule, but not every form of its noise, and not on every network: each costs a compilation."""


@pytest.mark.parametrize(("kind", "name"), slow_but([("convolutional", "node_perturbation")], ON_NETWORKS))
def test_the_identity_changes_nothing(kind: str, name: str) -> None:
    model = NETWORKS[kind](jnp.float32)
    params, x, y = model.init(KEY), normal(1, 3, *INPUT_SHAPES[kind]), normal(2, 3, 2)
    layers = rule_of(model, bias=True).init(KEY, params, x).layers

    def run(model: ll.Model) -> Any:
        rule = RULES[name](model, ll.squared_error)
        return rule.value_and_grad(KEY, params, rule.init(KEY, params, x), x, y)[:2]

    # Products with the identity are exact; sums may be fused in another order, and divided by sigma.
    found = jax.jit(lambda layers: (run(model), run(ll.decorrelation.wrap(model, layers))))(layers)
    assert_close(*found, ulps=256)
    assert name in AT_REST or all(bool(jnp.any(layer["w"] != 0)) for layer in found[1][1])


def test_feedback_alignment_on_decorrelated_inputs() -> None:
    assert list(LAYERS) == ["0/w", "1/w"]
    rule = ll.feedback_alignment(ll.decorrelation.wrap(DENSE, LAYERS), squares)
    state = jax.jit(rule.init)(KEY, PARAMS, X)
    loss, grads, _ = jax.jit(rule.value_and_grad)(KEY, PARAMS, state, X, Y)
    (one, two), (first, second), feedback = jax.tree.map(
        np.asarray, (PARAMS, tuple(LAYERS.values()), state.feedback)
    )
    u = X @ first.R.T + first.b
    a = np.tanh(u @ one["w"] + one["b"])
    v = a @ second.R.T + second.b
    error = v @ two["w"] + two["b"] - Y
    delta = 2 * error / len(X)
    hidden = (delta @ feedback[1]["w"].T @ second.R) * (1 - a**2)
    assert_close(loss, np.mean(np.sum(error**2, axis=1)), ulps=32)
    expected = ({"w": u.T @ hidden, "b": hidden.sum(0)}, {"w": v.T @ delta, "b": delta.sum(0)})
    assert_close(grads, expected, ulps=64)


# --- sharing


def attention(p: Any, x: Any) -> jax.Array:
    """Two heads, whose queries, keys and values read one x."""
    q, k, v = (jnp.einsum("bti,ihd->bthd", x, p[name]) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bthd,hdo->bto", jnp.einsum("bhts,bshd->bthd", weights, v), p["out"])


def stacked(p: Any, x: Any) -> jax.Array:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]


def drawn(make_model: Any, *shape: int) -> tuple[ll.Model, Any, Any]:
    """A model, its params and correlated inputs."""
    return make_model, make_model.init(KEY), normal(5, *shape) @ (jnp.eye(shape[-1]) + 0.5)


PROBLEMS: dict[str, Callable[[], tuple[ll.Model, Any, Any]]] = {
    "attention": lambda: (
        ll.Model(attention),
        {name: 0.5 * normal(i, 6, 2, 3) for i, name in enumerate(("query", "key", "value"))}
        | {"out": 0.5 * normal(3, 2, 3, 4)},
        normal(5, 40, 5, 6) @ (jnp.eye(6) + 0.5),
    ),
    "convolution": lambda: drawn(ll.convnet((7, 8, 2), (3,), (4, 3), kernel=3, stride=2), 40, 7, 8, 2),
    "recurrent": lambda: drawn(ll.rnn((5, 4, 2)), 40, 6, 5),
    "stacked": lambda: (ll.Model(stacked), normal(1, 4, 3, 3), normal(5, 40, 3) @ (jnp.eye(3) + 0.5)),
}


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "attention": {"query": (6, 6), "out": (6, 6)},  # query, key and value share the matrix of x
    "convolution": {"0/w": (18, 18), "1/w": (48, 48), "2/w": (4, 4)},
    "recurrent": {"0/w": (5, 5), "0/u": (4, 4), "1/w": (4, 4)},
    "stacked": {"": (4, 3, 3)},
}


@pytest.mark.parametrize("name", slow_but(["attention", "stacked"], PROBLEMS))
def test_one_matrix_for_a_value_one_a_stacked_layer(name: str) -> None:
    model, params, x = PROBLEMS[name]()
    layers = jax.eval_shape(rule_of(model).init, KEY, params, x[:1]).layers
    assert {name: layer.R.shape for name, layer in layers.items()} == SHAPES[name]


def test_layers_and_steps_are_those_of_a_loop() -> None:
    """Stacked layers in a scan over layers, around a scan over time."""

    def layer(w: Any, h: Any) -> Any:
        return lax.scan(lambda c, x: (c, jnp.tanh(x @ w["in"] + c)), jnp.zeros((5, 3)), h)[1]

    def scanned(p: Any, x: Any) -> Any:
        return lax.scan(lambda h, w: (layer(w, h), None), x.swapaxes(0, 1), p)[0][-1]

    def looped(p: Any, x: Any) -> Any:
        h = x.swapaxes(0, 1)
        for i in range(2):
            h = layer(jax.tree.map(lambda w, i=i: w[i], p), h)
        return h[-1]

    params, x, y, found = {"in": normal(1, 2, 3, 3)}, normal(2, 5, 4, 3), jnp.ones((5, 3)), []
    drawn = moved(State(jnp.stack([jnp.eye(3)] * 2), jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)))
    for apply in (scanned, looped):
        rule = rule_of(ll.Model(apply), bias=True)
        state = rule.init(KEY, params, x)
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], drawn) for i in (0, 1)]
        layers = dict(zip(state.layers, [drawn] if apply is scanned else each, strict=True))
        loss, grads, state = jax.jit(rule.value_and_grad)(KEY, params, state._replace(layers=layers), x, y)
        (first, *rest) = state.layers.values()
        after = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *rest) if rest else first
        found.append((loss, grads, after))
    assert_close(*found, ulps=64)


# --- learning on models, and plain weights


@pytest.mark.parametrize("name", slow_but(["attention", "stacked"], PROBLEMS))
def test_folded_weights_do_the_same(name: str) -> None:
    model, params, x = PROBLEMS[name]()
    x = x[:3]
    apply = jax.jit(model.apply)
    rule = rule_of(model)
    state = rule.init(KEY, params, x)
    state = state._replace(layers=moved(state.layers))
    folded = ll.decorrelation.fold(model, params, state.layers, x)
    expected = jax.jit(rule.model_at(model, state).apply)(params, x)
    assert_close(apply(folded, x), expected, ulps=256)
    assert differs(apply(params, x), expected)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, params)


# --- rules with state, and training runs

LABELS = jax.nn.one_hot(jnp.argmax(normal(20, 24, 5) @ normal(21, 5, 3), axis=1), 3)
INPUTS = (normal(20, 24, 5) + 1.0) @ normal(22, 5, 5)
BACKPROP = partial(ll.backprop, loss=ll.softmax_cross_entropy)


def test_a_step_is_the_rule_on_decorrelated_inputs_and_an_update() -> None:
    dynamics = ll.decorrelation.dynamics(0.1, bias=True)
    noisy = partial(ll.node_perturbation, loss=ll.softmax_cross_entropy, sigma=0.5)

    @jax.jit
    def run(layers: Any) -> Any:
        steps = []
        for make_rule in (BACKPROP, noisy):
            rule = ll.decorrelation.rule(make_rule, DENSE, dynamics)
            start = rule.init(KEY, PARAMS, INPUTS)._replace(layers=layers)
            steps.append(rule.value_and_grad(KEY, PARAMS, start, INPUTS, LABELS))
        opened = BACKPROP(ll.decorrelation.wrap(DENSE, layers))
        vectors = ll.decorrelation.inputs(DENSE, PARAMS, layers, INPUTS)
        learned = {name: dynamics.update(KEY, layer, vectors[name]) for name, layer in layers.items()}
        return steps, opened.value_and_grad(KEY, PARAMS, (), INPUTS, LABELS)[:2], vectors, learned

    ((loss, grads, state), (*_, after)), expected, vectors, learned = run(LAYERS)
    assert_close((loss, grads), expected, ulps=64)
    assert_same(vectors["0/w"], INPUTS)
    assert_close(state.layers, {name: layer for name, (layer, _) in learned.items()}, ulps=64)
    assert_close(state.losses, {name: found.loss for name, (_, found) in learned.items()}, ulps=64)
    assert all(layer.step == 1 for layer in state.layers.values())
    assert_close(after.layers, state.layers, ulps=64)  # the noise of a rule does not enter the moments


def test_a_step_has_one_key_for_the_rule_and_one_for_each_layer() -> None:
    """And each of stacked layers has one of its own."""

    def rule_key(model: ll.Model) -> ll.Rule:
        def value_and_grad(key: Any, params: Any, *_: Any) -> Any:
            return jnp.zeros(()), params, jax.random.key_data(key)[0]

        return BACKPROP(model)._replace(value_and_grad=value_and_grad)

    def update(key: Any, state: State, x: Any) -> Any:
        taken = jax.random.key_data(key)[0].astype(jnp.int32)
        return state._replace(step=taken), dynamics.update(key, state, x)[1]

    dynamics = ll.decorrelation.dynamics(0.1)
    model, params, x = PROBLEMS["stacked"]()
    deep = ll.Model(lambda p, x: model.apply(p["stacked"], x @ p["one"]))
    rule = ll.decorrelation.rule(rule_key, deep, dynamics._replace(update=update))

    @jax.jit
    def run(params: Any) -> Any:
        state = rule.value_and_grad(KEY, params, rule.init(KEY, params, x), x, x)[2]
        return [state.rule, *(layer.step for layer in state.layers.values())]

    keys = np.concatenate([np.ravel(k) for k in run({"one": jnp.eye(3), "stacked": params})])
    assert len(set(keys.tolist())) == len(keys) == 1 + 1 + 4


def test_where_leaves_the_other_inputs_alone() -> None:
    rule = ll.decorrelation.rule(BACKPROP, DENSE, ll.decorrelation.dynamics(0.1), where="1/*")
    state = jax.jit(rule.init)(KEY, PARAMS, INPUTS)
    assert list(state.layers) == ["1/w"]
    _, _, after = jax.eval_shape(rule.value_and_grad, KEY, PARAMS, state, INPUTS, LABELS)
    assert list(after.layers) == ["1/w"]
    layers = moved(state.layers)
    hidden = jnp.tanh(INPUTS @ PARAMS[0]["w"] + PARAMS[0]["b"])
    expected = ll.decorrelation.apply(layers["1/w"], hidden) @ PARAMS[1]["w"] + PARAMS[1]["b"]
    assert_close(ll.decorrelation.wrap(DENSE, layers, where="1/*").apply(PARAMS, INPUTS), expected, ulps=32)
    folded = ll.decorrelation.fold(DENSE, PARAMS, layers, INPUTS, where="1/*")
    assert_same(folded[0], PARAMS[0])
    assert_close(DENSE.apply(folded, INPUTS), expected, ulps=32)

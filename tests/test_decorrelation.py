"""Decorrelation against matrices written out, under every rule, and on models of any library."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax import lax

import lax_learning as ll
from experiments.decorrelation import notebook
from lax_learning import metrics
from lax_learning._sites._program import Program
from lax_learning.decorrelation import State
from lax_learning.training import History
from tests.compare import assert_close, assert_same, differs
from tests.registry import INPUT_SHAPES, NETWORKS, RULES
from tests.zoo import ZOO

KEY = jax.random.key(0)
SIGMAS = 5.0
DEAD = 1e-8
NUMBER = {"paper": "kappa", "decorbp": "kappa", "notebook": "variance", "scaled": "variance"}
LIBRARY = ("paper", "decorbp")


def make(variant: str, eta: Any = 0.1, number: Any = None, **options: Any) -> ll.Dynamics:
    """The library's dynamics, or those of the experiment's notebook, made as a user makes his own."""
    options |= {} if number is None else {NUMBER[variant]: number}
    if variant in LIBRARY:
        return ll.decorrelation.dynamics(eta, variant=variant, **options)  # pyright: ignore[reportArgumentType]
    return notebook.dynamics(eta, scaled=variant == "scaled", **options)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def moved(layers: Any) -> Any:
    """As after some learning: R near the identity, without any structure."""
    rng = np.random.default_rng(0)

    def by_noise(leaf: Any) -> Any:
        noise = 0.3 * rng.normal(size=leaf.shape)
        return leaf + jnp.asarray(noise, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(by_noise, layers)


# --- one update, against matrices written out


def explicit_loss(c: np.ndarray, variant: str, number: float) -> float:
    total = 0.0
    for i in range(len(c)):
        for j in range(len(c)):
            if NUMBER[variant] == "variance":
                total += (c[i, j] - number * (i == j)) ** 2
            else:
                total += number * (c[i, i] - 1) ** 2 if i == j else (1 - number) * c[i, j] ** 2
    return total / len(c) ** 2


def explicit(variant: str, state: State, x: np.ndarray, eta: float, number: float) -> tuple[Any, Any, float]:
    """R, b and the loss of an update by the matrix of moments itself."""
    r, b = np.asarray(state.R), state.b
    z = np.stack([r @ vector + (0 if b is None else b) for vector in x.reshape(-1, len(r))])
    c = np.mean([np.outer(vector, vector) for vector in z], axis=0)
    dead = np.diag(c) < DEAD
    off_diagonal, excess = c - np.diag(np.diag(c)), np.diag(np.where(dead, 0, np.diag(c) - 1))
    n = np.diag(np.where(dead, 1, number / np.where(dead, 1, np.diag(c))))
    after = {
        "paper": lambda: r - eta * ((1 - number) * off_diagonal + number * excess) @ r,
        "decorbp": lambda: r - eta * ((1 - number) * off_diagonal @ r + number * r @ excess),
        "notebook": lambda: r + eta * (n @ r - n @ c @ r),
        "scaled": lambda: n @ (r - eta * c @ r),
    }[variant]()
    return after, None if b is None else b - eta * z.mean(axis=0), explicit_loss(c, variant, number)


FORMS = [
    *((variant, {"lower": lower, "bias": bias}) for variant in LIBRARY for lower, bias in ((0, 0), (1, 1))),
    ("paper", {"bias": True}),
    ("notebook", {}),
    ("scaled", {}),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("variant", "options"), FORMS, ids=str)
def test_an_update_is_that_of_the_matrices(variant: str, options: dict[str, Any]) -> None:
    size, eta, rng = 5, 0.07, np.random.default_rng(1)
    options = {name: bool(flag) for name, flag in options.items()}

    @jax.jit
    def update(state: Any, x: Any, eta: Any, number: Any) -> Any:
        return make(variant, eta, number, **options).update(KEY, state, x)

    r = rng.normal(size=(size, size))
    start = make(variant, **options).init(size)
    assert (start.b is not None) == options.get("bias", False)
    state = start._replace(R=jnp.asarray(np.tril(r) if options.get("lower") else r))
    if start.b is not None:
        state = state._replace(b=jnp.asarray(rng.normal(size=size)))
    for number in (0.3, 1.0):
        for batch in ((3,), (2, 4)):  # fewer vectors than numbers in them, and more
            x = rng.normal(size=(*batch, size))
            after, diagnostics = update(state, x, eta, number)
            r, b, loss = explicit(variant, state, x, eta, number)
            assert_close((after.R, after.b), (np.tril(r) if options.get("lower") else r, b), ulps=256)
            assert_close(diagnostics.loss, np.asarray(loss), ulps=256)
            assert after.step == 1


def test_default_options() -> None:
    x = normal(1, 6, 4)
    state = ll.decorrelation.dynamics(0.1).init(4)
    named = ll.decorrelation.dynamics(0.1, kappa=0.5, variant="paper")
    assert_same(ll.decorrelation.dynamics(0.1).update(KEY, state, x), named.update(KEY, state, x))
    assert_same(ll.decorrelation.loss(x), ll.decorrelation.loss(x, kappa=0.5))


def test_start_and_apply() -> None:
    state = ll.decorrelation.dynamics(0.1, bias=True).init(6)
    assert_same(state, State(jnp.eye(6), jnp.zeros(6), jnp.zeros((), jnp.int32)))
    r, b, x = normal(1, 4, 4), normal(2, 4), normal(3, 2, 3, 4)
    expected = np.einsum("ij,abj->abi", r, x)
    assert_close(ll.decorrelation.apply(State(r), x), expected, ulps=16)
    assert_close(ll.decorrelation.apply(State(r, b), x), expected + b, ulps=16)
    assert_close(ll.decorrelation.apply(State(r), x[0, 0]), expected[0, 0], ulps=16)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5)], ids=str)
def test_loss_is_the_formula(shape: tuple[int, ...]) -> None:
    z = np.random.default_rng(2).normal(size=shape)
    rows = z.reshape(-1, shape[-1])
    for kappa in (0.0, 0.3, 1.0):
        expected = explicit_loss(rows.T @ rows / len(rows), "paper", kappa)
        assert_close(ll.decorrelation.loss(z, kappa=kappa), np.asarray(expected), ulps=64)


# --- what is computed, and what never is


def equations_of(jaxpr: Any) -> Iterator[Any]:
    """All that is computed, in loops, branches and functions within too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations_of(inner)


def products(function: Callable[..., Any], *args: Any) -> list[int]:
    """Multiply-adds of every matrix product."""

    def multiply_adds(equation: Any) -> int:
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return terms * math.prod(equation.outvars[0].aval.shape)

    found = equations_of(jax.make_jaxpr(function)(*args).jaxpr)
    return [multiply_adds(equation) for equation in found if equation.primitive.name == "dot_general"]


@pytest.mark.parametrize("variant", LIBRARY)
def test_an_update_costs_three_products_of_the_size_of_the_batch(variant: str) -> None:
    size, batch = 64, 8
    dynamics = make(variant, lower=True, bias=True)
    args = KEY, dynamics.init(size), jnp.ones((batch, size))
    costs = products(dynamics.update, *args)
    assert sorted(costs) == [batch**2 * size] + [batch * size**2] * 3  # the first is the loss
    if variant == "paper":
        analysis: Any = jax.jit(dynamics.update).lower(*args).compile().cost_analysis()
        assert 6 * batch * size**2 <= analysis["flops"] < 9 * batch * size**2 < 2 * size**3


WIDTHS = (37, 41, 43)  # primes, so that no product is met by chance


def test_no_array_of_batch_times_weights_and_no_product_of_sizes_cubed_in_a_training_step() -> None:
    batch, model = 31, ll.mlp(WIDTHS, activation=jnp.tanh)
    data = ll.data.Splits(*[ll.data.Dataset(jnp.ones((40, WIDTHS[0])), jnp.ones((40, WIDTHS[-1])))] * 3)
    for name in ("kp", "np", "wp"):
        dynamics = ll.decorrelation.dynamics(0.1, bias=True, every=2, subsample=0.5)
        rule = ll.decorrelation.rule(lambda m, f=RULES[name]: f(m, ll.squared_error), model, dynamics)
        train = ll.make_train(rule, optax.sgd(0.1), init=model.init, num_updates=2, batch_size=batch)
        state = jax.eval_shape(train.init, KEY, data)
        found = list(equations_of(jax.make_jaxpr(train.advance)(state, 0, data).jaxpr))
        sizes = [math.prod(v.aval.shape) for e in found for v in e.outvars if hasattr(v.aval, "shape")]
        assert batch * max(WIDTHS) <= max(sizes) < batch * WIDTHS[0] * WIDTHS[1]
        assert max(products(train.advance, state, 0, data)) <= batch * WIDTHS[1] * WIDTHS[2]


# --- where learning ends

SIZE = 8


def correlated() -> np.ndarray:
    """A full covariance, its eigenvalues between 0.25 and 4 and with mean logarithm log 1.5."""
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    return 1.5 * basis @ np.diag(np.geomspace(0.25, 4.0, SIZE)) @ basis.T


COVARIANCE = correlated()
ROOT = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)


def learn(dynamics: ll.Dynamics, batch: Callable[[Any], Any], num_steps: int, size: int = SIZE) -> Any:
    """The layer after that many updates, each on a batch of its own."""

    def step(state: Any, key: Any) -> Any:
        return dynamics.update(key, state, batch(key))

    @jax.jit
    def run(start: Any, keys: Any) -> Any:
        return lax.scan(step, start, keys)

    return run(dynamics.init(size), jax.random.split(KEY, num_steps))


def second_moment(state: State) -> np.ndarray:
    r = np.asarray(state.R, np.float64)
    return r @ COVARIANCE @ r.T


@pytest.mark.parametrize(("variant", "eta"), [("paper", 0.04), ("notebook", 0.02)])
def test_correlated_inputs_end_white(variant: str, eta: float) -> None:
    # Near the end a deviation D of C from the identity changes by -a (D + N), with a = eta for kappa 0.5,
    # where half of C - I counts on either side, and a = 2 eta for the notebook. N is the noise of the moments
    # of a batch, of variance (1 + delta_ij) / batch. Hence Var D = a / (2 - a) Var N.
    batch, a = 64, 0.04
    state, diagnostics = learn(
        make(variant, eta), lambda key: jax.random.normal(key, (batch, SIZE)) @ ROOT.T, 600
    )
    deviation = second_moment(state) - np.eye(SIZE)
    standard_error = np.sqrt(a / (2 - a) * (1 + np.eye(SIZE)) / batch)
    assert np.all(np.abs(deviation) < SIGMAS * standard_error)
    assert np.abs(COVARIANCE - np.eye(SIZE)).max() > 1
    assert np.mean(diagnostics.loss[-50:]) < np.mean(diagnostics.loss[:5]) / 5


def test_pure_decorrelation_leaves_variances_free() -> None:
    # Near the end C_ij of i != j changes by -a (C_ij + N_ij), a = eta (C_ii + C_jj), of noise with variance
    # C_ii C_jj / batch. The logarithm of det R changes by -eta tr(C_off) = 0 and by -eta^2 / 2 tr(C_off^2),
    # of which noise alone makes `drift`.
    batch, eta, steps = 64, 0.01, 1000
    state, _ = learn(
        make("paper", eta, 0.0), lambda key: jax.random.normal(key, (batch, SIZE)) @ ROOT.T, steps
    )
    c = second_moment(state)
    variances = np.diag(c)
    a = eta * (variances[:, None] + variances)
    correlation = c / np.sqrt(np.outer(variances, variances))
    bound = SIGMAS * np.sqrt(a / (2 - a) / batch)
    assert np.all(np.abs(correlation - np.eye(SIZE)) < bound + 1e-12)
    spread = np.sqrt(np.diag(COVARIANCE))
    before = COVARIANCE / np.outer(spread, spread) - np.eye(SIZE)
    assert np.abs(bound).max() < np.abs(before).max() / 2
    assert np.abs(variances - 1).max() > 0.5
    drift = steps * eta**2 / 2 * (np.sum(variances) ** 2 - np.sum(variances**2)) / batch
    log_determinant = float(np.linalg.slogdet(np.asarray(state.R, np.float64))[1])
    assert abs(log_determinant) < 2 * drift < 0.3


EXACT = math.sqrt(SIZE) * ROOT.T  # a batch with that covariance to the last digit
MEAN = jnp.linspace(-1.0, 2.0, SIZE)


def test_a_triangular_matrix_whitens() -> None:
    state, _ = learn(make("paper", 0.05, lower=True), lambda key: EXACT, 1500)
    r = np.asarray(state.R)
    assert np.all(r[np.triu_indices(SIZE, 1)] == 0) and np.abs(np.tril(r, -1)).max() > 0.1
    np.testing.assert_allclose(second_moment(state), np.eye(SIZE), atol=1e-4)
    # the only one with a positive diagonal
    np.testing.assert_allclose(r, np.linalg.inv(np.linalg.cholesky(COVARIANCE)), atol=1e-3)


def test_bias_removes_the_mean() -> None:
    x = jnp.concatenate([EXACT, -EXACT]) + MEAN
    for bias in (True, False):  # without it white all the same, about 0
        state, _ = learn(make("paper", 0.05, bias=bias), lambda key: x, 1500)
        z = np.asarray(ll.decorrelation.apply(state, x))
        np.testing.assert_allclose(z.T @ z / len(z), np.eye(SIZE), atol=1e-3)
        largest = np.abs(z.mean(axis=0)).max()
        assert largest < 1e-4 if bias else largest > 0.1


# "notebook" multiplies the row of a dead input by 1 + eta
@pytest.mark.parametrize("variant", NUMBER)
def test_dead_inputs_keep_their_rows(variant: str) -> None:
    dead = np.array([2, 5])

    def batch(key: Any) -> Any:
        return (jax.random.normal(key, (16, SIZE)) @ ROOT.T).at[:, dead].set(0)

    # "scaled" divides by variances where standard deviations would do, and is soon far off with any inputs
    state, diagnostics = learn(make(variant, 0.02), batch, 10 if variant == "scaled" else 200)
    r = np.asarray(state.R)
    np.testing.assert_array_equal(r[dead], np.eye(SIZE)[dead])
    np.testing.assert_array_equal(r[:, dead], np.eye(SIZE)[:, dead])
    assert np.all(np.isfinite(r)) and np.all(np.isfinite(diagnostics.loss))
    assert differs(np.delete(r, dead, 0), np.delete(np.eye(SIZE, dtype=r.dtype), dead, 0))


@pytest.mark.parametrize("variant", NUMBER)
def test_zeros_teach_nothing_and_nan_reaches_every_row(variant: str) -> None:
    dynamics = make(variant)
    state = dynamics.init(3)
    after, diagnostics = dynamics.update(KEY, state, jnp.zeros((4, 3)))
    assert_same(after.R, state.R)
    expected = 1 / 6 if NUMBER[variant] == "kappa" else 1 / 3
    assert_close(diagnostics.loss, jnp.asarray(expected), ulps=4)
    # Also the row of the input itself: its mean square is not small, but undefined.
    after, diagnostics = dynamics.update(KEY, state, normal(1, 4, 3).at[0, 0].set(jnp.nan))
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
    always = ll.decorrelation.dynamics(0.1, subsample=0.5, bias=True)
    keys, xs = jax.random.split(KEY, 8), normal(1, 8, 6, 4)
    before = always.init(4)
    states, losses = run_lazily(before, keys, xs, 0.1)
    np.testing.assert_array_equal(np.isnan(losses), [i % 3 != 0 for i in range(8)])
    for i in range(8):
        after = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        assert after.step == i + 1
        if i % 3:
            assert_same(after[:2], before[:2])
        else:
            expected, diagnostics = always.update(keys[i], before, xs[i])
            assert differs(after[:2], before[:2])
            assert_close((after, losses[i]), (expected, diagnostics.loss), ulps=64)
        before = after


def test_every_third_call_under_vmap() -> None:
    keys = jax.random.split(KEY, (3, 8))
    xs, etas = normal(1, 3, 8, 6, 4), jnp.array([0.05, 0.1, 0.2])
    start = ll.decorrelation.dynamics(0.1, bias=True).init(4)
    steps = jnp.array([0, 1, 2], jnp.int32)  # members that are out of step
    starts = [start._replace(step=step) for step in steps]
    loop = [run_lazily(*args) for args in zip(starts, keys, xs, etas, strict=True)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    states, losses = jax.vmap(run_lazily)(stacked, keys, xs, etas)
    expected, expected_losses = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)
    assert np.array_equal(np.isnan(losses), np.isnan(expected_losses))
    assert_close((states, jnp.nan_to_num(losses)), (expected, jnp.nan_to_num(expected_losses)), ulps=64)


@pytest.mark.parametrize(
    ("subsample", "count"), [(1e-9, 1), (0.1, 2), (0.26, 5), (0.5, 10), (0.97, 19), (0.99, 20), (1.0, 20)]
)
def test_a_share_counts_every_vector_once(subsample: float, count: int) -> None:
    # Each vector moves one entry of the diagonal; those that are not drawn are dead.
    dynamics = make("paper", 0.1, 1.0, subsample=subsample)
    x = math.sqrt(4.0 * count) * jnp.eye(20)
    diagonal = np.diag(dynamics.update(KEY, dynamics.init(20), x)[0].R)
    expected = [1 - 0.1 * (4 - 1)] * count + [1.0] * (20 - count)
    np.testing.assert_allclose(np.sort(diagonal), expected, rtol=1e-5)


def test_a_share_is_unbiased_and_drawn_without_replacement() -> None:
    x, count = normal(1, 12, 3) @ normal(2, 3, 3), 2000
    dynamics = make("paper", 1.0, 0.0, subsample=0.5)  # R = I - C_off after one update
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


def test_jit_and_vmap_change_nothing() -> None:
    traces = []

    def update(key: Any, state: Any, x: Any, eta: Any, kappa: Any) -> Any:
        traces.append(key)
        return make("paper", eta, kappa, bias=True, subsample=0.5).update(key, state, x)

    compiled = jax.jit(update)
    state, keys = moved(make("paper", bias=True).init(5)), jax.random.split(KEY, 3)
    xs, etas, kappas = normal(1, 3, 8, 5), jnp.array([0.0, 0.1, 0.2]), jnp.array([0.2, 0.5, 1.0])
    members = [(keys[i], state, xs[i], etas[i], kappas[i]) for i in range(3)]
    one_by_one = [compiled(*args) for args in members]
    assert len(traces) == 1, "a second call compiled again"
    assert_close(update(*members[1]), one_by_one[1], ulps=64)
    together = jax.jit(jax.vmap(update, (0, None, 0, 0, 0)))(keys, state, xs, etas, kappas)
    assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one), ulps=64)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_state_keeps_its_dtype_whatever_the_inputs(dtype: Any) -> None:
    for every in (1, 2):
        dynamics = make("paper", jnp.float64(0.1), bias=True, every=every)
        start = dynamics.init(3)
        state = start._replace(R=start.R.astype(dtype), b=start.b.astype(dtype))
        for of_inputs in (jnp.bfloat16, jnp.float32, jnp.float64):
            x = jnp.ones((4, 3), of_inputs)
            after, diagnostics = jax.eval_shape(dynamics.update, KEY, state, x)
            assert after == jax.eval_shape(lambda state=state: state)
            assert diagnostics.loss.dtype == jnp.promote_types(dtype, jnp.float32)


# --- products and convolutions as matrices, whatever their axes are called

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
PRODUCTS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "rows": (lambda w, x: x @ w, (3, 4), (5, 3)),
    "columns": (lambda w, x: lax.dot_general(w, x, (((1,), (1,)), ((), ()))), (4, 3), (5, 3)),
    "two axes contracted": (lambda w, x: jnp.einsum("bij,ojik->bok", x, w), (6, 4, 3, 2), (5, 3, 4)),
    "groups": (lambda w, x: jnp.einsum("bei,eio->beo", x, w), (2, 3, 4), (5, 2, 3)),
    "convolution": (
        lambda w, x: lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=NHWC),
        (3, 2, 2, 4),
        (2, 7, 6, 2),
    ),
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


@pytest.mark.parametrize("name", PRODUCTS)
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


def squares(output: Any, y: Any) -> jax.Array:
    return jnp.sum(jnp.square(output - y), axis=tuple(range(1, output.ndim)))


def rule_of(model: ll.Model, eta: Any = 0.1, make_rule: Any = ll.backprop, **options: Any) -> ll.Rule:
    return ll.decorrelation.rule(
        lambda m: make_rule(m, squares), model, ll.decorrelation.dynamics(eta, **options)
    )


INIT = jax.nn.initializers.uniform(1.0)
DENSE = ll.mlp((5, 4, 3), activation=jnp.tanh, w_init=INIT, b_init=INIT)
PARAMS, X, Y = DENSE.init(KEY), normal(10, 6, 5), normal(11, 6, 3)
LAYERS = moved(rule_of(DENSE, bias=True).init(KEY, PARAMS, X).layers)


ON_NETWORKS = [("dense", n) for n in RULES if not n.endswith(("-3", "-antithetic", "-layerwise"))] + [
    (kind, name) for kind in ("convolutional", "recurrent") for name in ("dfa", "np")
]
"""Every rule, but not every form of its noise, and not on every network: each costs a compilation."""


@pytest.mark.parametrize(("kind", "name"), ON_NETWORKS)
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
    assert all(bool(jnp.any(layer["w"] != 0)) for layer in found[1][1])


def explicit_output(params: Any, layers: Any, x: Any) -> Any:
    """The dense network, its decorrelated inputs written out."""
    (one, two), (first, second) = params, layers.values()
    z = (x @ first.R.T + first.b) @ one["w"] + one["b"]
    return (jnp.tanh(z) @ second.R.T + second.b) @ two["w"] + two["b"]


def test_backprop_on_decorrelated_inputs() -> None:
    assert list(LAYERS) == ["0/w", "1/w"]
    model = ll.decorrelation.wrap(DENSE, LAYERS)
    rule = ll.backprop(model, squares)

    @jax.jit
    def run(params: Any) -> Any:
        exact = jax.value_and_grad(lambda params: jnp.mean(squares(explicit_output(params, LAYERS, X), Y)))
        moments = metrics.example_moments(model, rule, KEY, params, (), X, Y)
        return rule.value_and_grad(KEY, params, (), X, Y)[:2], exact(params), moments.mean

    found, exact, mean = run(PARAMS)
    assert_close(found, exact, ulps=64)
    assert_close(mean, exact[1], ulps=64)


def test_feedback_alignment_on_decorrelated_inputs() -> None:
    rule = ll.feedback_alignment(ll.decorrelation.wrap(DENSE, LAYERS), squares)
    state = rule.init(KEY, PARAMS, X)
    credit = jax.jit(rule.value_and_grad)
    loss, grads, _ = credit(KEY, PARAMS, state, X, Y)
    (one, two), (first, second) = PARAMS, LAYERS.values()
    u = X @ first.R.T + first.b
    a = jnp.tanh(u @ one["w"] + one["b"])
    v = a @ second.R.T + second.b
    error = v @ two["w"] + two["b"] - Y
    delta = 2 * error / len(X)
    hidden = (delta @ state.feedback[1]["w"].T @ second.R) * (1 - a**2)
    assert_close(loss, jnp.mean(jnp.sum(error**2, axis=1)), ulps=32)
    expected = ({"w": u.T @ hidden, "b": hidden.sum(0)}, {"w": v.T @ delta, "b": delta.sum(0)})
    assert_close(grads, expected, ulps=64)
    # Feedback equal to the weights is backprop.
    exact = jax.grad(lambda params: jnp.mean(squares(explicit_output(params, LAYERS, X), Y)))(PARAMS)
    aligned = credit(KEY, PARAMS, state._replace(feedback=PARAMS), X, Y)
    assert_close(aligned[1], exact, ulps=64)


@pytest.mark.parametrize(("kind", "dtype"), [("dense", jnp.bfloat16), ("recurrent", jnp.float64)])
def test_dtypes_and_structures(kind: str, dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        model = NETWORKS[kind](dtype)
        params, x, y = model.init(KEY), jnp.ones((3, *INPUT_SHAPES[kind]), dtype), jnp.ones((3, 2), dtype)
        for name in ("kp", "np"):
            rule = rule_of(model, make_rule=RULES[name], bias=True, subsample=0.5)
            start = rule.init(KEY, params, x)
            expected = jnp.float64 if dtype == jnp.float64 else jnp.float32
            assert {layer.R.dtype for layer in start.layers.values()} == {jnp.dtype(expected)}
            loss, grads, state = jax.eval_shape(rule.value_and_grad, KEY, params, start, x, y)
            assert loss.dtype == expected
            assert state == jax.eval_shape(lambda start=start: start)
            assert grads == jax.eval_shape(lambda params=params: params)


# --- sharing


class Block(linen.Module):
    """A transformer block; centred inputs, as of LayerNorm, could not become white in every direction."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        h = linen.RMSNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2)(h, h)
        return x + linen.Dense(6)(linen.gelu(linen.Dense(12)(linen.RMSNorm()(x))))


class Convolution(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.relu(linen.Conv(4, (3, 3), strides=2)(x))
        return linen.Conv(3, (2, 2))(x).mean((1, 2))


def correlated_inputs(*shape: int) -> jax.Array:
    return normal(5, *shape) @ (jnp.eye(shape[-1]) + 0.5)


def of_linen(module: Any, *shape: int) -> tuple[ll.Model, Any, Any]:
    x = correlated_inputs(*shape)
    return ll.Model(module.apply), module.init(KEY, x), x


def recurrent() -> tuple[ll.Model, Any, Any]:
    graph, params = nnx.split(nnx.GRUCell(5, 4, rngs=nnx.Rngs(0)))

    def apply(params: Any, x: Any) -> Any:
        cell: Any = nnx.merge(graph, params)
        return lax.scan(lambda carry, x: cell(carry, x), jnp.zeros((len(x), 4)), x.swapaxes(0, 1))[0]

    return ll.Model(apply), params, correlated_inputs(40, 6, 5)


PROBLEMS: dict[str, Callable[[], tuple[ll.Model, Any, Any]]] = {
    "convolution": lambda: of_linen(Convolution(), 30, 8, 8, 2),
    "recurrent cell": recurrent,
    "transformer": lambda: of_linen(Block(), 40, 5, 6),
}


def test_one_matrix_for_a_value_one_a_stacked_layer() -> None:
    model, params, x = PROBLEMS["transformer"]()
    layers = rule_of(model).init(KEY, params, x).layers
    shapes = {name.rsplit("/", 2)[1]: layer.R.shape for name, layer in layers.items()}
    # Query, key and value read one x, and so share its matrix, which has the name of the first.
    assert shapes == {"query": (6, 6), "out": (6, 6), "Dense_1": (6, 6), "Dense_0": (12, 12)}

    def stacked(p: Any, x: Any) -> Any:
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]

    layers = rule_of(ll.Model(stacked)).init(KEY, normal(1, 4, 3, 3), jnp.ones((5, 3))).layers
    assert {name: layer.R.shape for name, layer in layers.items()} == {"": (4, 3, 3)}
    model, params, x = PROBLEMS["recurrent cell"]()
    layers = rule_of(model).init(KEY, params, x).layers
    assert sorted(layer.R.shape for layer in layers.values()) == [(4, 4), (5, 5)]
    model = ll.convnet((7, 8, 2), (3,), (4, 3), kernel=3, stride=2)
    layers = rule_of(model).init(KEY, model.init(KEY), jnp.ones((1, 7, 8, 2))).layers
    shapes = {name: layer.R.shape for name, layer in layers.items()}
    assert shapes == {"0/w": (18, 18), "1/w": (48, 48), "2/w": (4, 4)}


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


@pytest.mark.parametrize("name", PROBLEMS)
def test_inputs_become_white_at_no_cost_of_sizes_cubed(name: str) -> None:
    model, params, x = PROBLEMS[name]()
    y = jnp.zeros(jax.eval_shape(model.apply, params, x).shape)
    rule = rule_of(model, 0.05, kappa=0.5)
    state = rule.init(KEY, params, x)

    @jax.jit
    def run(state: Any) -> Any:
        def update(state: Any, key: Any) -> Any:
            state = rule.value_and_grad(key, params, state, x, y)[2]
            return state, state.losses

        return lax.scan(update, state, jax.random.split(KEY, 600))

    state, losses = run(state)
    vectors = jax.jit(partial(ll.decorrelation.inputs, model))(params, state.layers, x)
    for layer, inputs in vectors.items():
        assert losses[layer][-1] < 0.2 * losses[layer][0] + 1e-4, layer
        size, z = inputs.shape[-1], np.asarray(ll.decorrelation.apply(state.layers[layer], inputs))
        deviation = np.abs(z.T @ z / len(z) - np.eye(size)).max()
        assert deviation < 0.1, (layer, deviation)
        assert size**3 not in products(rule.value_and_grad, KEY, params, state, x, y), layer


def folding() -> Iterator[Any]:
    models = {
        "own convolutions": lambda: (
            m := NETWORKS["convolutional"](jnp.float32),
            m.init(KEY),
            normal(1, 3, 4, 4, 1),
        ),
        "convolution": PROBLEMS["convolution"],
        "transformer": PROBLEMS["transformer"],
    }
    models["stacked blocks"] = lambda: (
        ll.Model((case := ZOO["linen_stacked_remat_blocks"]()).apply),
        *case[1:],
    )
    for name, problem in models.items():
        yield pytest.param(problem if callable(problem) else lambda problem=problem: problem, id=name)


@pytest.mark.parametrize("problem", list(folding()))
def test_folded_weights_do_the_same(problem: Any) -> None:
    model, params, x = problem()
    apply = jax.jit(model.apply)
    start = rule_of(model).init(KEY, params, x).layers
    assert_same(ll.decorrelation.fold(model, params, start, x), params)
    layers = moved(start)
    folded = ll.decorrelation.fold(model, params, layers, x)
    expected = jax.jit(ll.decorrelation.wrap(model, layers).apply)(params, x)
    assert_close(apply(folded, x), expected, ulps=256)
    assert differs(apply(params, x), expected)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, params)


# --- rules with state, and training runs

LABELS = jax.nn.one_hot(jnp.argmax(normal(20, 24, 5) @ normal(21, 5, 3), axis=1), 3)
INPUTS = (normal(20, 24, 5) + 1.0) @ normal(22, 5, 5)
DATA = ll.data.Splits(*[ll.data.Dataset(INPUTS, LABELS)] * 3)
BACKPROP = partial(ll.backprop, loss=ll.softmax_cross_entropy)
KEYS = jax.random.split(KEY, 3)


def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
    output = ll.decorrelation.wrap(DENSE, state.layers).apply(params, data.test.x)
    return {"accuracy": ll.accuracy(output, data.test.y), "losses": state.losses}


def trainer(eta: Any = 0.05, **options: Any) -> ll.Train:
    dynamics = ll.decorrelation.dynamics(eta, **{"bias": True, "subsample": 0.5, **options})
    rule = ll.decorrelation.rule(BACKPROP, DENSE, dynamics)
    return ll.make_train(
        rule,
        optax.sgd(0.3, momentum=0.5),
        init=DENSE.init,
        num_updates=40,
        batch_size=8,
        every=20,
        evaluate=evaluate,
    )


@pytest.fixture(scope="module")
def history() -> Any:
    return jax.jit(trainer())(KEYS[0], DATA)


def test_a_training_run(history: History) -> None:
    losses, evaluations, end = history
    assert float(jnp.mean(losses[-5:])) < 0.7 * float(jnp.mean(losses[:5]))
    assert float(evaluations["accuracy"][-1]) > float(evaluations["accuracy"][0])
    assert all(jnp.isnan(loss[0]) and loss[-1] > 0 for loss in evaluations["losses"].values())
    learned = end.rule_state.layers["0/w"]
    whitened = ll.decorrelation.loss(ll.decorrelation.apply(learned, INPUTS))
    assert learned.step == 40 and float(whitened) < 0.2 * float(ll.decorrelation.loss(INPUTS))
    output = ll.decorrelation.wrap(DENSE, end.rule_state.layers).apply(end.params, INPUTS)
    assert_same(evaluations["accuracy"][-1], ll.accuracy(output, LABELS))


def test_a_step_is_the_rule_on_decorrelated_inputs_and_an_update() -> None:
    dynamics = ll.decorrelation.dynamics(0.1, bias=True)
    opened, after = ll.decorrelation.wrap(DENSE, LAYERS), []
    for make_rule in (BACKPROP, lambda m: ll.node_perturbation(m, ll.softmax_cross_entropy, sigma=0.5)):
        rule = ll.decorrelation.rule(make_rule, DENSE, dynamics)
        start = rule.init(KEY, PARAMS, INPUTS)._replace(layers=LAYERS)
        loss, grads, state = rule.value_and_grad(KEY, PARAMS, start, INPUTS, LABELS)
        if make_rule is BACKPROP:
            expected = BACKPROP(opened).value_and_grad(KEY, PARAMS, (), INPUTS, LABELS)
            assert_close((loss, grads), expected[:2], ulps=8)
        vectors = ll.decorrelation.inputs(DENSE, PARAMS, LAYERS, INPUTS)
        assert_same(vectors["0/w"], INPUTS)
        for name, layer in LAYERS.items():
            learned, diagnostics = dynamics.update(KEY, layer, vectors[name])
            found = state.layers[name], state.losses[name]
            assert_close(found, (learned, diagnostics.loss), ulps=32)
            assert layer.step == 0 and learned.step == 1
        after.append(state.layers)
    assert_same(*after)  # the noise of a rule does not enter the moments


def test_a_step_has_one_key_for_the_rule_and_one_for_each_layer() -> None:
    keys: list[Any] = []

    def make_rule(model: ll.Model) -> ll.Rule:
        rule = BACKPROP(model)

        def value_and_grad(key: Any, *args: Any) -> Any:
            keys.append(key)
            return rule.value_and_grad(key, *args)

        return rule._replace(value_and_grad=value_and_grad)

    def update(key: Any, state: Any, *args: Any) -> Any:
        keys.append(key)
        return dynamics.update(key, state, *args)

    dynamics = ll.decorrelation.dynamics(0.1)
    rule = ll.decorrelation.rule(make_rule, DENSE, dynamics._replace(update=update))
    rule.value_and_grad(KEY, PARAMS, rule.init(KEY, PARAMS, INPUTS), INPUTS, LABELS)
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in (*keys, KEY)}) == 4


def test_where_leaves_the_other_inputs_alone() -> None:
    rule = ll.decorrelation.rule(BACKPROP, DENSE, ll.decorrelation.dynamics(0.1), where="1/*")
    state = rule.init(KEY, PARAMS, INPUTS)
    assert list(state.layers) == ["1/w"]
    layers = moved(state.layers)
    hidden = jnp.tanh(INPUTS @ PARAMS[0]["w"] + PARAMS[0]["b"])
    expected = ll.decorrelation.apply(layers["1/w"], hidden) @ PARAMS[1]["w"] + PARAMS[1]["b"]
    assert_close(ll.decorrelation.wrap(DENSE, layers, where="1/*").apply(PARAMS, INPUTS), expected, ulps=32)
    folded = ll.decorrelation.fold(DENSE, PARAMS, layers, INPUTS, where="1/*")
    assert_same(folded[0], PARAMS[0])
    assert_close(DENSE.apply(folded, INPUTS), expected, ulps=32)

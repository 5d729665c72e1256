"""Decorrelation against matrices written out, on dense layers and convolutions, under every rule."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.core import Tracer
from lax_learning.feedback import without_feedback

import lax_learning as ll
from lax_learning import metrics
from tests.compare import assert_close, assert_same, differs
from tests.registry import RULES

KEY = jax.random.key(0)
SIGMAS = 5.0
DEAD = 1e-8
PARAMETER = {"paper": "kappa", "decorbp": "kappa", "seed": "variance", "scaled": "variance"}


def make(variant: str, eta: Any = 0.1, number: Any = None, **options: Any) -> ll.Dynamics:
    return ll.decorrelation(eta, variant=variant, **{PARAMETER[variant]: number}, **options)


def with_layers(state: ll.DecorrelationState, *layers: Any) -> ll.DecorrelationState:
    return state._replace(layers=layers)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_state(network: ll.Network, *, bias: bool = False) -> ll.DecorrelationState:
    """As after some learning: R near the identity, without any structure."""
    start = ll.decorrelation(0.1, bias=bias).init(network)
    leaves, structure = jax.tree.flatten(start.layers)
    rng = np.random.default_rng(0)
    moved = [leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    return with_layers(start, *jax.tree.unflatten(structure, moved))


def reads(layer: ll.Layer) -> ll.Reads:
    assert layer.reads is not None
    return layer.reads


# --- one update, against matrices written out


def explicit_loss(c: np.ndarray, variant: str, number: float) -> float:
    total = 0.0
    for i in range(len(c)):
        for j in range(len(c)):
            if PARAMETER[variant] == "variance":
                total += (c[i, j] - number * (i == j)) ** 2
            else:
                total += number * (c[i, i] - 1) ** 2 if i == j else (1 - number) * c[i, j] ** 2
    return total / len(c) ** 2


def explicit(
    variant: str, layer: dict[str, np.ndarray], x: np.ndarray, eta: float, number: float
) -> tuple[dict[str, np.ndarray], float]:
    """The update by the matrix of moments itself."""
    r, b = layer["R"], layer.get("b", 0.0)
    z = np.stack([r @ vector + b for vector in x.reshape(-1, len(r))])
    c = np.mean([np.outer(vector, vector) for vector in z], axis=0)
    dead = np.diag(c) < DEAD
    off_diagonal, excess = c - np.diag(np.diag(c)), np.diag(np.where(dead, 0, np.diag(c) - 1))
    n = np.diag(np.where(dead, 1, number / np.where(dead, 1, np.diag(c))))
    after = {
        "paper": lambda: r - eta * ((1 - number) * off_diagonal + number * excess) @ r,
        "decorbp": lambda: r - eta * ((1 - number) * off_diagonal @ r + number * r @ excess),
        "seed": lambda: r + eta * (n @ r - n @ c @ r),
        "scaled": lambda: n @ (r - eta * c @ r),
    }[variant]()
    learned = {"R": after} if "b" not in layer else {"R": after, "b": b - eta * z.mean(axis=0)}
    return learned, explicit_loss(c, variant, number)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("lower", [False, True], ids=["", "lower"])
@pytest.mark.parametrize("variant", PARAMETER)
def test_an_update_is_that_of_the_matrices(variant: str, lower: bool, bias: bool) -> None:
    size, eta = 5, 0.07

    @jax.jit
    def update(state: Any, x: Any, eta: Any, number: Any) -> Any:
        return make(variant, eta, number, lower=lower, bias=bias).update(KEY, state, (x,))

    rng = np.random.default_rng(1)
    layer = {"R": np.tril(rng.normal(size=(size, size))) if lower else rng.normal(size=(size, size))}
    if bias:
        layer["b"] = rng.normal(size=size)
    start = make(variant, bias=bias).init((size,))
    assert sorted(start.layers[0]) == sorted(layer)
    state = with_layers(start, jax.tree.map(jnp.asarray, layer))
    for number in (0.3, 1.0):
        for batch in ((3,), (2, 4)):  # fewer vectors than numbers in them, and more
            x = rng.normal(size=(*batch, size))
            after, diagnostics = update(state, x, eta, number)
            expected, loss = explicit(variant, layer, x, eta, number)
            if lower:
                expected["R"] = np.tril(expected["R"])
            assert_close(after.layers[0], expected, ulps=256)
            assert_close(diagnostics.loss, np.array([loss]), ulps=256)
            assert after.step == 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", PARAMETER)
def test_default_numbers(variant: str) -> None:
    x, number = normal(1, 6, 4), 0.5 if PARAMETER[variant] == "kappa" else 1.0
    state = make(variant).init((4,))
    assert_same(make(variant).update(KEY, state, (x,)), make(variant, number=number).update(KEY, state, (x,)))


def test_the_default_is_the_paper() -> None:
    x, dynamics = normal(1, 6, 4), ll.decorrelation(0.1)
    state = dynamics.init((4,))
    assert_same(dynamics.update(KEY, state, (x,)), make("paper", number=0.5).update(KEY, state, (x,)))
    assert_same(ll.decorrelation_loss(x), ll.decorrelation_loss(x, kappa=0.5, variant="paper"))


def test_start() -> None:
    network = ll.Network((ll.convolution(2, 3, (3, 1), ll.flatten), ll.dense(48, 5)), (4, 4, 2))
    for dynamics in (ll.decorrelation(0.1), ll.decorrelation(0.1, bias=True)):
        state = dynamics.init(network)
        assert_same(state, dynamics.init((6, 48)))
        assert_same([layer["R"] for layer in state.layers], [jnp.eye(6), jnp.eye(48)])
        assert state.step == 0
    assert_same([layer["b"] for layer in state.layers], [jnp.zeros(6), jnp.zeros(48)])


def test_decorrelate() -> None:
    r, b, x = normal(1, 4, 4), normal(2, 4), normal(3, 2, 3, 4)
    expected = np.einsum("ij,abj->abi", r, x)
    assert_close(ll.decorrelate({"R": r}, x), expected, ulps=16)
    assert_close(ll.decorrelate({"R": r, "b": b}, x), expected + b, ulps=16)
    assert_close(ll.decorrelate({"R": r}, x[0, 0]), expected[0, 0], ulps=16)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", PARAMETER)
@pytest.mark.parametrize("shape", [(3, 5), (5, 5), (2, 4, 5)], ids=str)
def test_loss_is_the_formula(variant: str, shape: tuple[int, ...]) -> None:
    z = np.random.default_rng(2).normal(size=shape)
    rows = z.reshape(-1, shape[-1])
    for number in (0.0, 0.3, 1.0):
        if number == 0 and PARAMETER[variant] == "variance":
            continue
        got = ll.decorrelation_loss(z, variant=variant, **{PARAMETER[variant]: number})
        assert_close(got, np.asarray(explicit_loss(rows.T @ rows / len(rows), variant, number)), ulps=64)


# --- what is computed, and what never is


def equations_of(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations_of(inner)


def equations(function: Callable[..., Any], *args: Any) -> list[Any]:
    """All that is computed, in loops, branches and functions within too."""
    return list(equations_of(jax.make_jaxpr(function)(*args).jaxpr))


def products(function: Callable[..., Any], *args: Any) -> list[int]:
    """Multiply-adds of every matrix product."""

    def multiply_adds(equation: Any) -> int:
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return terms * math.prod(equation.outvars[0].aval.shape)

    found = equations(function, *args)
    return [multiply_adds(equation) for equation in found if equation.primitive.name == "dot_general"]


@pytest.mark.parametrize("variant", PARAMETER)
def test_an_update_costs_three_products_of_the_size_of_the_batch(variant: str) -> None:
    size, batch = 64, 8
    dynamics = make(variant, lower=True, bias=True)
    args = (KEY, dynamics.init((size,)), (jnp.ones((batch, size)),))
    costs = products(dynamics.update, *args)
    assert sorted(costs)[1:] == [batch * size**2] * 3
    assert max(costs) == batch * size**2 and min(costs) == batch**2 * size  # the last is the loss
    if variant == "paper":
        analysis: Any = jax.jit(dynamics.update).lower(*args).compile().cost_analysis()
        assert 6 * batch * size**2 <= analysis["flops"] < 8 * batch * size**2 < 2 * size**3


def test_the_search_for_products_finds_those_of_loops_and_branches() -> None:
    def function(x: Any) -> Any:
        y = lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, x), None), x, length=2)[0]
        return lax.cond(x[0, 0] > 0, lambda: y @ y, lambda: y)

    assert products(function, jnp.ones((4, 4))) == [64, 64]


WIDTHS = (37, 41, 43)  # primes, so that no product is met by chance


def test_no_array_of_batch_times_weights_in_a_training_step() -> None:
    batch, network = 31, ll.mlp(WIDTHS, activation=jnp.tanh)
    data = ll.data.Splits(*[ll.data.Dataset(jnp.ones((40, WIDTHS[0])), jnp.ones((40, WIDTHS[-1])))] * 3)
    for name in ("kp", "np", "wp"):
        dynamics = ll.decorrelation(0.1, bias=True, every=2, subsample=0.5)
        rule = ll.decorrelated_rule(lambda n, f=RULES[name]: f(n, ll.squared_error), network, dynamics)
        train = ll.make_train(rule, optax.sgd(0.1), num_updates=2, batch_size=batch)
        state = jax.eval_shape(train.init, KEY, data)
        found = equations(train.advance, state, 0, data)
        sizes = [math.prod(v.aval.shape) for e in found for v in e.outvars if hasattr(v.aval, "shape")]
        assert max(sizes) < batch * WIDTHS[0] * WIDTHS[1]
        assert max(sizes) >= batch * max(WIDTHS) and "dot_general" in {e.primitive.name for e in found}


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
        return dynamics.update(key, state, (batch(key),))

    @jax.jit
    def run(start: Any, keys: Any) -> Any:
        return lax.scan(step, start, keys)

    return run(dynamics.init((size,)), jax.random.split(KEY, num_steps))


def second_moment(layer: Any) -> np.ndarray:
    r = np.asarray(layer["R"], np.float64)
    return r @ COVARIANCE @ r.T


@pytest.mark.parametrize(("variant", "eta"), [("paper", 0.04), ("seed", 0.02)])
def test_correlated_inputs_end_white(variant: str, eta: float) -> None:
    # Near the end a deviation D of C from the identity changes by -a (D + N), with a = eta for kappa 0.5,
    # where half of C - I counts on either side, and a = 2 eta for the seed. N is the noise of the moments
    # of a batch, of variance (1 + delta_ij) / batch. Hence Var D = a / (2 - a) Var N.
    batch, a = 64, 0.04
    state, diagnostics = learn(
        make(variant, eta), lambda key: jax.random.normal(key, (batch, SIZE)) @ ROOT.T, 600
    )
    deviation = second_moment(state.layers[0]) - np.eye(SIZE)
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
    c = second_moment(state.layers[0])
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
    log_determinant = float(np.linalg.slogdet(np.asarray(state.layers[0]["R"], np.float64))[1])
    assert abs(log_determinant) < 2 * drift < 0.3


EXACT = math.sqrt(SIZE) * ROOT.T  # a batch with that covariance to the last digit
MEAN = jnp.linspace(-1.0, 2.0, SIZE)


@pytest.mark.parametrize("variant", ["paper", "seed"])
def test_a_triangular_matrix_whitens(variant: str) -> None:
    state, _ = learn(make(variant, 0.05, lower=True), lambda key: EXACT, 1500)
    r = np.asarray(state.layers[0]["R"])
    assert np.all(r[np.triu_indices(SIZE, 1)] == 0) and np.abs(np.tril(r, -1)).max() > 0.1
    np.testing.assert_allclose(second_moment(state.layers[0]), np.eye(SIZE), atol=1e-4)
    # the only one with a positive diagonal
    np.testing.assert_allclose(r, np.linalg.inv(np.linalg.cholesky(COVARIANCE)), atol=1e-3)


def test_bias_removes_the_mean() -> None:
    x = jnp.concatenate([EXACT, -EXACT]) + MEAN
    state, _ = learn(make("paper", 0.05, bias=True), lambda key: x, 1500)
    z = np.asarray(ll.decorrelate(state.layers[0], x))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(SIZE), atol=1e-3)
    without, _ = learn(make("paper", 0.05), lambda key: x, 1500)  # white all the same, about 0
    z = np.asarray(ll.decorrelate(without.layers[0], x))
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(SIZE), atol=1e-3)
    assert np.abs(z.mean(axis=0)).max() > 0.1


# "seed" multiplies the row of a dead input by 1 + eta
@pytest.mark.parametrize("variant", PARAMETER)
def test_dead_inputs_keep_their_rows(variant: str) -> None:
    dead = np.array([2, 5])

    def batch(key: Any) -> Any:
        return (jax.random.normal(key, (16, SIZE)) @ ROOT.T).at[:, dead].set(0)

    # "scaled" divides by variances where standard deviations would do, and is soon far off with any inputs
    state, diagnostics = learn(make(variant, 0.02), batch, 10 if variant == "scaled" else 200)
    r = np.asarray(state.layers[0]["R"])
    np.testing.assert_array_equal(r[dead], np.eye(SIZE)[dead])
    np.testing.assert_array_equal(r[:, dead], np.eye(SIZE)[:, dead])
    assert np.all(np.isfinite(r)) and np.all(np.isfinite(diagnostics.loss))
    assert differs(np.delete(r, dead, 0), np.delete(np.eye(SIZE, dtype=r.dtype), dead, 0))


@pytest.mark.parametrize("variant", PARAMETER)
def test_zeros_teach_nothing(variant: str) -> None:
    dynamics = make(variant, bias=True)
    state = dynamics.init((3,))
    after, diagnostics = dynamics.update(KEY, state, (jnp.zeros((4, 3)),))
    assert_same(after.layers, state.layers)
    expected = 1 / 6 if PARAMETER[variant] == "kappa" else 1 / 3
    assert_close(diagnostics.loss, jnp.array([expected]), ulps=4)


# --- every k-th call, and a share of the vectors


@jax.jit
def run_lazily(start: Any, keys: Any, xs: Any, eta: Any) -> Any:
    dynamics = ll.decorrelation(eta, every=3, subsample=0.5, bias=True)

    def step(state: Any, args: Any) -> Any:
        state, diagnostics = dynamics.update(args[0], state, (args[1],))
        return state, (state, diagnostics.loss)

    return lax.scan(step, start, (keys, xs))[1]


def test_every_third_call() -> None:
    always = ll.decorrelation(0.1, subsample=0.5, bias=True)
    keys, xs = jax.random.split(KEY, 8), normal(1, 8, 6, 4)
    before = always.init((4,))
    states, losses = run_lazily(before, keys, xs, 0.1)
    np.testing.assert_array_equal(np.isnan(losses[:, 0]), [i % 3 != 0 for i in range(8)])
    for i in range(8):
        after = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        assert after.step == i + 1
        if i % 3:
            assert_same(after.layers, before.layers)
        else:
            expected, diagnostics = always.update(keys[i], before, (xs[i],))
            assert differs(after.layers, before.layers)
            assert_close((after.layers, losses[i]), (expected.layers, diagnostics.loss), ulps=64)
        before = after


def test_every_third_call_under_vmap() -> None:
    keys = jax.random.split(KEY, (3, 8))
    xs, etas = normal(1, 3, 8, 6, 4), jnp.array([0.05, 0.1, 0.2])
    start = ll.decorrelation(0.1, bias=True).init((4,))
    steps = jnp.array([0, 1, 2], jnp.int32)  # members that are out of step
    starts = [start._replace(step=step) for step in steps]
    loop = [run_lazily(*args) for args in zip(starts, keys, xs, etas, strict=True)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    states, losses = jax.vmap(run_lazily)(stacked, keys, xs, etas)
    expected, expected_losses = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)
    assert np.array_equal(np.isnan(losses), np.isnan(expected_losses))
    assert_close((states, jnp.nan_to_num(losses)), (expected, jnp.nan_to_num(expected_losses)), ulps=64)
    in_step = jax.vmap(run_lazily, (None, 0, None, None))(start, keys, xs[0], 0.1)
    assert np.array_equal(np.isnan(in_step[1][0]), np.isnan(loop[0][1]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_waiting_keeps_dtypes(dtype: Any) -> None:
    dynamics = ll.decorrelation(0.1, every=2)
    state = with_layers(dynamics.init((3,)), {"R": jnp.eye(3, dtype=dtype)})
    for _ in range(2):
        state, diagnostics = dynamics.update(KEY, state, (jnp.ones((4, 3), dtype),))
        assert state.layers[0]["R"].dtype == diagnostics.loss.dtype == dtype


def spied(layer: ll.Layer) -> tuple[ll.Layer, list[Any]]:
    """A layer that notes which vectors are taken of it."""
    seen: list[Any] = []
    of_layer = reads(layer)

    def take(x: Any, indices: Any) -> Any:
        if not isinstance(x, Tracer):
            seen.append(indices if indices is None else np.asarray(indices))
        return of_layer.take(x, indices)

    return layer._replace(reads=of_layer._replace(take=take)), seen


@pytest.mark.parametrize(
    ("subsample", "count"), [(1e-9, 1), (0.1, 2), (0.26, 5), (0.5, 10), (0.97, 19), (0.99, 20), (1.0, 20)]
)
def test_a_share_of_the_vectors(subsample: float, count: int) -> None:
    layer, seen = spied(ll.dense(4, 1))
    network, x = ll.Network((layer,), (4,)), normal(1, 20, 4)
    dynamics = ll.decorrelation(0.1, subsample=subsample)
    dynamics.update(KEY, dynamics.init(network), (x,), network)
    (indices,) = seen
    if count == 20:
        assert indices is None
    else:
        assert len(indices) == len(set(indices)) == count and set(indices) <= set(range(20))


def test_a_share_of_the_patches() -> None:
    layer, seen = spied(ll.convolution(1, 2, 2, padding="VALID"))
    network, x = ll.Network((layer,), (4, 5, 1)), normal(1, 3, 4, 5, 1)
    dynamics = ll.decorrelation(0.1, subsample=0.25)
    dynamics.update(KEY, dynamics.init(network), (x,), network)
    assert len(set(seen[0])) == 9  # of 3 x 3 x 4
    assert len(set(seen[0] // 12)) == 3, "patches come from all images"


@partial(jax.jit, static_argnames=("subsample", "count"))
def moments_of_shares(x: Any, subsample: float, count: int) -> Any:
    """Off-diagonal moments from a share, for many keys: with eta 1 and kappa 0, `R = I - C_off`."""
    dynamics = make("paper", 1.0, 0.0, subsample=subsample)
    state = dynamics.init((x.shape[1],))
    keys = jax.random.split(KEY, count)
    return jax.vmap(lambda key: jnp.eye(x.shape[1]) - dynamics.update(key, state, (x,))[0].layers[0]["R"])(
        keys
    )


def test_a_share_is_unbiased_and_drawn_without_replacement() -> None:
    x = normal(1, 12, 3) @ normal(2, 3, 3)
    estimates = np.asarray(moments_of_shares(x, 0.5, 2000), np.float64)
    c = np.asarray(x.T @ x / 12, np.float64)
    off_diagonal = ~np.eye(3, dtype=bool)
    error = (estimates.mean(axis=0) - c)[off_diagonal]
    spread = estimates.std(axis=0, ddof=1)[off_diagonal]
    assert np.all(np.abs(error) < SIGMAS * spread / math.sqrt(2000))
    # 6 of 12 without replacement: Var = s^2 / 6 (1 - 6 / 12); with replacement it would be twice that.
    terms = np.einsum("ni,nj->nij", x, x)
    expected = terms.var(axis=0, ddof=1)[off_diagonal] / 6 * (1 - 6 / 12)
    np.testing.assert_allclose(spread**2, expected, rtol=SIGMAS * math.sqrt(2 * 2 / 2000))


def test_a_share_counts_every_vector_once() -> None:
    # Each vector moves one entry of the diagonal; those that are not drawn are dead.
    dynamics = make("paper", 0.1, 1.0, subsample=0.5)
    x, state = math.sqrt(5.0) * jnp.eye(10), dynamics.init((10,))
    diagonal = np.diag(dynamics.update(KEY, state, (x,))[0].layers[0]["R"])
    x = 2 * x
    diagonal = np.diag(dynamics.update(KEY, state, (x,))[0].layers[0]["R"])
    np.testing.assert_allclose(np.sort(diagonal), [1 - 0.1 * (4 - 1)] * 5 + [1.0] * 5, rtol=1e-6)


def test_a_share_depends_on_the_key_alone() -> None:
    x = normal(1, 20, 4)
    dynamics = ll.decorrelation(0.1, subsample=0.5)
    state = dynamics.init((4, 4))
    one, other = (dynamics.update(jax.random.key(i), state, (x, x))[0] for i in range(2))
    assert_same(dynamics.update(jax.random.key(0), state, (x, x))[0], one)
    assert differs(one.layers, other.layers)
    assert differs(one.layers[0], one.layers[1]), "layers draw on their own"
    whole = ll.decorrelation(0.1)
    assert_same(
        whole.update(jax.random.key(0), state, (x, x)), whole.update(jax.random.key(1), state, (x, x))
    )


# --- networks on decorrelated inputs

INIT = jax.nn.initializers.uniform(1.0)
DENSE = ll.mlp((5, 4, 3), activation=jnp.tanh, w_init=INIT, b_init=INIT)
X, Y = normal(10, 6, 5), normal(11, 6, 3)


def pool_and_flatten(z: Any) -> Any:
    return ll.flatten(ll.max_pool(jnp.tanh(z)))


CONVOLUTIONAL = ll.Network(
    (
        ll.convolution(2, 2, (1, 2), jnp.tanh, stride=2, w_init=INIT),
        ll.convolution(2, 3, (2, 1), pool_and_flatten, w_init=INIT),
        ll.dense(3 * 2 * 2, 3, w_init=INIT),
    ),
    (7, 8, 2),
)
IMAGES = normal(12, 6, 7, 8, 2)
NETWORKS = {"dense": (DENSE, X), "convolutional": (CONVOLUTIONAL, IMAGES)}


def rules_on_networks() -> Iterator[Any]:
    """Every rule, but not every form of its noise: each costs a compilation."""
    forms = ("-3", "-central", "-rademacher", "-shared", "-antithetic", "-layerwise")
    for kind in NETWORKS:
        for name in RULES:
            if name.endswith(forms):
                continue
            if kind == "convolutional" and name == "np-tutorial":
                continue  # refused: its noise is on the activities, which are pooled
            yield pytest.param(kind, name, id=f"{name}-{kind}")


@pytest.mark.parametrize(("kind", "name"), list(rules_on_networks()))
def test_the_identity_changes_nothing(kind: str, name: str) -> None:
    # Products with the identity are exact, and the rest are the same products.
    network, x = NETWORKS[kind]
    rule = RULES[name](network, ll.squared_error)
    params = rule.init(KEY)
    on_identity = ll.decorrelated(network, ll.decorrelation(0.1).init(network))
    other = RULES[name](on_identity, ll.squared_error)
    assert_same(other.init(KEY), params)
    loss, grads = other.value_and_grad(KEY, params, x, Y)
    assert_same((loss, grads), rule.value_and_grad(KEY, params, x, Y))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((loss, grads)))
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    assert all(bool(jnp.any(layer["w"] != 0)) for layer in grads)


def explicit_output(params: Any, state: Any, x: Any) -> Any:
    """The dense network, its decorrelated inputs written out."""
    (one, two), (first, second) = params, state.layers
    z = (x @ first["R"].T + first["b"]) @ one["w"] + one["b"]
    return (jnp.tanh(z) @ second["R"].T + second["b"]) @ two["w"] + two["b"]


def test_backprop_on_decorrelated_inputs() -> None:
    state, params = random_state(DENSE, bias=True), DENSE.init(KEY)
    rule = ll.backprop(ll.decorrelated(DENSE, state), ll.squared_error)
    exact = jax.value_and_grad(
        lambda params: jnp.mean(ll.squared_error(explicit_output(params, state, X), Y))
    )(params)
    assert_close(rule.value_and_grad(KEY, params, X, Y), exact, ulps=32)
    plain = ll.backprop(DENSE, ll.squared_error).value_and_grad(KEY, params, X, Y)
    assert differs(plain, exact)


def test_feedback_alignment_on_decorrelated_inputs() -> None:
    state = random_state(DENSE, bias=True)
    rule = ll.feedback_alignment(ll.decorrelated(DENSE, state), ll.squared_error)
    (one, two) = params = rule.init(KEY)
    loss, grads = rule.value_and_grad(KEY, params, X, Y)
    first, second = state.layers
    u = X @ first["R"].T + first["b"]
    a = jnp.tanh(u @ one["w"] + one["b"])
    v = a @ second["R"].T + second["b"]
    error = v @ two["w"] + two["b"] - Y
    delta = 2 * error / len(X)
    hidden = (delta @ two["feedback"].T @ second["R"]) * (1 - a**2)
    assert_close(loss, jnp.mean(jnp.sum(error**2, axis=1)), ulps=32)
    expected = (
        {"w": u.T @ hidden, "b": hidden.sum(0)},
        {"w": v.T @ delta, "b": delta.sum(0), "feedback": jnp.zeros_like(two["w"])},
    )
    assert_close(grads, expected, ulps=64)


@pytest.mark.parametrize("kind", NETWORKS)
def test_feedback_equal_to_the_weights_is_backprop(kind: str) -> None:
    network, x = NETWORKS[kind]
    on_decorrelated = ll.decorrelated(network, random_state(network, bias=True))
    plain = network.init(KEY)
    params = (plain[0], *({**weights, "feedback": weights["w"]} for weights in plain[1:]))
    exact = ll.backprop(on_decorrelated, ll.squared_error).value_and_grad(KEY, plain, x, Y)
    for factory in (ll.feedback_alignment, partial(ll.kolen_pollack, decay=0.0)):
        rule = factory(on_decorrelated, ll.squared_error)
        loss, grads = rule.value_and_grad(KEY, params, x, Y)
        assert_same((loss, without_feedback(grads)), exact)
    magnitudes = (plain[0], *({**weights, "feedback": jnp.abs(weights["w"])} for weights in plain[1:]))
    rule = ll.sign_symmetry(on_decorrelated, ll.squared_error, magnitude="fixed")
    assert_same(without_feedback(rule.value_and_grad(KEY, magnitudes, x, Y)[1]), exact[1])


def test_no_gradient_touches_the_matrices() -> None:
    state = random_state(DENSE, bias=True)
    for name, factory in RULES.items():
        rule = factory(ll.decorrelated(DENSE, state), ll.squared_error)
        params = jax.eval_shape(rule.init, KEY)
        assert jax.eval_shape(rule.value_and_grad, KEY, params, X, Y)[1] == params, name
    rule = ll.decorrelated_rule(lambda n: ll.kolen_pollack(n, ll.squared_error), DENSE, ll.decorrelation(0.1))
    params, start = jax.eval_shape(rule.init, KEY)
    _, grads, after = jax.eval_shape(rule.value_and_grad, KEY, params, start, X, Y)
    assert grads == params and after == start


@pytest.mark.parametrize("kind", NETWORKS)
def test_moments_over_examples_are_those_on_decorrelated_inputs(kind: str) -> None:
    network, x = NETWORKS[kind]
    on_decorrelated = ll.decorrelated(network, random_state(network, bias=True))
    rule = ll.backprop(on_decorrelated, ll.squared_error)
    params = network.init(KEY)
    moments = metrics.example_moments(on_decorrelated, rule, KEY, params, x, Y)
    assert_close(moments.mean, rule.value_and_grad(KEY, params, x, Y)[1], ulps=64)


def test_node_perturbation_through_a_convolution_estimates_the_gradient() -> None:
    # the loss is linear in the noise: unbiased whatever sigma is
    layers = (ll.convolution(1, 2, 2, ll.flatten, padding="VALID", w_init=INIT), ll.dense(8, 1, w_init=INIT))
    network = ll.Network(layers, (3, 3, 1))
    network = ll.decorrelated(network, random_state(network, bias=True))
    params, x, y = jax.jit(network.init)(KEY), normal(1, 2, 3, 3, 1), jnp.zeros((2, 1))

    def loss(output: Any, y: Any) -> Any:
        return output[:, 0]

    rule = ll.node_perturbation(network, loss, sigma=0.1)
    draws = 2000

    @jax.jit
    def estimate(keys: Any) -> Any:
        _, exact = ll.backprop(network, loss).value_and_grad(KEY, params, x, y)
        return jax.vmap(lambda key: rule.value_and_grad(key, params, x, y)[1])(keys), exact

    estimates, exact = jax.tree.map(np.asarray, estimate(jax.random.split(KEY, draws)))
    for got, expected in zip(jax.tree.leaves(estimates), jax.tree.leaves(exact), strict=True):
        standard_error = got.std(axis=0, ddof=1) / math.sqrt(draws)
        assert (np.abs(got.mean(axis=0) - expected) < SIGMAS * standard_error).all()
        assert (np.abs(expected) > SIGMAS * standard_error).any()


# --- plain weights


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_folded_weights_do_the_same(kind: str, bias: bool) -> None:
    network, x = NETWORKS[kind]
    state, params = random_state(network, bias=bias), network.init(KEY)
    params = (*params[:-1], {**params[-1], "feedback": params[-1]["w"]})
    folded = ll.fold(network, params, state)
    expected = ll.decorrelated(network, state).apply(params, x)
    assert_close(network.apply(folded, x), expected, ulps=64)
    assert differs(network.apply(params, x), expected)
    assert_same(folded[-1]["feedback"], params[-1]["feedback"])
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, params)


def test_folding_the_identity_changes_nothing() -> None:
    params = DENSE.init(KEY)
    assert_same(ll.fold(DENSE, params, ll.decorrelation(0.1, bias=True).init(DENSE)), params)


def test_folding_into_layers_without_bias() -> None:
    layers = (
        ll.convolution(2, 3, 3, ll.flatten, stride=2, w_init=INIT, b_init=None),
        ll.dense(48, 2, b_init=None),
    )
    network = ll.Network(layers, (7, 8, 2))
    state, params = random_state(network, bias=True), network.init(KEY)
    folded = ll.fold(network, params, state)
    assert [sorted(weights) for weights in folded] == [["b", "w"]] * 2
    assert_close(
        network.apply(folded, IMAGES), ll.decorrelated(network, state).apply(params, IMAGES), ulps=64
    )
    no_bias = ll.fold(network, params, random_state(network))
    assert [sorted(weights) for weights in no_bias] == [["w"]] * 2


# --- convolutions

GEOMETRIES: dict[str, tuple[Any, dict[str, Any], tuple[int, int]]] = {
    "same": (3, {}, (5, 6)),
    "even kernel": (2, {"padding": "SAME"}, (5, 6)),
    "row": ((1, 4), {}, (5, 6)),
    "column": ((3, 1), {"padding": "VALID"}, (5, 4)),
    "stride": (3, {"stride": 2}, (5, 6)),
    "strides": ((2, 3), {"stride": (1, 3), "padding": "VALID"}, (5, 7)),
    "padding": (3, {"padding": 2}, (4, 5)),
    "paddings": ((3, 2), {"padding": (0, 1), "stride": (2, 1)}, (5, 4)),
    "dilation": (2, {"dilation": 3}, (6, 7)),
    "all": ((2, 3), {"stride": (3, 2), "padding": (2, 0), "dilation": (2, 1)}, (7, 6)),
    "dilated same": ((3, 2), {"stride": 2, "dilation": (1, 2)}, (7, 6)),
    "as large as the image": ((4, 5), {"padding": "VALID"}, (4, 5)),
    "one pixel": (1, {"stride": 2}, (4, 5)),
}


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_convolution_is_the_product_of_patches_and_weights(name: str) -> None:
    kernel, options, image = GEOMETRIES[name]
    layer = ll.convolution(2, 3, kernel, jnp.tanh, **options, w_init=INIT, b_init=INIT)
    network = ll.Network((layer,), (*image, 2))
    state, x = random_state(network, bias=True), normal(1, 2, *image, 2)
    of_layer = reads(layer)
    padding = options.get("padding", "SAME")
    geometry: Any = {
        "window_strides": pair(options.get("stride", 1)),
        "padding": padding if isinstance(padding, str) else [(n, n) for n in pair(padding)],
        "rhs_dilation": pair(options.get("dilation", 1)),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }

    @jax.jit
    def run(params: Any, state: Any, x: Any) -> dict[str, Any]:
        ((w, b),) = [(weights["w"], weights["b"]) for weights in params]
        patches = of_layer.take(x, None)
        z = layer.linear(w, x)
        shape = z.shape
        theirs = lax.conv_general_dilated_patches(x, pair(kernel), **geometry)
        convolved = lax.conv_general_dilated(x, w, **geometry)
        decorrelated_patches = ll.decorrelate(state.layers[0], patches)
        return {
            "patches": (patches, theirs.reshape(patches.shape)),
            "convolution": (z, convolved),
            "product": (z, (patches @ of_layer.flat(w)).reshape(shape)),
            "network": (network.apply(params, x), jnp.tanh(z + b)),
            "decorrelated": (
                ll.decorrelated(network, state).apply(params, x),
                jnp.tanh((decorrelated_patches @ of_layer.flat(w)).reshape(shape) + b),
            ),
            "folded": (
                network.apply(ll.fold(network, params, state), x),
                ll.decorrelated(network, state).apply(params, x),
            ),
            "some": (of_layer.take(x, jnp.array([1, 0, 1])), patches[jnp.array([1, 0, 1])]),
            "unflat": (of_layer.unflat(of_layer.flat(w), w.shape), w),
        }

    params = network.init(KEY)
    results = run(params, state, x)
    for what, (got, expected) in results.items():
        if what in ("patches", "some", "unflat"):
            assert_same(got, expected)
        else:
            assert_close(got, expected, ulps=64)
    num_patches, size = results["patches"][0].shape
    w = params[0]["w"]
    assert of_layer.number(x) == num_patches and of_layer.size == size == math.prod(w.shape[:3])
    assert of_layer.flat(w).shape == (size, 3)


def test_patches_by_hand() -> None:
    x = jnp.arange(2 * 3 * 2, dtype=jnp.float32).reshape(1, 2, 3, 2) + 1
    layer = ll.convolution(2, 1, 2, padding=(0, 1), stride=(1, 2))
    first = [0, 1, 0, 7, 0, 2, 0, 8]  # a column of zeros, then pixel 0 of both rows; channel by channel
    second = [3, 5, 9, 11, 4, 6, 10, 12]
    np.testing.assert_array_equal(reads(layer).take(x, None), [first, second])


def test_shape_and_dtype_of_convolutional_weights() -> None:
    layer = ll.convolution(2, 3, (4, 5), dtype=jnp.bfloat16)
    weights = layer.init(KEY)
    assert jax.tree.map(jnp.shape, weights) == {"w": (4, 5, 2, 3), "b": (3,)}
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}
    assert sorted(ll.convolution(2, 3, 4, b_init=None).init(KEY)) == ["w"]


def test_pooling_and_flattening() -> None:
    x = normal(1, 2, 5, 6, 3)
    for size in (2, 3):
        pooled = np.asarray(ll.max_pool(x, size))
        assert pooled.shape == (2, 5 // size, 6 // size, 3)
        for (n, i, j, c), value in np.ndenumerate(pooled):
            assert value == x[n, i * size : (i + 1) * size, j * size : (j + 1) * size, c].max()
    np.testing.assert_array_equal(ll.flatten(x), np.reshape(x, (2, -1)))


def test_a_convolutional_update_learns_from_patches() -> None:
    network = CONVOLUTIONAL
    params, dynamics = network.init(KEY), ll.decorrelation(0.1, bias=True)
    state = random_state(network, bias=True)
    inputs = network.forward(params, IMAGES).inputs
    vectors = tuple(reads(layer).take(x, None) for layer, x in zip(network.layers, inputs, strict=True))
    assert_same(dynamics.update(KEY, state, inputs, network), dynamics.update(KEY, state, vectors))


# --- rules with state, and training runs

LABELS = jax.nn.one_hot(jnp.argmax(normal(20, 24, 5) @ normal(21, 5, 3), axis=1), 3)
INPUTS = (normal(20, 24, 5) + 1.0) @ normal(22, 5, 5)
DATA = ll.data.Splits(*[ll.data.Dataset(INPUTS, LABELS)] * 3)
BACKPROP = partial(ll.backprop, loss=ll.softmax_cross_entropy)
KEYS = jax.random.split(KEY, 3)


def evaluate(key: Any, params: Any, data: Any) -> Any:
    return {"accuracy": ll.accuracy(DENSE.apply(params, data.test.x), data.test.y), "params": params}


def trainer(eta: Any = 0.05, **options: Any) -> ll.Train:
    dynamics = ll.decorrelation(eta, **{"bias": True, "subsample": 0.5, **options})
    rule = ll.decorrelated_rule(BACKPROP, DENSE, dynamics)
    return ll.make_train(
        rule, optax.sgd(0.3, momentum=0.5), num_updates=40, batch_size=8, every=20, evaluate=evaluate
    )


@pytest.fixture(scope="module")
def history() -> Any:
    return jax.jit(trainer())(KEYS[0], DATA)


def test_a_training_run(history: ll.History) -> None:
    losses, evaluations, end = history
    assert float(jnp.mean(losses[-5:])) < 0.7 * float(jnp.mean(losses[:5]))
    assert float(evaluations["accuracy"][-1]) > float(evaluations["accuracy"][0])
    start = ll.decorrelation(0.1, bias=True).init(DENSE)
    assert differs(end.rule_state.layers, start.layers) and end.rule_state.step == 40
    on_decorrelated = ll.decorrelated(DENSE, end.rule_state)
    output = on_decorrelated.apply(end.params, INPUTS)
    assert_same(evaluations["accuracy"][-1], ll.accuracy(output, LABELS))
    assert differs(DENSE.apply(end.params, INPUTS), output)
    final = jax.tree.map(lambda leaf: leaf[-1], evaluations["params"])
    assert_close(final, ll.fold(DENSE, end.params, end.rule_state), ulps=32)
    first = jax.tree.map(lambda leaf: leaf[0], evaluations["params"])
    assert_same(first, trainer().init(KEYS[0], DATA).params)


def test_a_run_in_pieces_is_the_run(history: ll.History) -> None:
    train = trainer()
    advance = jax.jit(train.advance)
    state, losses = train.init(KEYS[0], DATA), []
    for step in (0, 20):
        state, of_chunk = advance(state, step, DATA)
        losses.append(of_chunk)
    # a hundred dependent steps of sums of a dozen terms
    assert_close((jnp.concatenate(losses), state), (history.losses, history.state), ulps=4096)


def test_members_of_an_ensemble_are_runs_of_their_own(history: ll.History) -> None:
    members = ll.ensemble(trainer(), devices=jax.local_devices()[:1])(KEYS, DATA)
    assert_close(jax.tree.map(lambda leaf: leaf[0], members.state), history.state, ulps=4096)
    assert differs(members.state.rule_state.layers[0]["R"][0], members.state.rule_state.layers[0]["R"][1])


def test_step_sizes_may_be_traced() -> None:
    def run(eta: Any) -> Any:
        return trainer(eta, every=2)(KEYS[0], DATA)[::2]

    etas = jnp.array([0.0, 0.02, 0.05])
    compiled = jax.jit(run)
    loop = [compiled(eta) for eta in etas]
    members = jax.jit(jax.vmap(run))(etas)
    assert_close(members, jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop), ulps=4096)
    start = ll.decorrelation(0.0, bias=True).init(DENSE)
    assert_same(loop[0][1].rule_state.layers, start.layers)


def test_a_step_is_the_rule_on_decorrelated_inputs_and_an_update() -> None:
    dynamics = ll.decorrelation(0.1, bias=True)
    start = random_state(DENSE, bias=True)
    on_decorrelated, states = ll.decorrelated(DENSE, start), []
    for factory in (BACKPROP, lambda n: ll.node_perturbation(n, ll.softmax_cross_entropy, sigma=0.5)):
        rule = ll.decorrelated_rule(factory, DENSE, dynamics)
        params, fresh = rule.init(KEY)
        assert_same((params, fresh), (factory(DENSE).init(KEY), dynamics.init(DENSE)))
        loss, grads, state = rule.value_and_grad(KEY, params, start, INPUTS, LABELS)
        states.append(state)
        if factory is BACKPROP:
            assert_same((loss, grads), BACKPROP(on_decorrelated).value_and_grad(KEY, params, INPUTS, LABELS))
        inputs = on_decorrelated.forward(params, INPUTS).inputs
        assert_same(state, dynamics.update(KEY, start, inputs)[0])
        assert_same(rule.plain(params, state), ll.fold(DENSE, params, state))
    assert_same(*states)  # the noise of a rule does not enter the moments


def test_a_step_has_one_key_for_the_rule_and_one_for_the_vectors() -> None:
    keys: list[Any] = []

    def factory(network: ll.Network) -> ll.Rule:
        rule = BACKPROP(network)

        def value_and_grad(key: Any, *args: Any) -> Any:
            keys.append(key)
            return rule.value_and_grad(key, *args)

        return rule._replace(value_and_grad=value_and_grad)

    def update(key: Any, state: Any, *args: Any) -> Any:
        keys.append(key)
        return dynamics.update(key, state, *args)

    dynamics = ll.decorrelation(0.1)
    rule = ll.decorrelated_rule(factory, DENSE, dynamics._replace(update=update))
    rule.value_and_grad(KEY, *rule.init(KEY), INPUTS, LABELS)
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in (*keys, KEY)}) == 3


def test_a_plain_rule_has_no_state() -> None:
    rule, optimizer = BACKPROP(DENSE), optax.sgd(0.3)
    train = ll.make_train(rule, optimizer, num_updates=2, batch_size=24, evaluate=evaluate)
    losses, evaluations, state = train(KEYS[0], DATA)
    assert state.rule_state == ()
    params = train.init(KEYS[0], DATA).params
    assert_same(jax.tree.map(lambda leaf: leaf[0], evaluations["params"]), params)
    for loss in losses:  # all examples are in every batch, in some order
        expected, grads = rule.value_and_grad(KEY, params, INPUTS, LABELS)
        assert_close(loss, expected, ulps=64)
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.3 * g, grads))
    assert_close(state.params, params, ulps=256)
    assert_same(jax.tree.map(lambda leaf: leaf[1], evaluations["params"]), state.params)


# --- the contract


@pytest.mark.parametrize("variant", PARAMETER)
def test_jit_and_vmap_change_nothing(variant: str) -> None:
    traces = []

    def update(key: Any, state: Any, inputs: Any, eta: Any, number: Any) -> Any:
        traces.append(key)
        return make(variant, eta, number, bias=True, subsample=0.5).update(key, state, inputs)

    compiled = jax.jit(update)
    state = random_state(DENSE, bias=True)
    inputs = (normal(1, 3, 8, 5), normal(2, 3, 8, 4))
    etas, numbers = jnp.array([0.0, 0.1, 0.2]), jnp.array([0.2, 0.5, 1.0])
    members = [(KEYS[i], state, (inputs[0][i], inputs[1][i]), etas[i], numbers[i]) for i in range(3)]
    one_by_one = [compiled(*args) for args in members]
    assert len(traces) == 1, "a second call compiled again"
    assert_close(update(*members[1]), one_by_one[1], ulps=64)
    together = jax.jit(jax.vmap(update, (0, None, 0, 0, 0)))(KEYS, state, inputs, etas, numbers)
    assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one), ulps=64)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_dtypes(kind: str, dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        network, x = NETWORKS[kind]
        rule = ll.decorrelated_rule(BACKPROP, network, ll.decorrelation(0.1, bias=True, subsample=0.5))
        params, start = rule.init(KEY)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        expected = jnp.float64 if dtype == jnp.float64 else jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(start.layers)} == {jnp.dtype(expected)}
        shapes = jax.eval_shape(rule.value_and_grad, KEY, params, start, x.astype(dtype), Y.astype(dtype))
        loss, grads, state = shapes
        assert loss.dtype == expected
        assert state == jax.eval_shape(lambda: start)
        assert grads == jax.eval_shape(lambda: params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_state_keeps_its_dtype_whatever_the_inputs(dtype: Any) -> None:
    for variant in PARAMETER:
        dynamics = make(variant, jnp.float64(0.1), bias=True)
        start = dynamics.init((3,))
        state = with_layers(start, jax.tree.map(lambda leaf: leaf.astype(dtype), start.layers[0]))
        for of_inputs in (jnp.bfloat16, jnp.float32, jnp.float64):
            after, diagnostics = jax.eval_shape(dynamics.update, KEY, state, (jnp.ones((4, 3), of_inputs),))
            assert after == jax.eval_shape(lambda state=state: state)
            assert diagnostics.loss.dtype == dtype


@pytest.mark.parametrize("variant", ["paper", "decorbp", "seed", "scaled"])
def test_nan_in_an_input_is_nan_in_every_row_of_r(variant):
    """Also in the row of the input itself: its mean square is not small, but undefined."""
    dynamics = ll.decorrelation(0.1, variant=variant)
    x = jax.random.normal(jax.random.key(0), (6, 3)).at[0, 0].set(jnp.nan)
    state, found = dynamics.update(jax.random.key(1), dynamics.init((3,)), (x,))
    assert jnp.isnan(state.layers[0]["R"]).any(axis=1).all() and jnp.isnan(found.loss[0])

"""The critic and its training, against the public code's arrays, closed forms, loops and differences."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from lax_learning.symbolic.adam import adam_with_decay
from lax_learning.symbolic.critic import Critic, critic, embed, stack
from lax_learning.symbolic.critic_losses import (
    area_under_curve,
    critic_accuracy,
    critic_loss,
    gradient_penalty,
)
from lax_learning.symbolic.critic_training import (
    CriticState,
    critic_epoch,
    critic_step,
    init_critic,
    train_critic,
    uniform_eps,
)
from tests.compare import assert_close, assert_same, differs

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 6)
SMALL = critic(4, hidden=(5,), channels=2, embedding=(3,))
REAL, FAKE = jax.random.normal(KEYS[0], (3, 4, 2)), jax.random.normal(KEYS[1], (3, 4, 2))
EPS = jnp.array([0.1, 0.5, 0.8])


# The public code's arrays.


class Golden:
    """One critic of the public code: PyTorch's weights are `[out, in]`."""

    def __init__(self, arrays: Mapping[str, np.ndarray], channels: int, objective: str) -> None:
        prefix = f"emb{channels}.{objective.upper()}."
        self.arrays = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self.objective = objective
        self.critic = critic(30, hidden=(16, 16, 16), channels=channels, embedding=(8, 8))
        self.params = self.params_of("before")
        self.real, self.fake = jnp.asarray(self.arrays["real"]), jnp.asarray(self.arrays["fake"])
        self.eps = jnp.asarray(self.arrays["eps"].reshape(-1))

    def params_of(self, when: str) -> Any:
        def layers(name: str, indices: range) -> tuple[dict[str, jax.Array], ...]:
            prefixes = [f"{when}.{name}.{i}." for i in indices if f"{when}.{name}.{i}.bias" in self.arrays]
            return tuple(
                {"w": jnp.asarray(self.arrays[p + "weight"].T), "b": jnp.asarray(self.arrays[p + "bias"])}
                for p in prefixes
            )

        return {"critic": layers("layers2", range(0, 8, 2)), "embedding": layers("layers1", range(0, 6, 2))}


@pytest.fixture(params=[(c, o) for c in (1, 3) for o in ("bce", "wgan")], ids=lambda p: f"{p[0]}-{p[1]}")
def public(request: Any, golden: Any, x64: None) -> Golden:
    return Golden(golden("critic"), *request.param)


def close(got: Any, expected: Any, rtol: float = 1e-10) -> None:
    assert np.asarray(got).dtype == np.float64
    np.testing.assert_allclose(got, np.reshape(expected, np.shape(got)), rtol=rtol, atol=1e-14)


def test_a_step_of_the_public_code(public: Golden) -> None:
    given = public.arrays
    optimizer = adam_with_decay(float(given["lr"]), float(given["weight_decay"]))
    step = critic_step(
        public.critic,
        optimizer,
        objective=public.objective,
        penalty=float(given["gp"]),
        draws=lambda key, number: public.eps,
    )

    @jax.jit
    def run(params: Any, real: jax.Array, fake: jax.Array) -> Any:
        logits = public.critic.apply(params, real), public.critic.apply(params, fake)
        return logits, step(KEY, CriticState(params, optimizer.init(params)), real, fake)

    logits, (state, metrics) = run(public.params, public.real, public.fake)
    close(logits[0], given["pred_real"])
    close(logits[1], given["pred_fake"])
    close(metrics.loss_real, given["loss_real"])
    close(metrics.loss_fake, given["loss_fake"])
    close(metrics.penalty, given["gradient_penalty"])
    close(metrics.accuracy, given["accuracy"])
    after = public.params_of("after")
    assert jax.tree.structure(state.params) == jax.tree.structure(after)
    jax.tree.map(close, state.params, after)


# Curves.


def test_stack_and_embed() -> None:
    curves, x = np.arange(6.0).reshape(2, 3), 10 + np.arange(3.0).reshape(3, 1)
    grads = 20 + np.arange(12.0).reshape(2, 3, 2)
    stacked, embedded = np.zeros((2, 12)), np.zeros((2, 3, 4))
    for i in range(2):
        stacked[i] = [*curves[i], *x[:, 0], *[grads[i, p, c] for p in range(3) for c in range(2)]]
        for p in range(3):
            embedded[i, p] = [curves[i, p], x[p, 0], *grads[i, p]]
    np.testing.assert_array_equal(stack(curves, x, grads), stacked)
    np.testing.assert_array_equal(embed(curves, x, grads), embedded)
    np.testing.assert_array_equal(stack(curves), curves)
    np.testing.assert_array_equal(embed(curves)[..., 0], curves)


@pytest.mark.parametrize("extend", [stack, embed])
def test_extensions_keep_the_dtype_of_curves(extend: Callable[..., jax.Array]) -> None:
    assert extend(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 1))).dtype == jnp.bfloat16


def test_an_extension_common_to_all_may_have_as_many_columns_as_points() -> None:
    extension = jnp.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(embed(jnp.ones((3, 3)), extension)[1, :, 1:], extension)


# Critics.


def test_initialisation() -> None:
    judge = critic(50, hidden=(40, 30), channels=3, embedding=(20,))
    params = jax.jit(judge.init)(KEY)
    assert [w["w"].shape for w in params["critic"]] == [(50, 40), (40, 30), (30, 1)]
    assert [w["w"].shape for w in params["embedding"]] == [(3, 20), (20, 1)]
    for weights in (*params["critic"], *params["embedding"]):
        bound = weights["w"].shape[0] ** -0.5
        for w in weights.values():
            assert float(jnp.abs(w).max()) <= bound
        if weights["w"].size > 500:
            assert float(jnp.std(weights["w"])) == pytest.approx(bound / 3**0.5, rel=0.1)
        if weights["b"].size > 20:
            assert float(jnp.std(weights["b"])) == pytest.approx(bound / 3**0.5, rel=0.4)
    plain = jax.jit(critic(50, hidden=(40, 30)).init)(KEY)
    assert plain["embedding"] == ()
    assert_same(plain["critic"], params["critic"])


@pytest.mark.parametrize("channels", [1, 2])
def test_curves_are_judged_one_by_one(channels: int) -> None:
    judge = critic(4, hidden=(6, 5), channels=channels, embedding=(3,))
    curves = REAL[..., 0] if channels == 1 else REAL
    params, apply = jax.jit(judge.init)(KEY), jax.jit(judge.apply)
    logits = apply(params, curves)
    alone = jnp.concatenate([apply(params, curve[None]) for curve in curves])
    assert_close(logits, alone, ulps=32)
    assert logits.shape == (3,)


# Losses and scores.


def test_losses_in_closed_form() -> None:
    real, fake = jnp.array([-2.0, 0.5, 30.0]), jnp.array([-100.0, 3.0])
    z, f = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    bce = np.mean(-np.log(1 / (1 + np.exp(-z)))), np.mean([0.0, -np.log(1 - 1 / (1 + np.exp(-f[1])))])
    np.testing.assert_allclose(critic_loss(real, fake), bce, rtol=1e-6)
    np.testing.assert_allclose(critic_loss(real, fake, objective="wgan"), (-z.mean(), f.mean()), rtol=1e-6)
    assert all(loss.dtype == jnp.float32 for loss in critic_loss(real.astype(jnp.bfloat16), fake))


def linear(w: Any) -> tuple[Critic, Any]:
    w = jnp.asarray(w, float)
    params = {"critic": ({"w": w.reshape(-1, 1), "b": jnp.ones(1)},), "embedding": ()}
    return critic(w.size, hidden=()), params


def test_penalty_of_a_linear_critic() -> None:
    judge, params = linear([3.0, 4.0, 12.0])
    real, fake = jnp.ones((2, 3)), jnp.zeros((2, 3))
    penalty = partial(gradient_penalty, judge, eps=jnp.array([0.2, 0.7]), real=real, fake=fake)
    value, grads = jax.value_and_grad(penalty)(params)
    assert float(value) == pytest.approx(12**2)
    np.testing.assert_allclose(
        grads["critic"][0]["w"][:, 0], 2 * 12 * np.array([3.0, 4.0, 12.0]) / 13, rtol=1e-6
    )


def test_penalty_counts_points_and_channels_of_each_curve_and_one_eps_a_curve() -> None:
    # The slope of sum(x^2) / 2 is x itself: the penalty shows the mixtures.
    judge = Critic(lambda key: (), lambda params, x: jnp.sum(jnp.asarray(x) ** 2, axis=(1, 2)) / 2, (4, 2))
    norms = [
        np.linalg.norm(e * r + (1 - e) * f)
        for e, r, f in zip(np.asarray(EPS), np.asarray(REAL), np.asarray(FAKE), strict=True)
    ]
    got = gradient_penalty(judge, (), EPS, REAL, FAKE)
    np.testing.assert_allclose(got, np.mean((np.array(norms) - 1) ** 2), rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_gradient_of_the_penalty_against_differences() -> None:
    judge = critic(4, hidden=(5,), channels=2, embedding=(3,), dtype=jnp.float64)
    params = jax.jit(judge.init)(KEY)
    arrays = [jnp.asarray(np.asarray(a, np.float64)) for a in (EPS, REAL, FAKE)]
    flat, unravel = ravel_pytree(params)
    penalty = jax.jit(lambda v: gradient_penalty(judge, unravel(v), *arrays))
    grads = jax.jit(jax.grad(penalty))(flat)
    step = 1e-6 * np.eye(flat.size)
    differences = [(penalty(flat + s) - penalty(flat - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(grads, differences, rtol=1e-6, atol=1e-8)
    assert np.count_nonzero(np.abs(grads) > 1e-6) > flat.size / 3


def test_penalty_where_the_slope_is_zero() -> None:
    judge, params = linear([0.0, 0.0])
    ones = jnp.ones((2, 2))
    penalty = partial(gradient_penalty, judge, eps=EPS[:2], real=ones, fake=-ones)
    value, grads = jax.value_and_grad(penalty)(params)
    assert float(value) == 1
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_accuracy() -> None:
    zero, one = jnp.zeros(2), jnp.ones(2)
    assert float(critic_accuracy(one, -one)) == 1
    assert float(critic_accuracy(-one, one)) == 0
    assert float(critic_accuracy(one, zero)) == 1  # 0 counts as fake
    assert float(critic_accuracy(zero, -one)) == 0.5
    assert float(critic_accuracy(one, jnp.ones(6))) == 0.25  # all curves weigh the same
    for logits in ((one.at[0].set(jnp.nan), one), (one, one.at[0].set(jnp.nan))):
        assert jnp.isnan(critic_accuracy(*logits))


@pytest.mark.parametrize("sizes", [(1, 1), (7, 4), (300, 301)])
def test_area_under_curve_against_all_pairs(sizes: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    real, fake = (draw.integers(-3 + i, 4, size).astype(np.float32) for i, size in enumerate(sizes))
    pairs = [(r > f) + (r == f) / 2 for r in real for f in fake]
    assert float(area_under_curve(real, fake)) == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.parametrize("size", [2, 300])
def test_area_under_curve_at_its_ends(size: int) -> None:
    ones = jnp.ones(size)
    assert float(area_under_curve(ones, -ones)) == 1
    assert float(area_under_curve(-ones, ones)) == 0
    assert float(area_under_curve(0 * ones, -0.0 * ones)) == 0.5
    assert float(area_under_curve(jnp.inf * ones, ones)) == 1
    for logits in ((ones.at[0].set(jnp.nan), ones), (ones, ones.at[1].set(jnp.nan))):
        assert bool(jnp.isnan(area_under_curve(*logits)))


# Adam.


@pytest.mark.usefixtures("x64")
def test_adam_against_a_loop() -> None:
    lr, decay, b1, b2 = 0.03, 0.2, 0.8, 0.95
    draw = np.random.default_rng(0)
    w = draw.normal(size=5)
    optimizer, params = adam_with_decay(lr, decay, b1, b2), {"w": jnp.asarray(w)}
    state, m, v = optimizer.init(params), np.zeros(5), np.zeros(5)
    for t in range(1, 6):
        gradient = draw.normal(size=5)
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        params: Any = optax.apply_updates(params, updates)
        gradient = gradient + decay * w
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        w = w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        close(params["w"], w)


def test_moments_of_half_precision_params_are_kept_in_float32() -> None:
    # In bfloat16 0.999 is 1: the mean square would never decay.
    optimizer, params = adam_with_decay(0.1, 0.01), jnp.ones(3, jnp.bfloat16)
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(after) if leaf.ndim} == {jnp.dtype(jnp.float32)}
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert jax.tree.leaves(optax.apply_updates(params, updates))[0].dtype == jnp.bfloat16


# Training.


def one_step(key: Any, learning_rate: Any = 1e-2, penalty: Any = 0.1, decay: Any = 0.01) -> Any:
    optimizer = adam_with_decay(learning_rate, decay)
    state = init_critic(key, SMALL, optimizer)
    return critic_step(SMALL, optimizer, penalty=penalty)(key, state, REAL, FAKE)


def test_a_step_is_the_same_when_compiled() -> None:
    judge, optimizer = critic(2, hidden=(2,)), optax.sgd(0.1)
    step = critic_step(judge, optimizer)
    state = jax.jit(lambda: init_critic(KEY, judge, optimizer))()
    arguments = KEY, state, REAL[:, 0], FAKE[:, 0]
    assert_close(step(*arguments), jax.jit(step)(*arguments), ulps=64)


def test_a_step_written_out() -> None:
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = critic_step(SMALL, optimizer, objective="wgan", penalty=0.3)

    @jax.jit
    def both(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            losses = critic_loss(SMALL.apply(params, REAL), SMALL.apply(params, FAKE), objective="wgan")
            slope = gradient_penalty(SMALL, params, uniform_eps(KEYS[2], 3), REAL, FAKE)
            return losses[0] + losses[1] + 0.3 * slope

        logits = SMALL.apply(params, REAL), SMALL.apply(params, FAKE)
        updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params)
        expected = CriticState(optax.apply_updates(params, updates), optimizer_state)
        scores = critic_accuracy(*logits), area_under_curve(*logits)
        state, metrics = step(KEYS[2], CriticState(params, optimizer.init(params)), REAL, FAKE)
        return (state, (metrics.accuracy, metrics.auc)), (expected, scores)

    assert_close(*both(jax.jit(SMALL.init)(KEY)), ulps=64)


def test_metrics_are_those_before_the_step() -> None:
    judge, params = linear([0.0, 0.0])
    params["critic"][0]["b"] = jnp.zeros(1)
    step, curves = jax.jit(critic_step(judge, optax.sgd(1.0))), jnp.ones((3, 2))
    state = CriticState(params, optax.sgd(1.0).init(params))
    for score in (0.5, 1.0):
        state, metrics = step(KEY, state, curves, -curves)
        assert (float(metrics.accuracy), float(metrics.auc)) == (score, score)


def test_compiled_and_batched_steps_are_the_same_and_compiled_once() -> None:
    # A sweep over all numbers at once, with 0 among them.
    values = KEYS[:3], jnp.array([0.1, 0.0, 0.01]), jnp.array([0.0, 0.1, 0.01]), jnp.array([0.1, 0.01, 0.0])
    traces = []

    def run(*values: Any) -> Any:
        traces.append(values)
        return one_step(*values)

    compiled = jax.jit(run)
    alone = [compiled(*(value[i] for value in values)) for i in range(3)]
    assert len(traces) == 1, "a second call compiled again"
    together = jax.jit(jax.vmap(one_step))(*values)
    assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *alone), ulps=256)
    # A traced 0 is the plain 0, which computes no penalty.
    plain = jax.jit(partial(one_step, learning_rate=0.1, penalty=0, decay=0.1))(KEYS[0])
    assert_close(alone[0], plain, ulps=256)
    assert (together[1].penalty > 0).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept(dtype: Any) -> None:
    judge, optimizer = critic(4, hidden=(3,), dtype=dtype), adam_with_decay(jnp.float32(0.1), 0.1)
    step = critic_step(judge, optimizer, penalty=0.1)
    curves = jax.random.normal(KEY, (2, 4), dtype)
    epoch = critic_epoch(lambda key: curves, lambda key: -curves, step, iterations=2)
    state = jax.jit(lambda: init_critic(KEY, judge, optimizer))()
    assert judge.apply(state.params, curves).dtype == dtype
    after, metrics = jax.jit(epoch)(KEY, state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype(dtype)}
    for leaf in metrics:
        assert leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all())


PLAIN, OPTIMIZER = critic(4, hidden=(3,)), optax.sgd(0.1)
STEP = critic_step(PLAIN, OPTIMIZER)


def draw_curves(offset: float, key: Any) -> jax.Array:
    return offset + jax.random.normal(key, (3, 4))


@pytest.fixture
def start() -> CriticState:
    return init_critic(KEY, PLAIN, OPTIMIZER)


@pytest.mark.parametrize("resample", [False, True])
def test_an_epoch_is_its_steps_written_out(resample: bool, start: CriticState) -> None:
    draws, seen = [], []

    def sample(key: Any) -> jax.Array:
        draws.append(key)
        return draw_curves(1.0, key)

    def step(key: Any, state: CriticState, real: Any, fake: Any) -> Any:
        state, metrics = STEP(key, state, real, fake)
        jax.debug.callback(lambda r, f: seen.append((np.array(r), np.array(f))), real, fake, ordered=True)
        return state, metrics

    generate = partial(draw_curves, -1.0)
    epoch = critic_epoch(generate, sample, step, iterations=3, resample=resample)
    got, metrics = jax.jit(epoch)(KEY, start)
    jax.effects_barrier()
    assert len(draws) == 1  # traced once

    generate_key, sample_key, step_key = jax.random.split(KEY, 3)
    fake, state, rows, run = generate(generate_key), start, [], jax.jit(STEP)
    for i in range(3):
        real = draw_curves(1.0, jax.random.split(sample_key, 3)[i] if resample else sample_key)
        np.testing.assert_array_equal(seen[i][0], real)
        np.testing.assert_array_equal(seen[i][1], fake)
        state, row = run(jax.random.split(step_key, 3)[i], state, real, fake)
        rows.append(row)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    assert_close((got, metrics), (state, expected), ulps=256)
    assert differs(seen[0][0], seen[1][0]) == resample


def test_a_run_is_its_epochs_and_goes_on_where_it_ended(start: CriticState) -> None:
    epoch = critic_epoch(partial(draw_curves, -1.0), partial(draw_curves, 1.0), STEP, iterations=2)
    whole, metrics = jax.jit(train_critic(epoch, 3))(KEY, start)
    assert metrics.auc.shape == (3, 2)
    run, go_on = jax.jit(epoch), jax.jit(train_critic(epoch, 1))
    by_epoch, in_pieces, rows, pieces = start, start, [], []
    for e in range(3):
        by_epoch, row = run(jax.random.fold_in(KEY, e), by_epoch)
        in_pieces, piece = go_on(KEY, in_pieces, e)
        rows.append(row)
        pieces.append(piece)
    assert_close((by_epoch, jax.tree.map(lambda *a: np.stack(a), *rows)), (whole, metrics), ulps=256)
    joined = jax.tree.map(lambda *a: np.concatenate(a), *pieces)
    assert_close((in_pieces, joined), (whole, metrics), ulps=256)
    assert differs(rows[0], rows[1])


@pytest.mark.parametrize("objective", ["bce", "wgan"])
def test_a_critic_learns_to_tell_straight_lines_from_waves(objective: str) -> None:
    x = jnp.linspace(-1, 1, 20)

    def lines(key: Any) -> jax.Array:
        return jax.random.normal(key, (10, 1)) * x

    def waves(key: Any) -> jax.Array:
        return 1 + 0.1 * jax.random.normal(key, (10, 1)) + jnp.sin(6 * x)

    judge, optimizer = critic(20, hidden=(32,)), adam_with_decay(1e-2, 1e-7)
    step = critic_step(judge, optimizer, objective=objective, penalty=0.1)
    train = train_critic(critic_epoch(lines, waves, step, iterations=3), num_epochs=30)
    metrics = jax.jit(train)(KEYS[0], init_critic(KEY, judge, optimizer))[1]
    assert float(metrics.auc[-5:].mean()) > 0.95
    if objective == "bce":
        assert float(metrics.accuracy[-5:].mean()) > 0.95
        assert float(metrics.loss_real[-1, -1]) < float(metrics.loss_real[0, 0])

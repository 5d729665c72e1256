"""The critic and its training, against the public code's arrays, closed forms, loops and differences."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import lax_learning.symbolic as sy
from tests.compare import assert_close, differs, slow_but

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 6)
SMALL = sy.critic(4, hidden=(5,), channels=2, embedding=(3,))
REAL, FAKE = jax.random.normal(KEYS[0], (3, 4, 2)), jax.random.normal(KEYS[1], (3, 4, 2))
EPS = jnp.array([0.1, 0.5, 0.8])
X = jnp.linspace(-1, 1, 7)[:, None]
LIBRARY = sy.parse_library("N0*0.05*(X[:,0] + 0.5*N1)**2 + 0.15*N2\n2*N0*sin(3*U0*X[:,0])")


def adam(learning_rate: Any, decay: Any) -> optax.GradientTransformation:
    """PyTorch's: decay is part of the gradient."""
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(learning_rate))


# --- the public code's arrays


class Golden:
    """One critic of the public code: PyTorch's weights are `[out, in]`."""

    def __init__(self, arrays: Mapping[str, np.ndarray], channels: int, objective: str) -> None:
        prefix = f"emb{channels}.{objective.upper()}."
        self.arrays = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self.objective: Any = objective
        self.critic = sy.critic(30, hidden=(16, 16, 16), channels=channels, embedding=(8, 8))

    def params_of(self, when: str) -> Any:
        def layers(name: str, indices: range) -> tuple[dict[str, jax.Array], ...]:
            prefixes = [f"{when}.{name}.{i}." for i in indices if f"{when}.{name}.{i}.bias" in self.arrays]
            return tuple(
                {"w": jnp.asarray(self.arrays[p + "weight"].T), "b": jnp.asarray(self.arrays[p + "bias"])}
                for p in prefixes
            )

        return {"critic": layers("layers2", range(0, 8, 2)), "embedding": layers("layers1", range(0, 6, 2))}


def close(got: Any, expected: Any) -> None:
    assert np.asarray(got).dtype == np.float64
    np.testing.assert_allclose(got, np.reshape(expected, np.shape(got)), rtol=1e-10, atol=1e-14)


GOLDEN = [(channels, objective) for channels in (1, 3) for objective in ("bce", "wgan")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("channels", "objective"), slow_but([(1, "wgan")], GOLDEN))
def test_a_step_of_the_public_code(
    golden: Any, channels: int, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = Golden(golden("critic"), channels, objective)
    given = public.arrays
    optimizer = adam(float(given["lr"]), float(given["weight_decay"]))
    penalty = float(given["gp"])
    step = sy.critic_step(public.critic, optimizer, objective=public.objective, penalty=penalty)

    @jax.jit
    def run(params: Any, real: jax.Array, fake: jax.Array) -> Any:
        logits = public.critic.apply(params, real), public.critic.apply(params, fake)
        return logits, step(KEY, sy.CriticState(params, optimizer.init(params)), real, fake)

    eps = jnp.asarray(given["eps"].reshape(-1))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: eps.reshape(shape))
    curves = jnp.asarray(given["real"]), jnp.asarray(given["fake"])
    logits, (state, metrics) = run(public.params_of("before"), *curves)
    close(logits[0], given["pred_real"])
    close(logits[1], given["pred_fake"])
    close(metrics.loss_real, given["loss_real"])
    close(metrics.loss_fake, given["loss_fake"])
    close(metrics.penalty, given["gradient_penalty"])
    close(metrics.accuracy, given["accuracy"])
    after = public.params_of("after")
    assert jax.tree.structure(state.params) == jax.tree.structure(after)
    jax.tree.map(close, state.params, after)


# --- curves


def test_extensions_come_in_the_given_order() -> None:
    x = jnp.stack([jnp.linspace(-1, 1, 7), jnp.linspace(0, 1, 7)], axis=1)
    library = sy.parse_library("N0*X[:,0]**2*X[:,1]\nsin(U0*X[:,1])")
    generator = sy.mlp_generator(2, 3, hidden=(4,))
    plain = sy.curves_at(x, library, generator)
    curves = [
        sy.curves_at(x, library, generator, extensions=("input", "gradient"), method="stack"),
        sy.curves_at(x, library, generator, extensions=("gradient", "input"), method="embed"),
    ]
    assert [each.curve_shape for each in (plain, *curves)] == [(7,), (35,), (7, 5)]

    @jax.jit
    def run(key: Any) -> Any:
        draws, params = sy.draw_functions(key, library, 3), generator.init(key)
        functions = {
            "real": lambda x: sy.function_values(library, draws, x),
            "fake": lambda x: generator.apply(params, x).T,
        }
        by_hand = {
            name: (f(x), jax.vmap(jax.jacobian(lambda point: f(point[None])[:, 0]), out_axes=1)(x))  # noqa: B023
            for name, f in functions.items()
        }
        found = {name: [getattr(each, name)(key) for each in (plain, *curves)] for name in functions}
        return by_hand, found, curves[1].latents(generator.apply, params)

    by_hand, found, latents = run(KEY)
    for name, (values, slopes) in by_hand.items():
        columns = [np.asarray(slopes), np.broadcast_to(x, (3, 7, 2))]
        stacked = np.concatenate([values, *(c.reshape(3, 14) for c in columns[::-1])], axis=1)
        embedded = np.concatenate([np.asarray(values)[..., None], *columns], axis=2)
        assert_close(found[name], [values, stacked, embedded], ulps=32)
    assert_close(latents, found["fake"][2], ulps=32)


# --- critics, losses and scores


def test_initialisation_and_curves_one_by_one() -> None:
    judge = sy.critic(50, hidden=(40, 30), channels=3, embedding=(20,))
    params, small = jax.jit(lambda key: (judge.init(key), SMALL.init(key)))(KEY)
    assert [w["w"].shape for w in params["critic"]] == [(50, 40), (40, 30), (30, 1)]
    assert [w["w"].shape for w in params["embedding"]] == [(3, 20), (20, 1)]
    for weights in (*params["critic"], *params["embedding"]):
        bound = weights["w"].shape[0] ** -0.5
        for w in weights.values():
            assert np.abs(w).max() <= bound
        if weights["w"].size > 500:
            assert np.std(weights["w"]) == pytest.approx(bound / 3**0.5, rel=0.1)
        if weights["b"].size > 20:
            assert np.std(weights["b"]) == pytest.approx(bound / 3**0.5, rel=0.4)
    without = jax.eval_shape(sy.critic(50, hidden=(40, 30)).init, KEY)
    assert without == jax.eval_shape(lambda: {**params, "embedding": ()})
    apply = jax.jit(SMALL.apply)
    logits = apply(small, REAL)
    assert_close(logits, np.concatenate([apply(small, REAL[i : i + 1]) for i in range(3)]), ulps=32)


def test_losses_and_costs_in_closed_form() -> None:
    real, fake = jnp.array([-2.0, 0.5, 30.0]), jnp.array([-100.0, 3.0])
    z, f = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    sigmoid = 1 / (1 + np.exp(-z))
    bce = np.mean(-np.log(sigmoid)), np.mean([0.0, -np.log(1 - 1 / (1 + np.exp(-f[1])))])
    np.testing.assert_allclose(sy.critic_loss(real, fake), bce, rtol=1e-6)
    np.testing.assert_allclose(sy.critic_loss(real, fake, objective="wgan"), (-z.mean(), f.mean()), rtol=1e-6)
    assert all(loss.dtype == jnp.float32 for loss in sy.critic_loss(real.astype(jnp.bfloat16), fake))
    costs = {"linear": -z, "sigmoid": -sigmoid, "logsigmoid": -np.log(sigmoid)}
    slopes = {"linear": -np.ones(3), "sigmoid": -sigmoid * (1 - sigmoid), "logsigmoid": sigmoid - 1}
    cost: Any
    for cost in costs:
        value, slope = jax.value_and_grad(lambda logits, cost=cost: sy.critic_cost(logits, cost=cost))(real)
        np.testing.assert_allclose(value, costs[cost].mean(), rtol=1e-6)
        np.testing.assert_allclose(slope, slopes[cost] / 3, rtol=1e-5, atol=1e-7)
    assert sy.critic_cost(real.astype(jnp.bfloat16)).dtype == jnp.float32


def linear(w: Any) -> tuple[sy.Critic, Any]:
    w = jnp.asarray(w, float)
    params = {"critic": ({"w": w.reshape(-1, 1), "b": jnp.ones(1)},), "embedding": ()}
    return sy.critic(w.size, hidden=()), params


def test_penalty_of_a_linear_critic() -> None:
    """Also of slopes whose squares float32 cannot hold."""
    w = np.array([3.0, 4.0, 12.0])
    judge, params = linear(w)
    penalty = jax.jit(jax.value_and_grad(partial(sy.gradient_penalty, judge)))
    curves = EPS[:2], jnp.ones((2, 3)), jnp.zeros((2, 3))
    for size in (1e-25, 1.0, 1e18, 0.0):
        found, grads = penalty(jax.tree.map(lambda a, size=size: size * a, params), *curves)
        np.testing.assert_allclose(found, (13 * size - 1) ** 2, rtol=1e-5)
        expected = 2 * (13 * size - 1) * w / 13 * (size > 0)
        np.testing.assert_allclose(grads["critic"][0]["w"][:, 0], expected, rtol=1e-5)


def test_penalty_counts_points_and_channels_of_each_curve_and_one_eps_a_curve() -> None:
    # The slope of sum(x^2) / 2 is x itself: the penalty shows the mixtures.
    judge = sy.Critic(lambda key: (), lambda params, x: jnp.sum(jnp.asarray(x) ** 2, axis=(1, 2)) / 2, (4, 2))
    pairs = zip(np.asarray(EPS), np.asarray(REAL), np.asarray(FAKE), strict=True)
    norms = np.array([np.linalg.norm(e * r + (1 - e) * f) for e, r, f in pairs])
    got = sy.gradient_penalty(judge, (), EPS, REAL, FAKE)
    np.testing.assert_allclose(got, np.mean((norms - 1) ** 2), rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_gradient_of_the_penalty_against_differences() -> None:
    judge = sy.critic(4, hidden=(5,), channels=2, embedding=(3,), dtype=jnp.float64)
    arrays = [jnp.asarray(np.asarray(a, np.float64)) for a in (EPS, REAL, FAKE)]
    flat, unravel = ravel_pytree(jax.jit(judge.init)(KEY))
    directions = np.random.default_rng(0).choice([-1.0, 1.0], size=(4, flat.size))

    @jax.jit
    def run(flat: Any) -> Any:
        penalty = jax.value_and_grad(lambda v: sy.gradient_penalty(judge, unravel(v), *arrays))
        sides = [jax.vmap(lambda d, s=s: penalty(flat + s * d)[0])(directions) for s in (1e-6, -1e-6)]
        return penalty(flat)[1], (sides[0] - sides[1]) / 2e-6

    grads, differences = map(np.asarray, run(flat))
    np.testing.assert_allclose(directions @ grads, differences, rtol=1e-6, atol=1e-7)
    assert np.count_nonzero(np.abs(grads) > 1e-6) > flat.size / 3


def test_accuracy() -> None:
    zero, one = jnp.zeros(2), jnp.ones(2)
    assert float(sy.critic_accuracy(one, -one)) == 1
    assert float(sy.critic_accuracy(-one, one)) == 0
    assert float(sy.critic_accuracy(one, zero)) == 1  # 0 counts as fake
    assert float(sy.critic_accuracy(zero, -one)) == 0.5
    assert float(sy.critic_accuracy(one, jnp.ones(6))) == 0.25  # all curves weigh the same


@pytest.mark.parametrize("sizes", [(7, 4), (300, 301)])
def test_area_under_curve_against_all_pairs(sizes: tuple[int, int]) -> None:
    draw, score = np.random.default_rng(0), jax.jit(sy.area_under_curve)
    real, fake = (draw.integers(-3 + i, 4, size).astype(np.float32) for i, size in enumerate(sizes))
    pairs = [(r > f) + (r == f) / 2 for r in real for f in fake]
    assert float(score(real, fake)) == pytest.approx(np.mean(pairs), abs=1e-6)
    one, other = (np.ones(size, np.float32) for size in sizes)
    for a, b, expected in ((1, -1, 1), (-1, 1, 0), (0, -0.0, 0.5), (np.inf, 1, 1)):
        assert float(score(a * one, b * other)) == expected
    spoiled = one.copy()
    spoiled[0] = np.nan
    assert np.isnan(score(spoiled, other)) and np.isnan(score(other, spoiled))
    assert np.isnan(sy.critic_accuracy(spoiled, other)) and np.isnan(sy.critic_accuracy(other, spoiled))


# --- training


def test_metrics_are_those_before_the_step() -> None:
    judge, params = linear([0.0, 0.0])
    params["critic"][0]["b"] = jnp.zeros(1)
    step, curves = jax.jit(sy.critic_step(judge, optax.sgd(1.0))), jnp.ones((3, 2))
    state = sy.CriticState(params, optax.sgd(1.0).init(params))
    for score in (0.5, 1.0):
        state, metrics = step(KEY, state, curves, -curves)
        assert (float(metrics.accuracy), float(metrics.auc)) == (score, score)


def one_step(key: Any, learning_rate: Any, penalty: Any, decay: Any) -> Any:
    optimizer = adam(learning_rate, decay)
    state = sy.init_critic(key, SMALL, optimizer)
    return sy.critic_step(SMALL, optimizer, penalty=penalty)(key, state, REAL, FAKE)


def test_compiled_and_batched_steps_are_the_same_and_compiled_once() -> None:
    # A sweep over all numbers at once, with 0 among them.
    values = KEYS[:3], jnp.array([0.1, 0.0, 0.01]), jnp.array([0.0, 0.1, 0.01]), jnp.array([0.1, 0.01, 0.0])
    traces = []

    @jax.jit
    def run(*values: Any) -> Any:
        traces.append(values)
        return one_step(*values)

    alone = [run(*(value[i] for value in values)) for i in range(3)]
    assert len(traces) == 1, "a second call compiled again"
    together = jax.jit(jax.vmap(one_step))(*values)
    assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *alone), ulps=256)
    assert (together[1].penalty > 0).tolist() == [False, True, True]


def test_training_is_its_steps_written_out_and_goes_on_where_it_ended() -> None:
    judge, optimizer = sy.critic(4, hidden=(3,)), optax.sgd(0.1)
    step, start = sy.critic_step(judge, optimizer, penalty=0.1), sy.init_critic(KEY, judge, optimizer)

    def real(key: Any) -> jax.Array:
        return 1 + jax.random.normal(key, (3, 4))

    def fake(key: Any) -> jax.Array:
        return jax.random.normal(key, (3, 4)) - 1

    train, run = jax.jit(sy.train_critic(step, real, fake, num_epochs=2, iterations=2)), jax.jit(step)
    by_step = in_pieces = start
    for first in (0, 2):
        in_pieces, metrics = train(KEY, in_pieces, first)
        rows = []
        for e in (first, first + 1):
            fake_key, real_key, step_key = jax.random.split(jax.random.fold_in(KEY, e), 3)
            for key in jax.random.split(step_key, 2):
                by_step, row = run(key, by_step, real(real_key), fake(fake_key))
                rows.append(row)
        written_out = jax.tree.map(lambda *a: np.stack(a).reshape(2, 2), *rows)
        assert_close((by_step, written_out), (in_pieces, metrics), ulps=256)
        assert differs(rows[0], rows[1]) and differs(rows[1], rows[2])

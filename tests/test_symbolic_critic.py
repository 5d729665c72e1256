"""The critic and its training, against the public code's arrays, closed forms and loops."""

from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning.symbolic as sy
from tests.compare import assert_close, differs, member, normal, slow_but

# Much is traced here: annotations are checked where the same functions meet their other oracles.
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
SMALL = sy.critic(4, hidden=(5,), channels=2, embedding=(3,))
REAL, FAKE = normal(1, 3, 4, 2), normal(2, 3, 4, 2)
EPS = jnp.array([0.1, 0.5, 0.8])


def adam(learning_rate: Any, decay: Any) -> optax.GradientTransformation:
    """PyTorch's: decay is part of the gradient."""
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(learning_rate))


def public_params(arrays: Mapping[str, np.ndarray], when: str) -> Any:
    """PyTorch's weights are `[out, in]`."""

    def layers(name: str) -> Any:
        prefixes = [f"{when}.{name}.{i}." for i in range(0, 8, 2) if f"{when}.{name}.{i}.bias" in arrays]
        return tuple({"w": jnp.asarray(arrays[p + "weight"].T), "b": arrays[p + "bias"]} for p in prefixes)

    return {"critic": layers("layers2"), "embedding": layers("layers1")}


GOLDEN = [(channels, objective) for channels in (1, 3) for objective in ("bce", "wgan")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("channels", "objective"), slow_but([(1, "wgan")], GOLDEN))
def test_a_step_of_the_public_code(
    golden: Any, channels: int, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"emb{channels}.{objective.upper()}."
    given = {k.removeprefix(prefix): v for k, v in golden("critic").items() if k.startswith(prefix)}
    judge = sy.critic(30, hidden=(16, 16, 16), channels=channels, embedding=(8, 8))
    optimizer = adam(float(given["lr"]), float(given["weight_decay"]))
    step = sy.critic_step(judge, optimizer, objective=objective, penalty=float(given["gp"]))

    @jax.jit
    def run(params: Any, real: Any, fake: Any) -> Any:
        logits = judge.apply(params, real), judge.apply(params, fake)
        return logits, step(KEY, sy.CriticState(params, optimizer.init(params)), real, fake)

    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.reshape(given["eps"], shape))
    logits, (state, metrics) = run(public_params(given, "before"), given["real"], given["fake"])
    names = ("pred_real", "pred_fake", "loss_real", "loss_fake", "gradient_penalty", "accuracy")
    found = [*logits, *metrics[:4], *jax.tree.leaves(state.params)]
    expected = [*(given[name] for name in names), *jax.tree.leaves(public_params(given, "after"))]
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, np.reshape(wanted, got.shape), rtol=1e-10, atol=1e-14)


def test_extensions_come_in_the_given_order() -> None:
    x = jnp.asarray(np.linspace([-1, 0], [1, 1], 7), jnp.float32)
    library = sy.parse_library("N0*X[:,0]**2*X[:,1]\nsin(U0*X[:,1])")
    generator = sy.mlp_generator(2, 3, hidden=(4,))
    at = partial(sy.curves_at, x, library, generator)
    stack, embed = (partial(at, method=method) for method in ("stack", "embed"))
    sources = [at(), stack(extensions=("input", "gradient")), embed(extensions=("gradient", "input"))]
    assert [each.curve_shape for each in sources] == [(7,), (35,), (7, 5)]

    def by_hand(f: Any) -> Any:
        return f(x), jax.vmap(jax.jacobian(lambda point: f(point[None])[:, 0]), out_axes=1)(x)

    @jax.jit
    def run(key: Any) -> Any:
        draws, params = sy.draw_functions(key, library, 3), generator.init(key)
        real = by_hand(lambda x: sy.function_values(library, draws, x)), [of.real(key) for of in sources]
        fake = by_hand(lambda x: generator.apply(params, x).T), [of.fake(key) for of in sources]
        return real, fake, sources[2].latents(generator.apply, params)

    *pairs, latents = run(KEY)
    for (values, slopes), found in pairs:
        columns = [np.asarray(slopes), np.broadcast_to(x, (3, 7, 2))]
        stacked = np.concatenate([values, *(c.reshape(3, 14) for c in columns[::-1])], axis=1)
        embedded = np.concatenate([np.asarray(values)[..., None], *columns], axis=2)
        assert_close(found, [values, stacked, embedded], ulps=32)
    assert_close(latents, pairs[1][1][2], ulps=32)


def test_initialisation_and_curves_one_by_one() -> None:
    shapes, without = (jax.eval_shape(of.init, KEY) for of in (SMALL, sy.critic(4, hidden=(5,))))
    assert without == {**shapes, "embedding": ()}
    params = jax.tree.map(lambda a: normal(a.size, *a.shape), shapes)
    one_by_one = jax.vmap(lambda curve: SMALL.apply(params, curve[None])[0])
    assert_close(*jax.jit(lambda: (SMALL.apply(params, REAL), one_by_one(REAL)))(), ulps=32)


def test_losses_and_costs_in_closed_form() -> None:
    real, fake = jnp.array([-2.0, 0.5, 30.0]), jnp.array([-100.0, 3.0])
    z = np.asarray(real, np.float64)
    sigmoid = 1 / (1 + np.exp(-z))
    bce = np.array([np.mean(-np.log(sigmoid)), np.log1p(np.exp(3.0)) / 2])
    np.testing.assert_allclose(sy.critic_loss(real, fake), bce, rtol=1e-6)
    np.testing.assert_allclose(sy.critic_loss(real, fake, objective="wgan"), (-z.mean(), -48.5), rtol=1e-6)
    assert all(loss.dtype == jnp.float32 for loss in sy.critic_loss(real.astype(jnp.bfloat16), fake))
    assert sy.critic_cost(real.astype(jnp.bfloat16)).dtype == jnp.float32
    costs: dict[Any, Any] = {
        "linear": (-z, -np.ones(3)),
        "sigmoid": (-sigmoid, -sigmoid * (1 - sigmoid)),
        "logsigmoid": (-np.log(sigmoid), sigmoid - 1),
    }
    of = jax.jit(lambda z: {c: jax.value_and_grad(partial(sy.critic_cost, cost=c))(z) for c in costs})
    for cost, (value, slope) in of(real).items():
        np.testing.assert_allclose(value, costs[cost][0].mean(), rtol=1e-6)
        np.testing.assert_allclose(slope, costs[cost][1] / 3, rtol=1e-5, atol=1e-7)


def test_penalty_of_a_linear_critic() -> None:
    """Also of slopes whose squares float32 cannot hold."""
    w, judge = np.array([3.0, 4.0, 12.0], np.float32), sy.critic(3, hidden=())
    penalty = jax.jit(jax.value_and_grad(partial(sy.gradient_penalty, judge)))
    for size in map(np.float32, (1e-25, 1.0, 1e18, 0.0)):
        params = {"critic": ({"w": size * w[:, None], "b": np.ones(1, np.float32)},), "embedding": ()}
        found, grads = penalty(params, EPS[:2], np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32))
        np.testing.assert_allclose(found, (13 * size - 1) ** 2, rtol=1e-5)
        expected = 2 * (13 * size - 1) * w / 13 * (size > 0)
        np.testing.assert_allclose(grads["critic"][0]["w"][:, 0], expected, rtol=1e-5)


def test_penalty_counts_points_and_channels_of_each_curve_and_one_eps_a_curve() -> None:
    # The slope of sum(x^2) / 2 is x itself: the penalty shows the mixtures.
    judge = sy.Critic(lambda key: (), lambda params, x: jnp.sum(jnp.asarray(x) ** 2, axis=(1, 2)) / 2, (4, 2))
    eps = np.asarray(EPS)[:, None, None]
    norms = np.linalg.norm((eps * REAL + (1 - eps) * FAKE).reshape(3, -1), axis=1)
    got = jax.jit(partial(sy.gradient_penalty, judge, ()))(EPS, REAL, FAKE)
    np.testing.assert_allclose(got, np.mean((norms - 1) ** 2), rtol=1e-5)


@pytest.mark.parametrize("sizes", [(7, 4), (300, 301)])
def test_scores_against_counting(sizes: tuple[int, int]) -> None:
    auc, accuracy = jax.jit(sy.area_under_curve), jax.jit(sy.critic_accuracy)
    draw = np.random.default_rng(0)
    real, fake = (draw.integers(-3 + i, 4, size).astype(np.float32) for i, size in enumerate(sizes))
    pairs = (real[:, None] > fake) + (real[:, None] == fake) / 2
    assert float(auc(real, fake)) == pytest.approx(np.mean(pairs), abs=1e-6)
    right = np.concatenate([real > 0, fake <= 0])  # 0 counts as fake, and all curves weigh the same
    assert float(accuracy(real, fake)) == pytest.approx(np.mean(right), abs=1e-6)
    for a, b, expected in ((1, -1, 1), (-1, 1, 0), (0, -0.0, 0.5), (np.inf, 1, 1)):
        assert float(auc(np.full_like(real, a), np.full_like(fake, b))) == expected
    for spoiled in (real, fake):
        first, spoiled[0] = spoiled[0], np.nan
        assert np.isnan(auc(real, fake)) and np.isnan(accuracy(real, fake))
        spoiled[0] = first


def test_steps_side_by_side_are_those_alone() -> None:
    """A sweep over all numbers at once, with 0 among them, traced."""
    numbers = np.array([[0.1, 0.0, 0.01], [0.0, 0.1, 0.01], [0.1, 0.01, 0.0]], np.float32)
    values = jax.random.split(KEY, 3), *numbers
    judge = sy.critic(4, hidden=())

    def one_step(key: Any, learning_rate: Any, penalty: Any, decay: Any) -> Any:
        optimizer = adam(learning_rate, decay)
        step = sy.critic_step(judge, optimizer, penalty=penalty)
        return step(key, sy.init_critic(key, judge, optimizer), REAL[:, :, 0], FAKE[:, :, 0])

    run, together = jax.jit(one_step), jax.jit(jax.vmap(one_step))(*values)
    for i in range(3):
        assert_close(member(together, i), run(*(value[i] for value in values)), ulps=256)
    assert (together[1].penalty > 0).tolist() == [False, True, True]
    assert (together[0].optimizer_state[1][0].count == 1).all()


def test_training_is_its_steps_written_out_and_goes_on_where_it_ended() -> None:
    """Metrics are those before a step."""
    judge, optimizer = sy.critic(4, hidden=()), optax.sgd(0.1)
    step = sy.critic_step(judge, optimizer, penalty=0.1)
    params = {"critic": ({"w": normal(3, 4, 1), "b": jnp.zeros(1)},), "embedding": ()}
    by_step = in_pieces = sy.CriticState(params, optimizer.init(params))
    real, fake = ((lambda key, low=low: low + jax.random.uniform(key, (3, 4))) for low in (1, -1))

    @jax.jit
    def run(state: Any, epoch: Any, i: Any) -> Any:
        fake_key, real_key, step_key = jax.random.split(jax.random.fold_in(KEY, epoch), 3)
        curves = real(real_key), fake(fake_key)
        before = sy.critic_loss(*(judge.apply(state.params, of) for of in curves))
        return *step(jax.random.split(step_key, 2)[i], state, *curves), before

    train = jax.jit(sy.train_critic(step, real, fake, num_epochs=2, iterations=2))
    for first in (0, 2):
        in_pieces, metrics = train(KEY, in_pieces, first)
        rows = []
        for e, i in product((first, first + 1), (0, 1)):
            by_step, row, before = run(by_step, e, i)
            rows.append(row)
            assert_close(row[:2], before, ulps=64)
        written_out = jax.tree.map(lambda *a: np.stack(a).reshape(2, 2), *rows)
        assert_close((by_step, written_out), (in_pieces, metrics), ulps=256)
        assert differs(rows[0], rows[1]) and differs(rows[1], rows[2])

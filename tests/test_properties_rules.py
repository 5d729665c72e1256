"""Properties of estimators, of noise in half precision, and of every function that draws from a key."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.key_reuse._core import check_key_reuse

import lax_learning as ll
from lax_learning import estimators, plasticity, symbolic
from tests.registry import NETWORKS, RULES

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

HALVES = (jnp.float16, jnp.bfloat16)
X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2)), jnp.float32)


def make(name: str, dtype: Any = jnp.float32) -> ll.Rule:
    return RULES[name](NETWORKS["dense"](dtype), ll.squared_error)


# --- noise that half precision can hold


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("difference", ["central", "forward"])
def test_credit_is_that_of_the_step_that_was_made(dtype: Any, difference: Any) -> None:
    """One weight of a linear loss, so that the estimate is the gradient, 1, for any step."""
    sizes = [0.0, *(m * 10.0**e for e in range(-3, 4) for m in (1.0, 1.7)), 1.0, 2.0, 0.25, 1024.0]
    grid = itertools.product(
        [s * w for w in sizes for s in (1, -1)], [1e-1, 1e-2, 1e-3, 1e-4], [1.0, -1.0, 0.37]
    )
    w, sigma, noise = (jnp.asarray(column, jnp.float32) for column in zip(*grid, strict=True))

    def slope(w: Any, sigma: Any, noise: Any) -> Any:
        estimate = estimators.weight_perturbation(
            lambda w: w.astype(jnp.float32),
            sigma=sigma,
            difference=difference,
            noise=lambda key, like: noise.astype(like.dtype),
        )
        unit = noise.astype(dtype).astype(jnp.float32)
        return estimate(jax.random.key(0), w.astype(dtype))[1].astype(jnp.float32) / unit**2

    found = jax.jit(jax.vmap(slope))(w, sigma, noise)
    # The gradient comes back in half precision, noise^2 with it: one rounding. Where the step is larger than
    # the weight, w + e and w - e are rounded apart, each by half a spacing: their mean differs from either
    # by half a spacing of the sum, at most eps of the step.
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found, 1, rtol=eps if difference == "central" else 3 * eps)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounded_noise_of_other_weights_averages_out(dtype: Any) -> None:
    """All draws of signs, on powers of two, where steps up and down are rounded to different spacings."""
    w = jnp.array([1.0, -1.0, 0.5, 300.0, 0.0], dtype)
    signs = jnp.asarray(list(itertools.product((1.0, -1.0), repeat=5)), dtype)

    def grads(signs: Any) -> Any:
        estimate = estimators.weight_perturbation(
            lambda w: jnp.sum(jnp.array([1.0, 2.0, -3.0, 0.5, 1.0]) * w.astype(jnp.float32)),
            sigma=1e-3,
            noise=lambda key, like: signs,
        )
        return estimate(jax.random.key(0), w)[1].astype(jnp.float32)

    estimates = jax.jit(jax.vmap(grads))(signs)
    # Each of 32 estimates is rounded to half precision: eps of the largest, over sqrt(32).
    largest = float(jnp.max(jnp.abs(estimates)))
    np.testing.assert_allclose(
        jnp.mean(estimates, axis=0),
        [1.0, 2.0, -3.0, 0.5, 1.0],
        atol=float(jnp.finfo(dtype).eps) * largest / 32**0.5,
    )


def test_reverse_mode_sees_the_step_through_its_rounding() -> None:
    def estimate(w: Any, sigma: Any) -> Any:
        rule = estimators.weight_perturbation(
            lambda w: jnp.square(w.astype(jnp.float32)),
            sigma=sigma,
            noise=lambda key, like: jnp.ones_like(like),
        )
        return rule(jax.random.key(0), w)[1].astype(jnp.float32)

    # ((w + sigma)^2 - w^2) / sigma = 2 w + sigma
    by_w, by_sigma = jax.grad(estimate, (0, 1))(jnp.bfloat16(1.5), 0.25)
    assert (float(by_w), float(by_sigma)) == (2.0, 1.0)


# --- keys


KEY, OTHER = jax.random.key(7), jax.random.key(0)
NORMAL = jax.nn.initializers.normal(1.0)
CNN = ll.convnet((4, 4, 1), (2, 2), (2,), kernel=2, b_init=NORMAL)
RNN = ll.rnn((3, 4, 4, 2), b_init=NORMAL)
MLP = ll.mlp((3, 4, 4, 2), b_init=NORMAL)
K_CAP = {
    "k_cap_mlp": plasticity.k_cap_mlp((8, 6, 6, 6, 2), 3, edge_probability=0.5),
    "k_cap_recurrent": plasticity.k_cap_recurrent((8, 6, 2), 3, rounds=2, edge_probability=0.5),
}
LIBRARY = symbolic.parse_library("5*N0*sin(3*U0*X[:,0])")
JUDGE = symbolic.critic(5, hidden=(4, 4), channels=2, embedding=(4,))
BIRTH_DEATH = ll.birth_death.dynamics(0.5, axes=({"w": 1}, {"w": 0}), charges=lambda params: params[1])
TWO = ll.mlp((3, 4, 2), b_init=None)


def _batches_of_two_epochs(key: Any) -> Any:
    schedule = ll.data.batches(4, 2)
    return jax.lax.scan(schedule.next, schedule.init(key), jnp.arange(4))


def _train(key: Any) -> Any:
    rule = ll.node_perturbation(MLP, ll.squared_error, sigma=0.1, num_samples=2)
    data = ll.data.Splits(ll.data.Dataset(X, Y), None, None)  # type: ignore[arg-type]

    def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
        return jax.random.uniform(key)

    rule = rule._replace(init=lambda key, params, x: (jax.random.normal(key), ())[1])
    train = ll.make_train(
        rule, optax.sgd(0.1), init=MLP.init, num_updates=4, batch_size=2, every=2, evaluate=evaluate
    )
    return train(key, data)


def _init(name: str, key: Any) -> Any:
    return RULES[name](MLP, ll.squared_error).init(key, MLP.init(OTHER), X)


def _update(name: str, key: Any) -> Any:
    rule, params = make(name), NETWORKS["dense"](jnp.float32).init(OTHER)
    return rule.value_and_grad(key, params, rule.init(KEY, params, X), X, Y)


def _birth_death(key: Any) -> Any:
    params = TWO.init(OTHER)
    return BIRTH_DEATH.update(key, params, BIRTH_DEATH.init(params), jax.tree.map(jnp.ones_like, params))


def _critic_epoch(key: Any) -> Any:
    optimizer = optax.sgd(0.1)

    def draw(key: Any) -> Any:
        return jax.random.normal(key, (4, 5))

    judge = symbolic.critic(5, hidden=(4,))
    step = symbolic.critic_step(judge, optimizer, penalty=0.1)
    state = symbolic.init_critic(OTHER, judge, optimizer)
    return symbolic.train_critic(step, draw, draw, num_epochs=2, iterations=2)(key, state)


def _decorrelation(key: Any) -> Any:
    dynamics = ll.decorrelation.dynamics(0.1, subsample=0.5)
    return dynamics.update(key, dynamics.init(3), X)


DRAWS: dict[str, Callable[[Any], Any]] = {
    "mlp": MLP.init,
    "rnn": RNN.init,
    "convolution": CNN.init,
    **{f"init of {name}": partial(_init, name) for name in RULES},
    **{f"update of {name}": partial(_update, name) for name in RULES},
    "decorrelation": _decorrelation,
    "half_space": lambda key: ll.data.half_space(key, 3, sizes=(4, 2, 2)),
    "relu_net": lambda key: ll.data.relu_net(key, 3, num_units=4, sizes=(4, 2, 2)),
    "planted": lambda key: ll.data.planted(3, 2).init(key),
    "planted sample": lambda key: (p := ll.data.planted(3, 2)).sample(key, p.init(KEY), 4),
    "batches": _batches_of_two_epochs,
    "make_train": _train,
    **{name: network.init for name, network in K_CAP.items()},
    **{
        f"tables of {name}": partial(
            network.init_tables, shared=False, hidden_init=NORMAL, output_init=NORMAL
        )
        for name, network in K_CAP.items()
    },
    "meta_init": lambda key: plasticity.meta_init(K_CAP["k_cap_mlp"], K_CAP["k_cap_mlp"].init(OTHER))(key),
    "birth_death": _birth_death,
    "critic": JUDGE.init,
    "critic epoch": _critic_epoch,
    "mlp_generator": lambda key: symbolic.mlp_generator(1, 5).init(key),
    "gaussian_process_generator": lambda key: symbolic.gaussian_process_generator(
        1, 5, length_scale=0.3
    ).init(key),
    "dsn_generator": lambda key: symbolic.dsn_generator(2, 3, norm="softmax", bias=True).init(key),
    "draw_functions": lambda key: symbolic.draw_functions(key, LIBRARY, 4),
}


@pytest.mark.parametrize("name", DRAWS)
def test_no_key_is_consumed_twice(name: str) -> None:
    """Of those that are split or drawn from, anywhere in the program that JAX traces."""
    check_key_reuse(DRAWS[name], KEY)

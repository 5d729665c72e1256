"""Epochs of a critic that tells symbolic functions from untrained networks, many in a scan."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax

from benchmarks.cases.case import Case, Sizes, members
from benchmarks.timing import Ours
from lax_learning import symbolic as sy

LIBRARY = "N0*0.05*(X[:,0] + 0.5*N1)**2 + 0.15*N2"
GENERATOR, LATENTS = (32, 32), 5
ITERATIONS, DECAY = 5, 1e-7
LEARNING_RATES, PENALTIES = (1e-5, 1e-2), (1e-6, 1e-3)


class Member(NamedTuple):
    """A critic and its configuration."""

    state: sy.CriticState
    learning_rate: jax.Array
    penalty: jax.Array


def adam(learning_rate: jax.Array) -> optax.GradientTransformation:
    """Adam as PyTorch has it: weight decay is part of the gradient."""
    return optax.chain(optax.add_decayed_weights(DECAY), optax.adam(learning_rate))


def critic_of(hidden: tuple[int, ...], sizes: Sizes) -> sy.Critic:
    """A critic of curves of these sizes."""
    return sy.critic(sizes.curve_points, hidden=hidden)


def init(judge: sy.Critic, key: jax.Array) -> Member:
    """A fresh critic, its learning rate and penalty log-uniform over the published range."""
    critic_key, rate_key, penalty_key = jax.random.split(key, 3)
    learning_rate, penalty = (
        jax.numpy.exp(jax.random.uniform(k, minval=np.log(low), maxval=np.log(high)))
        for k, (low, high) in ((rate_key, LEARNING_RATES), (penalty_key, PENALTIES))
    )
    optimizer = adam(learning_rate)
    return Member(sy.init_critic(critic_key, judge, optimizer), learning_rate, penalty)


def points(sizes: Sizes) -> np.ndarray:
    """Points at which curves are sampled, `[points, 1]`: normal and in no order, as published."""
    return np.random.default_rng(0).standard_normal((sizes.curve_points, 1), np.float32)


def curves_of(sizes: Sizes) -> sy.Curves:
    """Functions of the library and untrained networks at these points."""
    return sy.curves_at(
        points(sizes), sy.parse_library(LIBRARY), sy.mlp_generator(1, LATENTS, hidden=GENERATOR)
    )


def train(
    judge: sy.Critic, curves: sy.Curves, epochs: int, key: jax.Array, member: Member
) -> tuple[sy.CriticState, sy.CriticMetrics]:
    """Some epochs; the member's learning rate and penalty may be traced."""
    step = sy.critic_step(judge, adam(member.learning_rate), objective="wgan", penalty=member.penalty)
    run = sy.train_critic(step, curves.real, curves.fake, num_epochs=epochs, iterations=ITERATIONS)
    return run(key, member.state)


def _ours(hidden: tuple[int, ...], sizes: Sizes, seeds: int) -> Ours:
    judge = critic_of(hidden, sizes)
    one = partial(train, judge, curves_of(sizes), sizes.epochs)
    return Ours(one, members(partial(init, judge), seeds), (), seeds, pieces=sizes.epochs, on_cpu=2)


def _reference(hidden: tuple[int, ...], sizes: Sizes) -> Callable[[], object]:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.reference import symbolic as reference

    learning_rate, penalty = (float(np.sqrt(low * high)) for low, high in (LEARNING_RATES, PENALTIES))
    critic = reference.perceptron((sizes.curve_points, *hidden, 1))
    optimizer = reference.adam(critic, learning_rate, DECAY)
    x = torch.from_numpy(points(sizes))

    def call() -> None:
        draws = reference.draw(x, (1, *GENERATOR, LATENTS), ITERATIONS)
        reference.epoch(critic, optimizer, draws, penalty)

    return call


def _case(name: str, hidden: tuple[int, ...], goal: float, ensemble_goal: float | None = None) -> Case:
    ours, reference = partial(_ours, hidden), partial(_reference, hidden)
    return Case("symbolic", f"epoch: {name}", goal, ensemble_goal, ours, reference, requires="torch")


CASES = [
    _case("2x64", (64,) * 2, 3.0, 15.0),
    _case("6x128", (128,) * 6, 2.0),
    _case("8x512", (512,) * 8, 1.2),
]

"""Training epochs of a critic that distinguishes symbolic functions from untrained networks, in a scan."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax

from benchmarks.cases.case import Case, Sizes, members, torch_and
from benchmarks.timing import Ours
from lax_learning import symbolic as sy

LIBRARY = "N0*0.05*(X[:,0] + 0.5*N1)**2 + 0.15*N2"
GENERATOR, LATENTS = (32, 32), 5
ITERATIONS, DECAY = 5, 1e-7
LEARNING_RATES, PENALTIES = (1e-5, 1e-2), (1e-6, 1e-3)


class Member(NamedTuple):
    """State and hyper-parameters of a critic."""

    state: sy.CriticState
    learning_rate: jax.Array
    penalty: jax.Array


def adam(learning_rate: jax.Array) -> optax.GradientTransformation:
    """Returns Adam as in PyTorch, with weight decay in the gradient."""
    return optax.chain(optax.add_decayed_weights(DECAY), optax.adam(learning_rate))


def init(judge: sy.Critic, key: jax.Array) -> Member:
    """Initialises a critic; its learning rate and penalty are log-uniform over the published ranges."""
    critic_key, rate_key, penalty_key = jax.random.split(key, 3)
    learning_rate, penalty = (
        jax.numpy.exp(jax.random.uniform(k, minval=np.log(low), maxval=np.log(high)))
        for k, (low, high) in ((rate_key, LEARNING_RATES), (penalty_key, PENALTIES))
    )
    optimizer = adam(learning_rate)
    return Member(sy.init_critic(critic_key, judge, optimizer), learning_rate, penalty)


def points(sizes: Sizes) -> np.ndarray:
    """Returns the points at which curves are sampled, `[points, 1]`: normal and unordered, as published."""
    return np.random.default_rng(0).standard_normal((sizes.curve_points, 1), np.float32)


def curves_of(sizes: Sizes) -> sy.Curves:
    """Returns values of symbolic functions and of untrained networks at the points."""
    return sy.curves_at(
        points(sizes), sy.parse_library(LIBRARY), sy.mlp_generator(1, LATENTS, hidden=GENERATOR)
    )


def train(
    judge: sy.Critic, curves: sy.Curves, epochs: int, key: jax.Array, member: Member
) -> tuple[sy.CriticState, sy.CriticMetrics]:
    """Trains a critic for some epochs; the member's learning rate and penalty may be traced."""
    step = sy.critic_step(judge, adam(member.learning_rate), objective="wgan", penalty=member.penalty)
    run = sy.train_critic(step, curves.real, curves.fake, num_epochs=epochs, iterations=ITERATIONS)
    return run(key, member.state)


def _ours(hidden: tuple[int, ...], sizes: Sizes, seeds: int) -> Ours:
    judge = sy.critic(sizes.curve_points, hidden=hidden)
    one = partial(train, judge, curves_of(sizes), sizes.epochs)
    return Ours(one, members(partial(init, judge), seeds), (), seeds, pieces=sizes.epochs, on_cpu=2)


def _reference(hidden: tuple[int, ...], sizes: Sizes) -> Callable[[], object]:
    torch, reference = torch_and("symbolic")
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

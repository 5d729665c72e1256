"""Target of the notebook's last step, networks that fit it, and the critics that judge them."""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import lax_learning as ll
from experiments.running import side_by_side
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.points import library, points
from lax_learning import symbolic
from lax_learning.types import Key, Params

LATENTS, HIDDEN = 3, (32, 32)
DECAY = 1e-7
CRITIC_EPOCHS = 10_000


def components(x: Float[Array, "points 1"]) -> Float[Array, "points 3"]:
    """The quadratic functions that the target is made of."""
    return jnp.hstack([
        -0.08 * (x + 0.165) ** 2 - 0.21, 0.0785 * (x - 0.63) ** 2 - 0.252, 0.0895 * (x + 0.21) ** 2 - 0.0375
    ])  # fmt: skip


def target(x: Float[Array, "points 1"]) -> Float[Array, "points 1"]:
    """`g0 g1 + sin(g2)` of the components."""
    g = components(x)
    return g[:, :1] * g[:, 1:2] + jnp.sin(g[:, 2:])


class Problem(NamedTuple):
    """Data that all members share.

    Fields:
      x: the points, `[points, 1]`.
      curves: those that the critic sees.
      critic: the judge.
      latents: the network of the latents.
      head: the model from the latents to the prediction.
    """

    x: Float[Array, "points 1"]
    curves: symbolic.Curves
    critic: symbolic.Critic
    latents: symbolic.Generator
    head: ll.Model


def problem_of(config: Config) -> Problem:
    """The points, the critic and the networks of a configuration."""
    x = points("grid", config.numbers.points, config.seed)
    return Problem(
        x,
        symbolic.curves_at(x, library("quadratic"), symbolic.mlp_generator(1, LATENTS, hidden=HIDDEN)),
        symbolic.critic(config.numbers.points),
        symbolic.dsn_generator(1, LATENTS, hidden=HIDDEN, alpha=jnp.ones((LATENTS, 1)), bias="zeros"),
        ll.mlp((LATENTS, *HIDDEN, 1)),
    )


class Start(NamedTuple):
    """Data that the runs of a seed share.

    Fields:
      critic: its params after its training.
      accuracy: of the critic over the last tenth of its training.
      params: of the networks of the latents and of the head before they learn.
    """

    critic: Params
    accuracy: Float[Array, ""]
    params: dict[str, Params]


@lru_cache(maxsize=1)
def starts(config: Config) -> Start:
    """The trained critic and the fresh networks of every seed, the same for all parts."""
    problem, epochs = problem_of(config), critic_epochs(config)
    adam = symbolic.adam_with_decay(1e-3, decay=DECAY)
    step = symbolic.critic_step(problem.critic, adam)
    epoch = symbolic.critic_epoch(problem.curves.fake, problem.curves.real, step, iterations=5)

    def start(key: Key) -> Start:
        init_key, train_key, latents_key, head_key = jax.random.split(key, 4)
        fresh = symbolic.init_critic(init_key, problem.critic, adam)
        state, metrics = symbolic.train_critic(epoch, epochs)(train_key, fresh)
        params = {"latents": problem.latents.init(latents_key), "head": problem.head.init(head_key)}
        return Start(state.params, jnp.mean(metrics.accuracy[-max(epochs // 10, 1) :]), params)

    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    seeds = jnp.arange(config.numbers.seeds)
    program = ll.ensemble(
        lambda seed: start(jax.random.fold_in(key, seed)), batch_size=side_by_side(on_cpu=2)
    )
    return jax.tree.map(jnp.asarray, ll.gather(program(seeds)))


def critic_epochs(config: Config) -> int:
    """For how long a critic is trained: the notebook's is done after 10,000 epochs."""
    return min(config.numbers.epochs, CRITIC_EPOCHS)

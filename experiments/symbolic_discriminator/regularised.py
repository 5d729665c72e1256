"""The notebook's last step: a trained, frozen critic judges the latents of a network that fits a target.

The latents are outputs of a disentangled sparsity network, which has a separate network for each. The critic
is trained on untrained networks with shared hidden layers, as in the notebook, because disentangled ones with
zero biases are linear on each side of 0 and trivial to tell from formulas. The latents are so unlike the
curves seen by a converged critic that their logits start below -80, where the gradient of a sigmoid is 0.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float
from tqdm import tqdm

import lax_learning as ll
from experiments.running import Run, run_members, side_by_side
from experiments.symbolic_discriminator import regularised_report as report
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import adam
from experiments.symbolic_discriminator.spaces import library, points
from experiments.symbolic_discriminator.study import Part, Study
from lax_learning import symbolic
from lax_learning.types import Params

LATENTS, HIDDEN = 3, (32, 32)
Cost = Literal["linear", "sigmoid", "logsigmoid"]
RUNS: dict[str, tuple[Cost, dict[str, float]]] = {
    "no_critic": ("linear", {"no critic": 0.0}),
    "linear": ("linear", {"linear, 1e-4": 1e-4, "linear, 1e-2": 1e-2}),
    "sigmoid": ("sigmoid", {"sigmoid, 1": 1.0, "sigmoid, 100": 100.0}),
    "logsigmoid": ("logsigmoid", {"logsigmoid, 0.1": 0.1}),
}
"""For every part: the cost of a logit, on which the program depends, and the weight of the critic by run."""
ADAM = adam(1e-3, 1e-7)
CRITIC_EPOCHS = 10_000  # length of the training of the notebook's critic
MEASUREMENTS = 20


def components(x: Float[Array, "points 1"]) -> Float[Array, "points 3"]:
    """Quadratic functions that the target is composed of."""
    return jnp.hstack([
        -0.08 * (x + 0.165) ** 2 - 0.21, 0.0785 * (x - 0.63) ** 2 - 0.252, 0.0895 * (x + 0.21) ** 2 - 0.0375
    ])  # fmt: skip


def target(x: Float[Array, "points 1"]) -> Float[Array, "points 1"]:
    """Computes the target, `g0 g1 + sin(g2)` of the components."""
    g = components(x)
    return g[:, :1] * g[:, 1:2] + jnp.sin(g[:, 2:])


def largest_correlations(a: Float[Array, "points m"], b: Float[Array, "points n"]) -> Float[Array, " m"]:
    """Returns the largest |correlation| of every column of `a` with a column of `b`; 0 if it is constant."""

    def normalised(columns: Array) -> Array:
        centred = columns - jnp.mean(columns, axis=0)
        length, size = jnp.linalg.norm(centred, axis=0), jnp.linalg.norm(columns, axis=0)
        flat = length <= 8 * jnp.finfo(columns.dtype).eps * size
        return jnp.where(flat, 0, centred / jnp.where(flat, 1, length))

    correlations = jnp.matmul(normalised(a).T, normalised(b), precision="highest")
    return jnp.minimum(jnp.max(jnp.abs(correlations), axis=1), 1)


class Problem(NamedTuple):
    """Points `[points, 1]`, a critic of curves at them, and the two networks of a fit."""

    x: Float[Array, "points 1"]
    critic: symbolic.Critic
    latents: symbolic.Generator
    head: ll.Model


def problem_of(config: Config) -> Problem:
    """Makes the points, the critic and the networks of a configuration."""
    return Problem(
        points("grid", config.chosen.points, config.seed),
        symbolic.critic(config.chosen.points),
        symbolic.dsn_generator(1, LATENTS, hidden=HIDDEN, alpha=jnp.ones((LATENTS, 1)), bias="zeros"),
        ll.mlp((LATENTS, *HIDDEN, 1)),
    )


class Start(NamedTuple):
    """Start of all runs of a seed: a trained critic, its final accuracy, and untrained networks."""

    critic: Params
    accuracy: Float[Array, ""]
    params: dict[str, Params]


@lru_cache(maxsize=1)
def starts(config: Config) -> Start:
    """Trains the critic of every seed and initialises its networks, the same for all parts."""
    x, critic, latents, head = problem_of(config)
    epochs = min(config.chosen.epochs, CRITIC_EPOCHS)
    generator = symbolic.mlp_generator(1, LATENTS, hidden=HIDDEN)
    real, fake, *_ = symbolic.curves_at(x, library("quadratic"), generator)
    train = symbolic.train_critic(symbolic.critic_step(critic, ADAM), real, fake, num_epochs=epochs)

    def start(seed: Array) -> Start:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), seed)
        init_key, train_key, latents_key, head_key = jax.random.split(key, 4)
        state, metrics = train(train_key, symbolic.init_critic(init_key, critic, ADAM))
        params = {"latents": latents.init(latents_key), "head": head.init(head_key)}
        return Start(state.params, jnp.mean(metrics.accuracy[-max(epochs // 10, 1) :]), params)

    program = ll.ensemble(start, batch_size=side_by_side(on_cpu=2))
    return jax.tree.map(jnp.asarray, ll.gather(program(jnp.arange(config.chosen.seeds))))


def fit(problem: Problem, cost: Cost, updates: int, num_steps: int) -> Run:
    """Fit from a `Start` and a weight of the critic; step 0 only measures, the others divide the updates."""

    def init(start: Start, weight: Float[Array, ""], shared: Any) -> Any:
        return start.critic, weight, start.params, ADAM.init(start.params)

    def step(carry: Any, number: Array, shared: Any) -> tuple[Any, dict[str, Array]]:
        critic, weight, params, state = carry

        def loss(params: dict[str, Params]) -> tuple[Array, tuple[Array, ...]]:
            """Returns the loss; and the squared error of the fit, the latents, their logits and the fit."""
            latents = problem.latents.apply(params["latents"], problem.x)
            logits = problem.critic.apply(critic, latents.T)
            found = problem.head.apply(params["head"], latents)
            error = jnp.mean(jnp.square(found - target(problem.x)))
            return error + weight * symbolic.critic_cost(logits, cost=cost), (error, latents, logits, found)

        def update(_: Array, held: tuple[Any, optax.OptState]) -> tuple[Any, optax.OptState]:
            params, state = held
            moves, state = ADAM.update(jax.grad(loss, has_aux=True)(params)[0], state, params)
            return optax.apply_updates(params, moves), state

        first, end = (jnp.maximum(n, 0) * updates // num_steps for n in (number - 1, number))
        params, state = jax.lax.fori_loop(first, end, update, (params, state))
        _, (error, latents, logits, found) = loss(params)
        true = components(problem.x)
        return (critic, weight, params, state), {
            "fit_loss": error,
            "mean_logit": jnp.mean(logits),
            "judged_real": jnp.mean(jnp.where(jnp.isnan(logits), jnp.nan, logits > 0)),
            "min_correlation": jnp.min(largest_correlations(latents, true)),
            "components_found": jnp.min(largest_correlations(true, latents)),
            "latents": latents.T,
            "prediction": found[:, 0],
        }

    return Run(init, step, num_steps + 1)


def steps_of(config: Config) -> int:
    """Returns the number of steps that divide the updates."""
    return min(MEASUREMENTS, config.chosen.updates)


def run_part(config: Config, name: str, folder: Path, progress: tqdm) -> xr.Dataset:
    """Runs all weights of one cost for all seeds in parallel; results are by run, seed and step."""
    numbers, num_steps, (cost, runs) = config.chosen, steps_of(config), RUNS[name]
    problem, of_seeds, weights = problem_of(config), starts(config), np.array(list(runs.values()))
    members = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(runs)), of_seeds)
    run = fit(problem, cost, numbers.updates, num_steps)
    members = members, jnp.repeat(jnp.asarray(weights), numbers.seeds)
    stage = run_members(run, members, (), folder, progress, on_cpu=2)
    found = {name: a.reshape(len(runs), numbers.seeds, *a.shape[1:]) for name, a in stage.metrics.items()}
    true = components(problem.x).T
    judged = jax.vmap(lambda critic: problem.critic.apply(critic, true))(of_seeds.critic) > 0
    return xr.Dataset(
        {
            **{name: (("run", "seed", "step"), found[name]) for name in report.METRICS},
            "latents": (("run", "seed", "latent", "point"), found["latents"][:, :, -1]),
            "prediction": (("run", "seed", "point"), found["prediction"][:, :, -1]),
            "components": (("component", "point"), np.asarray(true)),
            "target": ("point", np.asarray(target(problem.x))[:, 0]),
            "weight": ("run", weights),
            "critic_accuracy": ("seed", np.asarray(of_seeds.accuracy)),
            "components_judged_real": ("seed", np.asarray(judged).mean(axis=1)),
        },
        {
            "run": list(runs),
            "x": ("point", np.asarray(problem.x)[:, 0]),
            "updates": ("step", np.arange(num_steps + 1) * numbers.updates // num_steps),
        },
    )


def parts(config: Config) -> dict[str, Part]:
    """Returns a part for each cost; the first one trains all critics."""
    steps = steps_of(config) + 1
    return {f"regularised-{name}": Part(partial(run_part, config, name), steps) for name in RUNS}


def merge(config: Config, results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Concatenates the runs of all parts, and takes shared variables from the first."""
    return xr.concat(results, "run", data_vars="minimal", coords="minimal", compat="override", join="exact")


STUDY = Study(parts, merge, report.rows, [report.regularised_latents, report.regularised_progress])

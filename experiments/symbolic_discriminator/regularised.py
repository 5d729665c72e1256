"""The notebook's last step: a trained critic, frozen, judges the latents of a network that fits a target.

The latents are those of a disentangled sparsity network, a network for each. Its critic has learned from
an untrained network of shared hidden layers, as in the notebook: an untrained disentangled one with biases
of 0 is linear on each side of 0, which is trivial to tell from a formula. The latents are so far from what
a converged critic knows that their logits start below -80, where the gradient of a sigmoid is 0.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float
from tqdm import tqdm

from experiments.running import run_stage
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.regularised_report import METRICS, figures, rows
from experiments.symbolic_discriminator.study import Part, Study
from experiments.symbolic_discriminator.target_fit import (
    DECAY,
    LATENTS,
    Problem,
    Start,
    components,
    critic_epochs,
    problem_of,
    starts,
    target,
)
from lax_learning import symbolic
from lax_learning.types import Params


class Run(NamedTuple):
    """The critic's part of the loss: the cost of a logit, and its weight."""

    cost: str
    weight: float


RUNS = {
    "no_critic": {"no critic": Run("linear", 0.0)},
    "linear": {"linear, 1e-4": Run("linear", 1e-4), "linear, 1e-2": Run("linear", 1e-2)},
    "sigmoid": {"sigmoid, 1": Run("sigmoid", 1.0), "sigmoid, 100": Run("sigmoid", 100.0)},
    "logsigmoid": {"logsigmoid, 0.1": Run("logsigmoid", 0.1)},
}
"""The runs of every part: those of one cost are one program."""

LEARNING_RATE = 1e-3
MEASUREMENTS = 20


class Carry(NamedTuple):
    """State of a fit between steps; critic and weight stay as they are."""

    critic: Params
    weight: Float[Array, ""]
    params: dict[str, Params]
    optimizer_state: optax.OptState


Loss = Callable[[dict[str, Params]], tuple[Array, symbolic.RegularisedLoss]]


def loss_of(problem: Problem, cost: str, critic: Params, weight: Float[Array, ""]) -> Loss:
    """The loss of `{"latents": ..., "head": ...}`; no gradient goes to the critic's own params."""

    def predict(params: dict[str, Params], x: Array) -> Array:
        return problem.head.apply(params["head"], problem.latents.apply(params["latents"], x))

    def judge(params: dict[str, Params]) -> Array:
        curves = problem.curves.latents(problem.latents.apply, params["latents"])
        return problem.critic.apply(jax.lax.stop_gradient(critic), curves)

    x = problem.x
    return symbolic.regularised_loss(predict, judge, x, target(x), weight=weight, cost=cost)


def fit(
    problem: Problem, cost: str, updates: int, num_steps: int
) -> tuple[Callable[..., Carry], Callable[..., tuple[Carry, dict[str, Array]]]]:
    """`init(start, weight)` and `step` of a fit: step 0 learns nothing, the others share the updates."""
    adam = symbolic.adam_with_decay(LEARNING_RATE, decay=DECAY)

    def init(start: Start, weight: Float[Array, ""]) -> Carry:
        return Carry(start.critic, weight, start.params, adam.init(start.params))

    def step(carry: Carry, number: Array, shared: Any) -> tuple[Carry, dict[str, Array]]:
        del shared
        loss = loss_of(problem, cost, carry.critic, carry.weight)

        def update(_: Array, held: tuple[Any, optax.OptState]) -> tuple[Any, optax.OptState]:
            params, state = held
            moves, state = adam.update(jax.grad(loss, has_aux=True)(params)[0], state, params)
            return optax.apply_updates(params, moves), state

        first, end = (jnp.maximum(n, 0) * updates // num_steps for n in (number - 1, number))
        params, state = jax.lax.fori_loop(first, end, update, (carry.params, carry.optimizer_state))
        carry = carry._replace(params=params, optimizer_state=state)
        return carry, _measured(problem, carry, loss)

    return init, step


def _measured(problem: Problem, carry: Carry, loss: Loss) -> dict[str, Array]:
    """Loss of the fit, verdict of the critic, likeness to the components, and the curves themselves."""
    latents = problem.latents.apply(carry.params["latents"], problem.x)
    logits = problem.critic.apply(carry.critic, latents.T)
    true = components(problem.x)
    return {
        "fit_loss": loss(carry.params)[1].fit,
        "mean_logit": jnp.mean(logits),
        "judged_real": jnp.mean(jnp.where(jnp.isnan(logits), jnp.nan, logits > 0)),
        "min_correlation": jnp.min(symbolic.largest_correlations(latents, true)),
        "components_found": jnp.min(symbolic.largest_correlations(true, latents)),
        "latents": latents.T,
        "prediction": problem.head.apply(carry.params["head"], latents)[:, 0],
    }


def run_part(config: Config, runs: dict[str, Run], folder: Path, progress: tqdm) -> xr.Dataset:
    """All seeds of the runs of one cost side by side, and what came out by run, seed and step."""
    problem, of_seeds = problem_of(config), starts(config)
    progress.update(_cost_of_critics(config))
    numbers, (cost,) = config.numbers, {run.cost for run in runs.values()}
    num_steps = min(MEASUREMENTS, numbers.updates)
    costs = [0, *np.diff(np.arange(num_steps + 1) * _cost_of_fits(config, runs) // num_steps).tolist()]

    for_every_run = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(runs)), of_seeds)
    weights = jnp.repeat(jnp.array([run.weight for run in runs.values()]), numbers.seeds)
    shapes = {
        **dict.fromkeys(METRICS, ()),
        "latents": (LATENTS, numbers.points),
        "prediction": (numbers.points,),
    }
    init, step = fit(problem, cost, numbers.updates, num_steps)
    stage = run_stage(
        folder, (for_every_run, weights), init, step, shapes, costs, None, progress,
        on_cpu=2,
    )  # fmt: skip
    found = {name: a.reshape(len(runs), numbers.seeds, *a.shape[1:]) for name, a in stage.metrics.items()}
    over_time = {name: (("run", "seed", "step"), found[name]) for name in METRICS}
    x = np.asarray(problem.x)
    curves = components(problem.x).T
    judged = jax.vmap(lambda critic: problem.critic.apply(critic, curves))(of_seeds.critic) > 0
    return xr.Dataset(
        {
            **over_time,
            "latents": (("run", "seed", "latent", "point"), found["latents"][:, :, -1]),
            "prediction": (("run", "seed", "point"), found["prediction"][:, :, -1]),
            "components": (("component", "point"), np.asarray(curves)),
            "target": ("point", np.asarray(target(problem.x))[:, 0]),
            "weight": ("run", [run.weight for run in runs.values()]),
            "critic_accuracy": ("seed", np.asarray(of_seeds.accuracy)),
            "components_judged_real": ("seed", np.asarray(judged).mean(axis=1)),
        },
        coords={
            "run": list(runs),
            "x": ("point", x[:, 0]),
            "updates": ("step", np.arange(num_steps + 1) * numbers.updates // num_steps),
        },
    )


def _cost_of_critics(config: Config) -> int:
    """A share for each part, though the first one trains them."""
    return config.numbers.seeds * critic_epochs(config) // (2 * len(RUNS))


def _cost_of_fits(config: Config, runs: dict[str, Run]) -> int:
    numbers = config.numbers
    return len(runs) * numbers.seeds * numbers.updates * numbers.points // 500


def parts(config: Config) -> dict[str, Part]:
    """A part for each cost."""

    def part(runs: dict[str, Run]) -> Part:
        cost = _cost_of_critics(config) + _cost_of_fits(config, runs)
        return Part(lambda folder, progress: run_part(config, runs, folder, progress), cost)

    return {f"regularised-{name}": part(runs) for name, runs in RUNS.items()}


def merge(config: Config, results: Sequence[xr.Dataset]) -> xr.Dataset:
    """The runs of all parts, one after another; what is common to them from the first."""
    del config
    bare = [part.drop_encoding() for part in results]  # it holds how long the names in a file are
    return xr.concat(bare, "run", data_vars="minimal", coords="minimal", compat="override", join="exact")


STUDY = Study(parts, merge, rows, figures)

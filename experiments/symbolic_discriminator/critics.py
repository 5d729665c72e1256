"""Training of critics: all configurations of one static shape and all seeds in one program."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax import Array
from jaxtyping import ArrayLike
from tqdm import tqdm

from experiments.running import Group, Run, run_members
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.spaces import EXTENSIONS, library, points
from lax_learning import symbolic

JUDGED = 64  # number of curves, of formulas and of untrained networks each, that trained critics judge
BINS_A_STEP, MOST_BINS = 10, 200
METRICS = ("accuracy", "fresh_accuracy", "fresh_auc")


def schedule(epochs: int) -> tuple[int, int]:
    """Divides at least `epochs` epochs into steps of ten bins, over which metrics are averaged.

    Returns the number of epochs in a bin, so that there are about 200 bins or fewer, and the number of steps.
    """
    epochs_a_bin = math.ceil(epochs / MOST_BINS)
    return epochs_a_bin, math.ceil(epochs / (epochs_a_bin * BINS_A_STEP))


def adam(learning_rate: ArrayLike, decay: ArrayLike) -> optax.GradientTransformation:
    """Adam as in PyTorch, with weight decay added to the gradient."""
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(learning_rate))  # type: ignore[arg-type]


def curves_of(library_name: str, extension: str, latents: int, config: Config) -> symbolic.Curves:
    """Returns the source of the curves of a critic."""
    x = points("normal", config.chosen.points, config.seed)
    seen, method = EXTENSIONS[extension]
    generator = symbolic.mlp_generator(1, latents)
    return symbolic.curves_at(x, library(library_name), generator, extensions=seen, method=method)


def training(static: dict[str, Any], config: Config) -> Run:
    """Training of critics of one static shape; a step is ten bins of epochs, then they judge curves."""
    curves = curves_of(static["library"], static["extension"], static["latents"], config)
    num_points, *channels = curves.curve_shape
    hidden = (static["width"],) * static["layers"]
    critic = symbolic.critic(num_points, hidden=hidden, channels=channels[0] if channels else 1)
    epochs_a_bin, num_steps = schedule(config.chosen.epochs)
    sizes = {"num_epochs": epochs_a_bin * BINS_A_STEP, "iterations": static["iterations"]}

    def init(key: Array, traced: dict[str, Array], judged: Any) -> Any:
        init_key, train_key = jax.random.split(key)
        optimizer = adam(traced["learning_rate"], traced["decay"])
        return train_key, traced, symbolic.init_critic(init_key, critic, optimizer)

    def step(carry: Any, number: Any, judged: Any) -> tuple[Any, dict[str, Array]]:
        key, traced, state = carry
        optimizer = adam(traced["learning_rate"], traced["decay"])
        options = {"objective": static["objective"], "penalty": traced["penalty"]}
        one = symbolic.critic_step(critic, optimizer, **options)
        train = symbolic.train_critic(one, curves.real, curves.fake, **sizes)
        state, found = train(key, state, number * sizes["num_epochs"])
        binned = jax.tree.map(lambda m: m.reshape(BINS_A_STEP, epochs_a_bin, -1), found)
        finite = jnp.isfinite(binned.loss_real + binned.loss_fake)
        accuracy, auc = (jnp.where(finite, of, jnp.nan) for of in (binned.accuracy, binned.auc))
        of_epochs = jnp.mean(accuracy, axis=2), accuracy[..., 0], auc[..., 0]
        metrics = {name: jnp.mean(of, axis=1) for name, of in zip(METRICS, of_epochs, strict=True)}
        return (key, traced, state), metrics

    def judge(carry: Any, number: Any, judged: Array) -> dict[str, Array]:
        logits = critic.apply(carry[-1].params, judged.reshape(-1, *critic.curve_shape))
        return {"logits": logits.reshape(judged.shape[:2])}

    return Run(init, step, num_steps, judge)


@cache
def judged_curves(library_name: str, extension: str, config: Config) -> Array:
    """Draws new curves of formulas and untrained networks, the same for all critics, `[2, curves, ...]`."""
    single = curves_of(library_name, extension, 1, config)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 4), JUDGED)
    draw = jax.jit(lambda keys: jnp.stack([jax.vmap(f)(keys)[:, 0] for f in (single.real, single.fake)]))
    return draw(keys)


def run_group(group: Group, config: Config, seeds: int, folder: Path, progress: tqdm) -> xr.Dataset:
    """Trains the configurations of a group for all seeds.

    `accuracy` is the mean over the steps of an epoch, as in the notebook; `fresh_accuracy` is that of the
    first step, whose curves are new. `logits` are for curves that are the same for all critics, and `seconds`
    for one seed, without compilation.
    """
    size, static = len(group.members), group.static
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 5), seeds)
    traced = {name: jnp.repeat(jnp.asarray(values), seeds) for name, values in group.traced.items()}
    members, judged = (jnp.tile(keys, size), traced), (static["library"], static["extension"], config)
    # On a CPU, the optimizer states of two critics fit into the cache of a core.
    stage = run_members(training(static, config), members, judged_curves(*judged), folder, progress, on_cpu=2)
    found = {name: values.reshape(size, seeds, *values.shape[1:]) for name, values in stage.metrics.items()}
    binned = {name: found[name].reshape(size, seeds, -1) for name in METRICS}
    epochs_a_bin, num_steps = schedule(config.chosen.epochs)
    return xr.Dataset(
        {
            **{name: (("configuration", "seed", "bin"), values) for name, values in binned.items()},
            "logits": (("configuration", "seed", "kind", "curve"), found["logits"][:, :, -1]),
            "seconds": ("configuration", np.full(size, stage.seconds.sum())),
        },
        {
            "configuration": list(group.members),
            "kind": ["formula", "network"],
            "epoch": ("bin", epochs_a_bin * np.arange(1, num_steps * BINS_A_STEP + 1)),
        },
    )

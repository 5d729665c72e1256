"""Training of critics: all configurations of one static shape and all seeds in one program."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from tqdm import tqdm

from experiments.running import run_stage
from experiments.symbolic_discriminator import points
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.spaces import EXTENSIONS
from experiments.symbolic_discriminator.study import Part
from lax_learning import symbolic

JUDGED = 64  # curves of formulas, and as many of untrained networks, that a trained critic is shown
BINS_A_STEP = 10
MOST_BINS = 200
HIDDEN = (32, 32)  # of the generator


class Schedule(NamedTuple):
    """Cuts of training: epochs are averaged into bins, and bins make the steps of a run."""

    epochs_a_bin: int
    steps: int

    @property
    def epochs(self) -> int:
        """All of them."""
        return self.epochs_a_bin * BINS_A_STEP * self.steps


def schedule(epochs: int) -> Schedule:
    """At least so many epochs, in at most about 200 bins."""
    epochs_a_bin = math.ceil(epochs / MOST_BINS)
    return Schedule(epochs_a_bin, math.ceil(epochs / (epochs_a_bin * BINS_A_STEP)))


class Carry(NamedTuple):
    """State of a critic's training between two steps."""

    key: Array
    traced: dict[str, Array]
    state: symbolic.CriticState


class Training(NamedTuple):
    """Functions that train one static shape and look at it.

    Fields:
      init: `(key, traced) -> carry`.
      step: `(carry, number, shared) -> (carry, metrics)`, each metric `[bins]`.
      judge: `(carry, number, judged curves) -> metrics`.
      judged: curves to be judged, `[2, curves, *curve_shape]`: of formulas, and of untrained networks.
    """

    init: Callable[[Array, dict[str, Array]], Carry]
    step: Callable[[Carry, Any, Any], tuple[Carry, dict[str, Array]]]
    judge: Callable[[Carry, Any, Array], dict[str, Array]]
    judged: Array


def curves_of(library: str, extension: str, latents: int, config: Config) -> symbolic.Curves:
    """Source of the curves of a critic."""
    x = points.points("normal", config.numbers.points, config.seed)
    seen, method = EXTENSIONS[extension]
    generator = symbolic.mlp_generator(1, latents, hidden=HIDDEN)
    return symbolic.curves_at(x, points.library(library), generator, extensions=seen, method=method)


def training(static: dict[str, Any], config: Config) -> Training:
    """The training of critics of one static shape."""
    curves = curves_of(static["library"], static["extension"], static["latents"], config)
    num_points, *channels = curves.curve_shape
    hidden = (static["width"],) * static["layers"]
    critic = symbolic.critic(num_points, hidden=hidden, channels=channels[0] if channels else 1)
    epochs_a_bin, _ = schedule(config.numbers.epochs)

    def optimizer(traced: dict[str, Array]) -> Any:
        return symbolic.adam_with_decay(traced["learning_rate"], traced["decay"])

    def init(key: Array, traced: dict[str, Array]) -> Carry:
        init_key, train_key = jax.random.split(key)
        return Carry(train_key, traced, symbolic.init_critic(init_key, critic, optimizer(traced)))

    def step(carry: Carry, number: Any, shared: Any) -> tuple[Carry, dict[str, Array]]:
        one = symbolic.critic_step(
            critic,
            optimizer(carry.traced),
            objective=static["objective"],
            penalty=carry.traced["penalty"],
        )
        epoch = symbolic.critic_epoch(curves.fake, curves.real, one, static["iterations"])
        num_epochs = epochs_a_bin * BINS_A_STEP
        state, found = symbolic.train_critic(epoch, num_epochs)(carry.key, carry.state, number * num_epochs)
        binned = jax.tree.map(lambda m: m.reshape(BINS_A_STEP, epochs_a_bin, -1), found)
        finite = jnp.isfinite(binned.loss_real + binned.loss_fake)
        accuracy, auc = (jnp.where(finite, of, jnp.nan) for of in (binned.accuracy, binned.auc))
        metrics = {
            "accuracy": jnp.mean(accuracy, axis=(1, 2)),
            "fresh_accuracy": jnp.mean(accuracy[..., 0], axis=1),
            "fresh_auc": jnp.mean(auc[..., 0], axis=1),
        }
        return carry._replace(state=state), metrics

    def judge(carry: Carry, number: Any, judged: Array) -> dict[str, Array]:
        logits = critic.apply(carry.state.params, judged.reshape(-1, *critic.curve_shape))
        return {"logits": logits.reshape(judged.shape[:2])}

    return Training(init, step, judge, judged_curves(static["library"], static["extension"], config))


@cache
def judged_curves(library: str, extension: str, config: Config) -> Array:
    """New curves, the same for all critics: of formulas and of untrained networks, `[2, curves, ...]`."""
    single = curves_of(library, extension, 1, config)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 4), JUDGED)
    return jax.jit(lambda keys: jnp.stack([jax.vmap(f)(keys)[:, 0] for f in (single.real, single.fake)]))(
        keys
    )


def run_group(group: symbolic.Group, config: Config, seeds: int, folder: Path, progress: tqdm) -> xr.Dataset:
    """Trains the configurations of a group for all seeds.

    Returns:
      A dataset with the axes `configuration` (places among all), `seed`, `bin` of epochs, `kind` of
      curve and `curve`: `accuracy` as the notebook has it, mean over the steps of an epoch; that of its
      first step, whose curves are new (`fresh_`); of the trained critic the logits of curves that are the
      same for all; and the seconds that one seed took, compilation and judging apart.
    """
    size = len(group.members)
    of_seed = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 5), seeds)
    keys = jnp.tile(of_seed, size)
    traced = {name: jnp.repeat(jnp.asarray(values), seeds) for name, values in group.traced.items()}
    trained, cut = training(group.static, config), schedule(config.numbers.epochs)
    binned = dict.fromkeys(("accuracy", "fresh_accuracy", "fresh_auc"), (BINS_A_STEP,))
    stage = run_stage(
        folder,
        (keys, traced),
        trained.init,
        trained.step,
        {**binned, "logits": (2, JUDGED)},
        costs(group, config, seeds),
        trained.judged,
        progress,
        measure=trained.judge,
        on_cpu=2,  # their moments stay in a core's cache
    )
    variables: dict[str, Any] = {
        name: (("configuration", "seed", "bin"), stage.metrics[name].reshape(size, seeds, -1))
        for name in binned
    }
    logits = stage.metrics["logits"][:, -1].reshape(size, seeds, 2, JUDGED)
    variables["logits"] = (("configuration", "seed", "kind", "curve"), logits)
    variables["seconds"] = (("configuration",), np.full(size, stage.seconds.sum()))
    epochs = cut.epochs_a_bin * np.arange(1, cut.steps * BINS_A_STEP + 1)
    coordinates = {
        "configuration": list(group.members),
        "kind": ["formula", "network"],
        "epoch": ("bin", epochs),
    }
    return xr.Dataset(variables, coordinates)


COMPILING = 4_000  # milliseconds, as much for any shape
FLOPS_A_MILLISECOND = 60e6


def costs(group: symbolic.Group, config: Config, seeds: int) -> list[int]:
    """Estimated milliseconds of every step of a group; those of compiling are in the first."""
    s, cut = group.static, schedule(config.numbers.epochs)
    seen, method = EXTENSIONS[s["extension"]]
    numbers = config.numbers.points * (2 if seen and method == "stack" else 1)
    products = numbers * s["width"] + (s["layers"] - 1) * s["width"] ** 2
    products += numbers * 64 * 66 if seen and method == "embed" else 0
    # Real and fake curves forward and backward, and twice through those between them: 2 * 3 + 6 times.
    flops = 2 * products * s["latents"] * s["iterations"] * 12
    epochs = cut.epochs // cut.steps * len(group.members) * seeds
    every = max(1, round(epochs * (flops / FLOPS_A_MILLISECOND + 0.03 * s["iterations"])))
    return [every + COMPILING, *[every] * (cut.steps - 1)]


def name_of(study: str, group: symbolic.Group) -> str:
    """A name for a group that says its static shape, with the fields that differ from study to study."""
    s = group.static
    shape = f"{s['layers']}x{s['width']}-{s['latents']}_latents-{s['iterations']}_iterations"
    return f"{study}-{s['objective']}-{s['library']}-{s['extension']}-{shape}"


def parts_of(study: str, groups: list[symbolic.Group], config: Config, seeds: int) -> dict[str, Part]:
    """A part for each group."""

    def part(group: symbolic.Group) -> Part:
        def run(folder: Path, progress: tqdm) -> xr.Dataset:
            return run_group(group, config, seeds, folder, progress)

        return Part(run, sum(costs(group, config, seeds)))

    return {name_of(study, group): part(group) for group in groups}
